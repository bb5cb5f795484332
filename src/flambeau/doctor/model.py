"""What is to be served: a bundle is verified, and loaded and warmed up as a worker does it; a file is looked at."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from flambeau import engines
from flambeau.bundle import storage
from flambeau.bundle.storage import MANIFEST, SAMPLES, Bundle, PythonConfig
from flambeau.doctor.child import ProbeProcess
from flambeau.doctor.diagnosis import Finding
from flambeau.doctor.packages import version
from flambeau.errors import SetupError
from flambeau.settings.service import Settings
from flambeau.settings.source import SourceOptions
from flambeau.sources import request
from flambeau.sources.inspection import inspect
from flambeau.sources.request import BuildRequest
from flambeau.system.machine import pip_install

_BUILD = "flambeau build makes a bundle of it, which can be loaded here"


class Rehearsed(msgspec.Struct, frozen=True):
    """What came of loading a bundle: `error` says why it cannot be served."""

    engine: str = ""
    device: str = ""
    seconds: float = 0.0
    memory_mb: float = 0.0
    error: str = ""


class Rehearsal(msgspec.Struct, frozen=True):
    """What is to be loaded, and how."""

    folder: str
    engine: str
    device: str
    threshold: float | None
    allow_code: bool


def look(options: SourceOptions, settings: Settings) -> Iterator[Finding]:
    """Whether the source can be served here. No source at all is the built-in model, which needs no look."""
    source = options.source
    if source is None or source == request.DEFAULT:
        return
    path = Path(source)
    if (path / MANIFEST).is_file():
        yield from _of_bundle(path, settings)
    elif path.is_file():
        yield from _of_file(path, options)
    else:
        try:
            order = request.order_for(options)
        except SetupError as error:
            yield Finding("source", "broken", str(error), "see docs/sources.md for what can be served")
        else:
            yield _buildable(source, order)


def _of_bundle(path: Path, settings: Settings) -> Iterator[Finding]:
    try:
        opened = storage.read(path)
    except SetupError as error:
        yield Finding("bundle", "broken", str(error), "build it again: flambeau build SOURCE -o DIR")
        return
    manifest = opened.manifest
    size = sum((path / name).stat().st_size for name in manifest.members)
    yield Finding(
        "bundle", "fine", f"{manifest.name}: all {len(manifest.members)} members are whole, {size / 1e6:.1f} MB"
    )
    if isinstance(manifest.pipeline, PythonConfig):
        if not settings.allow_code:
            yield Finding("model", "broken", "it is code, which is not run here", "if you trust it, add --allow-code")
            return
    elif not (able := engines.able(opened)):
        yield Finding("engines", "broken", "none of those installed reads it", "pip install onnxruntime")
        return
    else:
        yield Finding("engines", "fine", f"{', '.join(able)} can run it; it was built for {manifest.engine}")
    yield _rehearse(opened, settings)


def _rehearse(opened: Bundle, settings: Settings) -> Finding:
    order = Rehearsal(
        folder=str(opened.path), engine=settings.engine, device=settings.device, threshold=settings.threshold,
        allow_code=settings.allow_code,
    )  # fmt: skip
    text = msgspec.json.encode(order).decode()
    with ProbeProcess(
        "flambeau.doctor.load_child", Rehearsed, arguments=[text], seconds=settings.startup_timeout
    ) as child:
        told = child.answer()
    if isinstance(told, str):
        return Finding("model", "broken", f"loading it {told}", "free memory, or take another --engine")
    if told.error:
        return Finding("model", "broken", told.error, "build it again here, or take another --engine")
    warm = f"{told.engine} on {told.device} is warm after {told.seconds:.2f} s, {told.memory_mb:.0f} MB larger"
    samples = ", and its golden samples reproduce" if SAMPLES in opened.manifest.members else ""
    return Finding("model", "fine", warm + samples)


def _of_file(path: Path, options: SourceOptions) -> Iterator[Finding]:
    try:
        order = request.order_for(options)
        found = inspect(path, weights_key=options.weights_key) if options.arch is None else None
    except SetupError as error:
        yield Finding("source", "broken", str(error), f"flambeau inspect {path} shows what is in it")
        return
    if found and found.needs:
        yield Finding("source", "warning", f"{path} lacks something to be served", found.needs)
    else:
        yield _buildable(str(path), order)


def _buildable(source: str, order: BuildRequest) -> Finding:
    """Whether the packages are there that its build needs. Each is named like the extra that has it."""
    needed = {"python": None, "onnx": "onnx"}.get(order.kind, "torch")
    if needed is not None and version(needed) is None:
        return Finding("source", "broken", f"{source} is not built without the package {needed}", pip_install(needed))
    return Finding("source", "fine", f"{source} can be built", _BUILD)
