"""Engines by name. One is imported when it is asked for, and its absence names the extra to install."""

import importlib
import importlib.util
import logging
from dataclasses import dataclass
from types import ModuleType

from flambeau.bundle.storage import INT8_ONNX, ONNX, WEIGHTS, Bundle
from flambeau.engines.base import Engine, LoadOptions, RowByRow
from flambeau.errors import EngineError
from flambeau.settings.service import EngineChoice
from flambeau.system.machine import pip_install
from flambeau.telemetry import logs


@dataclass(frozen=True)
class _Kind:
    """Where an engine lives: the `module` with its function `load`, its `package`, and the `extra` that has that.

    `member` is what it reads of a bundle.
    """

    module: str
    package: str
    extra: str | None
    member: str
    load: str = "load"

    @property
    def install(self) -> str:
        """The command that makes it usable."""
        return pip_install(self.extra) if self.extra else f"pip install {self.package}"


_KINDS = {
    "onnxruntime": _Kind("flambeau.engines.onnxruntime", "onnxruntime", None, ONNX),
    "openvino": _Kind("flambeau.engines.openvino", "openvino", "openvino", ONNX),
    "eager": _Kind("flambeau.engines.pytorch", "torch", "torch", WEIGHTS),
    "compile": _Kind("flambeau.engines.pytorch", "torch", "torch", WEIGHTS, "load_compiled"),
    "onnxruntime-int8": _Kind("flambeau.engines.onnxruntime", "onnxruntime", None, INT8_ONNX, "load_int8"),
}


def choose(bundle: Bundle, wanted: EngineChoice) -> str:
    """The engine that will run the bundle: the one asked for, or with `auto` the bundle's own choice.

    A choice that was made on another machine gives way to ONNX Runtime where it is not installed.
    """
    if wanted != "auto":
        return wanted
    own = bundle.manifest.engine
    if own in _KINDS and not installed(own) and ONNX in bundle.manifest.members:
        logs.event(
            "the bundle's engine is not installed here", level=logging.WARNING,
            model=bundle.manifest.name, engine=own, taken="onnxruntime",
        )  # fmt: skip
        return "onnxruntime"
    return own


def to_reproduce(bundle: Bundle, engine: str) -> Bundle:
    """The bundle with the answers that `engine` must reproduce: PyTorch's, but of a quantised graph its own."""
    return Bundle(bundle.path, bundle.manifest, quantised=engine == "onnxruntime-int8")


def installed(engine: str) -> bool:
    """Whether the package that the engine runs on is there. Imports nothing."""
    return importlib.util.find_spec(_kind(engine).package) is not None


def able(bundle: Bundle) -> tuple[str, ...]:
    """The engines that are installed here and find in the bundle what they run, ONNX Runtime first."""
    return tuple(name for name, kind in _KINDS.items() if kind.member in bundle.manifest.members and installed(name))


def resolve_device(engine: str, device: str) -> str:
    """The device `engine` will use: `cpu`, `cuda:N` or `mps`. Raises `DeviceError` for one that is not there."""
    chosen: str = _home(engine).resolve_device(device)
    return chosen


def load(
    bundle: Bundle,
    engine: str,
    *,
    device: str,
    threads: int,
    allow_code: bool,
    max_batch: int = 8,
    alone: bool = False,
) -> Engine:
    """Load the bundle's model into an engine, as `LoadOptions` say. `device` is what `resolve_device` gave.

    Where the manifest says `one_row`, the engine computes the rows of a batch one after the other.

    Raises `EngineError`, or `CodeNotAllowed` when the engine needs the architecture's code.
    """
    loader = getattr(_home(engine), _kind(engine).load)
    options = LoadOptions(device=device, threads=threads, allow_code=allow_code, max_batch=max_batch, alone=alone)
    loaded: Engine = loader(bundle, options)
    return loaded if bundle.manifest.one_row is None else RowByRow(loaded)


def _kind(engine: str) -> _Kind:
    try:
        return _KINDS[engine]
    except KeyError:
        raise EngineError(f"there is no engine named {engine!r}: take one of {', '.join(_KINDS)}") from None


def _home(engine: str) -> ModuleType:
    kind = _kind(engine)
    try:
        return importlib.import_module(kind.module)
    except ImportError as error:
        raise EngineError(f"the engine {engine} is not installed ({error}): {kind.install}") from error
