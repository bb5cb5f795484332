"""Put the user's own code into a bundle, and build the bundle of a Python model, which is nothing but code."""

import functools
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import msgspec

from flambeau.builder import golden_samples
from flambeau.bundle import storage
from flambeau.bundle.storage import HANDLER_FILES, CodeReference, HandlerConfig, Manifest, PythonConfig, Source
from flambeau.sources.request import BuildRequest, BuildStep, Event
from flambeau.version import VERSION


def build(
    order: BuildRequest, folder: Path, given: Sequence[golden_samples.GivenSample], *, say: Callable[[Event], None]
) -> None:
    """Build the bundle of a Python model, or of a handler. The code is copied, not run."""
    if order.handler is not None:
        _build_handler(order, order.handler, folder, given, say=say)
        return
    assert order.code is not None  # `flambeau.sources.request` sets it for every Python model
    say(BuildStep(1, 1, f"packing {order.name}"))
    code = keep_code(order.code, folder, portable=order.portable)
    source = Source(kind="python", name=Path(code.file).name if code.file else str(code.module))
    manifest = Manifest(
        format=storage.FORMAT,
        name=order.name,
        flambeau=VERSION,
        source=source,
        pipeline=PythonConfig(code=code),
        engine="python",
        task="python",
    )
    if given:
        golden_samples.keep(given, folder)
    storage.write_manifest(folder, manifest)


def _build_handler(
    order: BuildRequest,
    handler: HandlerConfig,
    folder: Path,
    given: Sequence[golden_samples.GivenSample],
    *,
    say: Callable[[Event], None],
) -> None:
    """Build the bundle of a handler: all files of its archive."""
    say(BuildStep(1, 1, f"packing {order.name}"))
    target = folder / HANDLER_FILES
    # A bundle in the cache shares its files with the unpacked archive, which nobody changes either.
    shutil.copytree(str(order.files), target, copy_function=shutil.copyfile if order.portable else _linked)
    manifest = Manifest(
        format=storage.FORMAT,
        name=order.name,
        flambeau=VERSION,
        source=Source(kind=handler.contract, name=Path(order.options.source or order.name).name),
        pipeline=handler,
        engine="python",
        task="handler",
    )
    if given:
        golden_samples.keep(given, folder)
    storage.write_manifest(folder, manifest)


def _linked(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)
    return target


def imported() -> tuple[str, ...]:
    """The files of the user's code that this process has imported: those outside Python's folders and Flambeau's."""
    paths = sysconfig.get_paths()
    theirs = [Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    theirs.append(Path(storage.__file__).resolve().parents[1])
    within = tuple(os.path.join(folder, "") for folder in theirs)
    real = functools.cache(os.path.realpath)  # thousands of modules lie in hundreds of folders
    files: set[Path] = set()
    for file in filter(None, map(_file, list(sys.modules.values()))):
        folder, name = os.path.split(file)
        found = os.path.realpath(file) if os.path.islink(file) else os.path.join(real(folder), name)
        if not found.startswith(within):
            files.add(Path(found))
    return tuple(str(file) for file in sorted(files) if not {"site-packages", "dist-packages"} & set(file.parts))


def _file(module: ModuleType) -> str | None:
    """The module's source file, or `None`. Some modules return a value for any attribute, and not always a string."""
    file = getattr(module, "__file__", None)
    return file if isinstance(file, str) and file.endswith(".py") and os.path.isfile(file) else None


def keep_code(code: CodeReference, folder: Path, *, portable: bool) -> CodeReference:
    """Copy the code's file into the bundle. A portable bundle drops the folder that siblings are imported from."""
    root = None if portable else code.root
    if not code.file:
        return msgspec.structs.replace(code, root=root)
    member = Path("code", Path(code.file).name)
    (folder / "code").mkdir(exist_ok=True)
    shutil.copyfile(code.file, folder / member)
    return msgspec.structs.replace(code, file=str(member), root=root)
