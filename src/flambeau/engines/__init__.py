"""Engines by name. One is imported when it is asked for, and its absence names the extra to install."""

import importlib
from types import ModuleType

from flambeau.bundle import Bundle
from flambeau.config import Engine as EngineName
from flambeau.engines.base import Engine
from flambeau.errors import EngineError

_HOMES = {"onnxruntime": "flambeau.engines.onnx", "eager": "flambeau.engines.pytorch"}
_EXTRAS = {"eager": "pip install 'flambeau[torch]'", "onnxruntime": "pip install onnxruntime"}


def choose(bundle: Bundle, wanted: EngineName) -> str:
    """The engine that will run the bundle: the one asked for, or with `auto` the bundle's own choice."""
    return bundle.manifest.engine if wanted == "auto" else wanted


def resolve_device(engine: str, device: str) -> str:
    """The device `engine` will use: `cpu`, `cuda:N` or `mps`. Raises `DeviceError` for one that is not there."""
    chosen: str = _home(engine).resolve_device(device)
    return chosen


def load(bundle: Bundle, engine: str, *, device: str, threads: int, allow_code: bool) -> Engine:
    """Load the bundle's model into an engine. `device` is what `resolve_device` gave; `threads` bounds its own.

    Raises `EngineError`, or `CodeNotAllowed` when the engine needs the architecture's code.
    """
    loaded: Engine = _home(engine).load(bundle, device=device, threads=threads, allow_code=allow_code)
    return loaded


def _home(engine: str) -> ModuleType:
    try:
        return importlib.import_module(_HOMES[engine])
    except KeyError:
        raise EngineError(f"there is no engine named {engine!r}: take one of {', '.join(_HOMES)}") from None
    except ImportError as error:
        raise EngineError(f"the engine {engine} is not installed ({error}): {_EXTRAS[engine]}") from error
