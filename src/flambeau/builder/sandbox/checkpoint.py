"""Load the tensors of one mapping in a torch file, always with `weights_only=True` (T-01).

The result is compared with the report that `flambeau.checkpoints` made of the same bytes without unpickling them. This
runs inside the sandbox, with everything it needs already open and imported.
"""

import argparse
import collections
import io
import pathlib
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import nn

from flambeau.builder.sandbox import safetensors_writer
from flambeau.checkpoints.report import Report, TensorMapping
from flambeau.errors import SourceError

_REMEDY = "save the weights alone with torch.save(model.state_dict(), PATH)"


def load(
    file: IO[bytes], mapped: Path | None, report: Report, *, name: str, permitted: Sequence[tuple[Any, str]]
) -> Any:
    """The file's contents, on the CPU. Raises `SourceError`, or `MemoryError` when memory runs out.

    `mapped` is a path to the same open file. With it, and a format that allows it, tensors are mapped instead of read,
    and take no memory. `permitted` are the globals that the file may name in addition to torch's own.
    """
    place = mapped if report.format == "torch-zip" else None
    try:
        with torch.serialization.safe_globals(list(permitted)):
            return torch.load(place or file, map_location="cpu", weights_only=True, mmap=place is not None)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise SourceError(f"{name} holds more than weights{what}, and reading that could run code: {_REMEDY}") from None
    except Exception as error:
        if _is_out_of_memory(error):
            raise MemoryError from None
        raise SourceError(
            f"{name} is not a file that torch can read ({first_line(error)}): fetch or save it again"
        ) from None


def find(loaded: Any, entry: TensorMapping, *, name: str) -> dict[str, torch.Tensor]:
    """The tensors of the mapping at `entry.where`. Raises `SourceError` unless they are what the report says."""
    for key in entry.where:
        loaded = loaded.get(key) if isinstance(loaded, Mapping) else None
    if not isinstance(loaded, Mapping):
        raise SourceError(f"{name} holds no mapping of tensors at {'.'.join(entry.where) or 'its top'}: {_REMEDY}")
    tensors = {key: value for key, value in loaded.items() if isinstance(value, torch.Tensor)}
    for key in tensors.keys() | entry.tensors.keys():
        told, found = entry.tensors.get(key), tensors.get(key)
        if told is None or found is None or (told.dtype, told.shape) != (_dtype(found), tuple(found.shape)):
            raise SourceError(
                f"{name} contradicts itself about {key!r}: {_words(told)} by its structure, and {_words(found)} "
                "when read: do not use the file"
            )
        if found.layout is not torch.strided or found.device.type != "cpu" or found.is_quantized:
            raise SourceError(f"{name} holds {key!r} in a form without plain numbers ({found.type()}): {_REMEDY}")
    return tensors


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and bool(re.search("not enough memory|Cannot allocate memory", str(error)))


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _words(tensor: Any) -> str:
    if tensor is None:
        return "nothing"
    dtype = _dtype(tensor) if isinstance(tensor, torch.Tensor) else tensor.dtype
    return f"{dtype} of shape {list(tensor.shape)}"


# Preloading: everything that reading a torch file may need is done once, with a file of our own, before the sandbox.
# Python imports much lazily (an encoding, a part of numpy), and a sandboxed process cannot open those files. What
# weights may name is a closed set (`flambeau.checkpoints.allowlist`), so all of it can be tried.


_NUMBERS = "?bBhHiIqQefdFD"  # numpy's type codes


def preload(permitted: Sequence[tuple[Any, str]]) -> None:
    """Write and read one value of each kind, in both formats. `permitted` as for `load`."""
    parameter = nn.Parameter(torch.ones(2))
    parameter.note = 1  # type: ignore[attr-defined]  # with an attribute, a parameter is rebuilt by another function
    old = {
        "tensors": {"turned": torch.zeros(2, 3).t(), "half": torch.zeros(2, dtype=torch.bfloat16)},
        "parameters": [nn.Parameter(torch.ones(2)), parameter],
    }
    new = old | {
        "tensors": {str(dtype): torch.zeros(2, 3, dtype=dtype).t() for dtype in safetensors_writer.DTYPES},
        "complex": [torch.zeros(1, dtype=dtype) for dtype in (torch.complex64, torch.complex128)],
        "numbers": [np.dtype(letter).type(0) for letter in _NUMBERS],
        "values": [b"\xff", "\xff", bytearray(b"\xff"), 1j, {1}, 2**70, collections.Counter("a"), torch.Size([1])],
        "beside": [argparse.Namespace(a=1), pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("a")],
        "places": [torch.device("cpu"), torch.float32, collections.OrderedDict(a=1)],
    }
    for content, zipped in ((old, False), (new, True)):
        file = io.BytesIO()
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
        file.seek(0)
        with torch.serialization.safe_globals(list(permitted)):
            read = torch.load(file, map_location="cpu", weights_only=True)
        safetensors_writer.write(read["tensors"], io.BytesIO(), say=lambda done, total: None)
