"""Engines by name. Each is imported only when used; if its package is missing, the error names what to install."""

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
    """How to load an engine: its `module`, the function `load` in it, its `package`, and the `extra` that installs it.

    `member` is the member of a bundle that it reads.
    """

    module: str
    package: str
    extra: str | None
    member: str
    load: str = "load"

    @property
    def install(self) -> str:
        """The command that installs it."""
        return pip_install(self.extra) if self.extra else f"pip install {self.package}"


_KINDS = {
    "onnxruntime": _Kind("flambeau.engines.onnxruntime", "onnxruntime", None, ONNX),
    "openvino": _Kind("flambeau.engines.openvino", "openvino", "openvino", ONNX),
    "eager": _Kind("flambeau.engines.pytorch", "torch", "torch", WEIGHTS),
    "compile": _Kind("flambeau.engines.pytorch", "torch", "torch", WEIGHTS, "load_compiled"),
    "onnxruntime-int8": _Kind("flambeau.engines.onnxruntime", "onnxruntime", None, INT8_ONNX, "load_int8"),
}


def choose(bundle: Bundle, wanted: EngineChoice) -> str:
    """The engine that will run the bundle: `wanted`, or with `auto` the engine in its manifest.

    If that was chosen on another machine and is not installed here, ONNX Runtime takes its place.
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
    """The bundle with the answers that `engine` must reproduce: the network's, or for int8 the quantised graph's."""
    return Bundle(bundle.path, bundle.manifest, quantised=engine == "onnxruntime-int8")


def installed(engine: str) -> bool:
    """Whether the engine's package is installed. Imports nothing."""
    return importlib.util.find_spec(_kind(engine).package) is not None


def able(bundle: Bundle) -> tuple[str, ...]:
    """The engines that are installed here and whose member the bundle has, ONNX Runtime first."""
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
    """Load the bundle's model into an engine; for the options see `LoadOptions`. `device` comes from `resolve_device`.

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
