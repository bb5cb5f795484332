"""The whole examination, room by room. Slow checks run in processes beside the others."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from flambeau import engines
from flambeau.bundle import storage
from flambeau.bundle.storage import MANIFEST, SAMPLES, Bundle, PythonConfig
from flambeau.doctor import Finding, probes
from flambeau.doctor.machine import check_address, check_devices, check_machine, check_sandbox
from flambeau.doctor.packages import check_packages, version
from flambeau.doctor.probes import LoadRequest, load_process
from flambeau.errors import ConfigError, SetupError
from flambeau.settings.service import Settings
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache, declarations, request
from flambeau.sources.inspection import inspect
from flambeau.sources.request import BuildRequest
from flambeau.system.machine import pip_install

_BUILD = "flambeau build makes a bundle of it, which can be loaded here"


def examine(
    options: SourceOptions, settings: Settings, *, more: Sequence[str] = ()
) -> Iterator[tuple[str, list[Finding]]]:
    """The findings by room, in the order in which they are shown, each room as soon as it is done.

    `more`: sources beside that of `options`. Of several models, or a repository, each has a room of its own.
    """
    with contextlib.ExitStack() as stack:
        sandbox = stack.enter_context(probes.sandbox_process())
        torch = stack.enter_context(probes.torch_process()) if version("torch") else None
        yield "machine", [*check_machine(_cache()), *check_address(settings)]
        yield "packages", [*check_packages()]
        yield "sandbox", [*check_sandbox(sandbox.answer())]
        yield "devices", [*check_devices(torch.answer() if torch else None)]
        yield from _sources(options, settings, more)


def _cache() -> Path | None:
    """The folder of built bundles, or `None` if this user cannot have one."""
    try:
        return build_cache.cache_folder()
    except ConfigError:
        return None


def _sources(options: SourceOptions, settings: Settings, more: Sequence[str]) -> Iterator[tuple[str, list[Finding]]]:
    """A room for the source, or one for each version that would be loaded at the start."""
    sources = [each for each in (options.source, *more) if each is not None]
    try:
        declared = declarations.declare(
            sources, msgspec.structs.replace(options, source=None), keep=settings.keep_versions
        )
    except SetupError as error:
        yield "source", [Finding("source", "broken", str(error), "see docs/models.md for how several are named")]
        return
    if declared is None:
        yield "source", [*check_source(options, settings)]
        return
    for each in (wanted for model in declared for wanted in model.wanted()):
        own = dataclasses.replace(settings, **each.settings)
        fault = Finding("source", "broken", each.fault, "correct it: the others are served meanwhile")
        yield f"{each.name}, version {each.version}", [fault] if each.fault else [*check_source(each.source, own)]


# The source: a bundle is verified, loaded and warmed up as a worker would do it; a file is inspected.


def check_source(options: SourceOptions, settings: Settings) -> Iterator[Finding]:
    """Whether the source can be served here. No source means the built-in model, which needs no check."""
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
            build = build_cache.request_of(options)
        except SetupError as error:
            yield Finding("source", "broken", str(error), "see docs/sources.md for what can be served")
        else:
            yield _buildable(source, build)


def _of_bundle(path: Path, settings: Settings) -> Iterator[Finding]:
    try:
        opened = storage.read(path)
    except SetupError as error:
        yield Finding("bundle", "broken", str(error), "build it again: flambeau build SOURCE -o DIR")
        return
    manifest = opened.manifest
    size = sum((path / name).stat().st_size for name in manifest.members)
    yield Finding(
        "bundle", "fine", f"{manifest.name}: all {len(manifest.members)} members are intact, {size / 1e6:.1f} MB"
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
    yield _load(opened, settings)


def _load(opened: Bundle, settings: Settings) -> Finding:
    load = LoadRequest(
        folder=str(opened.path), engine=settings.engine, device=settings.device, threshold=settings.threshold,
        allow_code=settings.allow_code,
    )  # fmt: skip
    with load_process(load, seconds=settings.startup_timeout) as process:
        loaded = process.answer()
    if isinstance(loaded, str):
        return Finding("model", "broken", f"loading it {loaded}", "free memory, or take another --engine")
    if loaded.error:
        return Finding("model", "broken", loaded.error, "build it again here, or take another --engine")
    warm = f"{loaded.engine} on {loaded.device} is warm after {loaded.seconds:.2f} s, {loaded.memory_mb:.0f} MB larger"
    samples = ", and its golden samples reproduce" if SAMPLES in opened.manifest.members else ""
    return Finding("model", "fine", warm + samples)


def _of_file(path: Path, options: SourceOptions) -> Iterator[Finding]:
    try:
        build = build_cache.request_of(options)
        found = inspect(path, weights_key=options.weights_key) if options.arch is None else None
    except SetupError as error:
        yield Finding("source", "broken", str(error), f"flambeau inspect {path} shows what is in it")
        return
    if found and found.needs:
        yield Finding("source", "warning", f"{path} cannot be served as it is", found.needs)
    else:
        yield _buildable(str(path), build)


def _buildable(source: str, build: BuildRequest) -> Finding:
    """Whether the package that its build needs is installed. The package has the name of its extra."""
    needed = {"python": None, "onnx": "onnx"}.get(build.kind, "torch")
    if needed is not None and version(needed) is None:
        return Finding(
            "source", "broken", f"{source} cannot be built without the package {needed}", pip_install(needed)
        )
    return Finding("source", "fine", f"{source} can be built", _BUILD)
