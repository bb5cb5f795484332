"""Arrays in numpy's file format, from bodies that anybody may have written.

Nothing is unpickled, and no header decides how much memory is taken.
"""

import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from flambeau.errors import RequestError

_KINDS = "fiub"
_MOST_DIMENSIONS = 16


def read_npy(body: bytes | memoryview) -> npt.NDArray[Any]:
    """The array in a .npy file: of floats, whole numbers or truth values, any shape. A view into the body where it can.

    Raises `RequestError` with code `invalid_tensor`.
    """
    file = io.BytesIO(bytes(body[: 64 * 1024]))
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except (ValueError, EOFError, SyntaxError, TypeError) as error:
        raise RequestError(f"the body is not a numpy array: {error}", code="invalid_tensor") from None
    if dtype.hasobject or dtype.kind not in _KINDS or dtype.fields or len(shape) > _MOST_DIMENSIONS:
        raise RequestError(f"an array of {dtype} is not taken: send numbers", code="invalid_tensor")
    data = memoryview(body)[file.tell() :]
    if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != len(data):
        raise RequestError(
            f"the array says that it has shape {list(shape)} of {dtype}, and {len(data)} bytes follow: "
            "it was cut short, or is not one array",
            code="invalid_tensor",
        )
    array = np.frombuffer(data, dtype)
    return array.reshape(shape[::-1]).transpose() if fortran else array.reshape(shape)


def write_npy(array: npt.NDArray[Any]) -> bytes:
    """The bytes of a .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
