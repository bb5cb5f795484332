"""Everything that reading a torch file can take, done once with a file of our own, before the door is shut.

Python imports much of itself when it is first needed (an encoding, a part of numpy), and behind the door no file can be
opened. What weights may name is a closed set (`flambeau.checkpoints.allowlist`), so a rehearsal of it is complete.
"""

import argparse
import collections
import io
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from flambeau.builder.sandbox import safetensors_writer

_NUMBERS = "?bBhHiIqQefdFD"  # numpy's letters for its kinds of numbers


def rehearse(permitted: Sequence[tuple[Any, str]]) -> None:
    """Write and read one of each, in both formats. `permitted` as for `checkpoint.load`."""
    parameter = nn.Parameter(torch.ones(2))
    parameter.note = 1  # type: ignore[attr-defined]  # it is rebuilt in another way then
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
