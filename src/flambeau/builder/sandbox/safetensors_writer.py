"""Write tensors to an open safetensors file, one at a time and without copying: mapped tensors take no memory.

safetensors' own writer opens its file itself, which the sandbox forbids. It also refuses tensors that share memory or
are not contiguous, so all of them would have to be copied first; and until 0.6 it made a copy itself. This module reads
nothing and knows nothing of torch files.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import IO

import torch

from flambeau.errors import SourceError

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""torch's dtypes and their names in safetensors. Complex numbers are left out: our older readers have no C64."""

_ALIGNMENT = 8  # of the first tensor in the file, and so of all, because the widest come first
_AT_ONCE = 16 << 20  # bytes between two progress reports


def plan(tensors: Mapping[str, torch.Tensor]) -> tuple[bytes, int]:
    """The file's header, and how many bytes of tensors follow it. Raises `SourceError` for a tensor it cannot hold."""
    entries: dict[str, object] = {}
    position = 0
    for key in _order(tensors):
        tensor = tensors[key]
        if tensor.dtype not in DTYPES:
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise SourceError(f"{key!r} is of {dtype}, which safetensors cannot hold: convert it, or save without it")
        if key == "__metadata__":
            raise SourceError(f"a tensor is named {key!r}, which safetensors keeps for itself: save it by another name")
        end = position + size(tensor)
        entries[key] = {
            "dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [position, end],
        }  # fmt: skip
        position = end
    header = json.dumps({key: entries[key] for key in tensors}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    return len(header).to_bytes(8, "little") + header, position


def write(tensors: Mapping[str, torch.Tensor], file: IO[bytes], *, say: Callable[[int, int], None]) -> None:
    """Write all tensors. `say` is called with (bytes of tensors written, bytes in total). Raises `OSError`, and
    `SourceError` as `plan` does.

    Tensors that share memory are written once per name. The header keeps the order of the names. Little-endian
    machines only.
    """
    head, total = plan(tensors)
    file.write(head)
    done = 0
    for key in _order(tensors):
        # A tensor that is not contiguous is copied here, and the copy is freed before the next one.
        data = tensors[key].detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        for start in range(0, len(data), _AT_ONCE):
            done += file.write(data[start : start + _AT_ONCE].data)
            say(done, total)
    file.flush()


def size(tensor: torch.Tensor) -> int:
    """The tensor's bytes when written out. In memory it may take less: an expanded tensor does."""
    return math.prod(tensor.shape) * tensor.element_size()


def _order(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The widest dtypes first, so that every tensor is aligned for its dtype."""
    return sorted(tensors, key=lambda key: -tensors[key].element_size())
