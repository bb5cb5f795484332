"""Arrays on their way between processes: bytes, and no list of floats.

An array of a hundred thousand numbers is decoded in no time, and the front holds nothing but its bytes. What a worker
sends is checked before it is believed: bytes that are no array of that shape are refused where they are decoded.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

SINGLE, DOUBLE = np.dtype("<f4"), np.dtype("<f8")

_MOST_DIMENSIONS = 32


def packed(array: npt.NDArray[Any], dtype: "np.dtype[Any]") -> bytes:
    """The numbers of an array, little-endian, in row-major order."""
    return np.ascontiguousarray(array, dtype).tobytes()


def check(data: bytes, dtype: "np.dtype[Any]", shape: tuple[int, ...] | None = None) -> None:
    """Raise `ValueError` unless `data` are numbers of that type, at least one, and as many as `shape` asks for."""
    count, rest = divmod(len(data), dtype.itemsize)
    if rest or not count:
        raise ValueError(f"{len(data)} bytes are no numbers of {dtype.itemsize} bytes each")
    if shape is not None and (len(shape) > _MOST_DIMENSIONS or min(shape, default=1) < 1 or math.prod(shape) != count):
        raise ValueError(f"{count} numbers are no array of that shape")


def unpacked(data: bytes, dtype: "np.dtype[Any]") -> npt.NDArray[Any]:
    """The numbers as an array of shape (numbers,), over the bytes themselves: it cannot be written to."""
    return np.frombuffer(data, dtype)


def elements(shape: tuple[int, ...]) -> int:
    """How many numbers an array of that shape has."""
    return math.prod(shape)


def count_nonfinite(array: npt.NDArray[Any]) -> int:
    """How many of its numbers are NaN or infinite."""
    return int(array.size - np.count_nonzero(np.isfinite(array)))
