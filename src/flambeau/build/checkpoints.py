"""Weights files to tensors: safetensors, or what `torch.save` wrote, read with `weights_only=True` and nothing else.

It knows no architecture. A file whose unpickling would run code is refused; there is no fallback.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from flambeau.errors import SourceError

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_SAFETENSORS_HEADER_STARTS = b"{"


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a state_dict by key, on the CPU. Raises `SourceError` with the reason and the remedy."""
    if _is_safetensors(path):
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise SourceError(f"{path.name} is a damaged safetensors file: {error}") from error
    if not _is_torch_file(path):
        raise SourceError(f"{path.name} is not a weights file: neither safetensors nor what torch.save writes")
    return _state_dict(_load(path), path)


def _is_safetensors(path: Path) -> bool:
    """By content: eight bytes of length, then the JSON header."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:9] == _SAFETENSORS_HEADER_STARTS and not head.startswith(b"PK")


def _is_torch_file(path: Path) -> bool:
    """By content: a zip archive, a bare pickle (before torch 1.6) or a tar archive (before 0.2)."""
    with path.open("rb") as file:
        head = file.read(512)
    return head.startswith((b"PK\x03\x04", b"\x80")) or head[257:262] == b"ustar"


def _load(path: Path) -> Any:
    try:
        with path.open("rb") as file:  # given a path, torch goes by its suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = _global_in(str(error))
        raise SourceError(
            f"{path.name} holds more than weights{f' ({found})' if found else ''}, and reading that could run code: "
            "save the weights alone with torch.save(model.state_dict(), PATH)"
        ) from None
    except Exception as error:
        raise SourceError(f"{path.name} is not a weights file that torch can read: {_first_line(error)}") from error


def _state_dict(loaded: Any, path: Path) -> dict[str, torch.Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not loaded:
        raise SourceError(f"{path.name} holds a {type(loaded).__name__}, not a state_dict")
    for key, value in loaded.items():
        if not (isinstance(key, str) and isinstance(value, torch.Tensor)):
            raise SourceError(f"{path.name} is not a state_dict: {key!r} is not the name of a tensor")
    # DataParallel puts every key under "module."
    prefixed = all(key.startswith("module.") for key in loaded)
    return {key.removeprefix("module.") if prefixed else key: tensor for key, tensor in loaded.items()}


def _global_in(message: str) -> str | None:
    """The name of the class or function that torch refused, from its message."""
    for marker in ("Unsupported global: GLOBAL ", "Unsupported class ", "GLOBAL "):
        if marker in message:
            return message.split(marker, 1)[1].split()[0]
    return None


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
