"""Arrays as they are sent between processes: as bytes, not as lists of floats.

So an array of a hundred thousand numbers is decoded in almost no time, and the front holds only its bytes. Arrays from
a worker are checked when they are decoded: bytes that do not make an array of the given shape are refused.
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
    """Raise `ValueError` unless `data` holds numbers of `dtype`, at least one, and as many as `shape` requires."""
    count, rest = divmod(len(data), dtype.itemsize)
    if rest or not count:
        raise ValueError(f"{len(data)} bytes cannot be numbers of {dtype.itemsize} bytes each")
    if shape is not None and (len(shape) > _MOST_DIMENSIONS or min(shape, default=1) < 1 or math.prod(shape) != count):
        raise ValueError(f"{count} numbers cannot be an array of that shape")


def unpacked(data: bytes, dtype: "np.dtype[Any]") -> npt.NDArray[Any]:
    """The numbers as a read-only array of shape (numbers,), over the bytes themselves."""
    return np.frombuffer(data, dtype)


def elements(shape: tuple[int, ...]) -> int:
    """How many numbers an array of that shape has."""
    return math.prod(shape)


def count_nonfinite(array: npt.NDArray[Any]) -> int:
    """How many numbers in the array are NaN or infinite."""
    return int(array.size - np.count_nonzero(np.isfinite(array)))
