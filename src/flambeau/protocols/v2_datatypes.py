"""The datatypes of the Open Inference Protocol (KServe v2): their names, their raw bytes, and numpy's arrays.

Raw bytes are little-endian, in row-major order, without padding; an element of BYTES is its length as four bytes and
then itself. Reading makes no copy: arrays and elements are views of the bytes. numpy has no bfloat16, so BF16 becomes
float32, which holds each of its numbers exactly. No JSON, no HTTP, no model.
"""

import math
import struct
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from flambeau.errors import RequestError

V2Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BF16",
    "BYTES",
]  # fmt: skip
"""Every datatype of the protocol, with Triton's BF16."""

Elements = tuple[bytes | memoryview, ...]
"""The elements of a BYTES tensor, in row-major order."""

NUMPY: dict[V2Datatype, "np.dtype[Any]"] = {
    "BOOL": np.dtype("?"), "UINT8": np.dtype("u1"), "UINT16": np.dtype("<u2"), "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"), "INT8": np.dtype("i1"), "INT16": np.dtype("<i2"), "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"), "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
}  # fmt: skip
"""numpy's own dtypes. BF16 is read as FP32; BYTES has none."""

_BY_NUMPY: dict[str, V2Datatype] = {dtype.name: name for name, dtype in NUMPY.items()}
_LENGTH = struct.Struct("<I")
_MOST_DIMENSIONS = 32  # numpy takes 64, a frame between processes 32
_LARGEST = 2**31 - 1  # of one size, as in protobuf's and Triton's own checks of products


def datatype_of(dtype: str) -> V2Datatype:
    """The datatype of a numpy dtype by its name; BYTES for text and objects."""
    return _BY_NUMPY.get(dtype, "BYTES")


def count_of(name: str, shape: Sequence[int]) -> int:
    """How many elements a tensor of that shape has. Raises `RequestError` for a shape that no tensor can have.

    Products are of Python's own whole numbers, which do not overflow; a size beyond 31 bits is refused.
    """
    if len(shape) > _MOST_DIMENSIONS:
        raise _wrong(f"the input '{name}' has {len(shape)} dimensions: the most is {_MOST_DIMENSIONS}")
    for size in shape:
        if not 1 <= size <= _LARGEST:
            raise _wrong(f"the shape of the input '{name}' has the size {size}")
    return math.prod(shape)


def byte_size(datatype: V2Datatype, count: int) -> int:
    """The bytes that so many elements take. BYTES, whose elements differ, take at least this."""
    if datatype == "BYTES":
        return _LENGTH.size * count
    return (2 if datatype == "BF16" else NUMPY[datatype].itemsize) * count


def from_bytes(
    name: str, datatype: V2Datatype, shape: Sequence[int], data: bytes | memoryview, *, most_elements: int
) -> npt.NDArray[Any] | Elements:
    """The tensor in those bytes, all of them: an array of that shape, or the elements of BYTES.

    Views of `data`, except for BF16. Sizes are compared before anything is made. `most_elements` bounds those of BYTES,
    each of which costs a step. Raises `RequestError` that names the input.
    """
    count = count_of(name, shape)
    size = byte_size(datatype, count)
    if datatype == "BYTES":
        refuse_more_elements(name, count, most_elements)
        return _elements(name, count, memoryview(data))
    if len(data) != size:
        raise _wrong(
            f"unexpected size for input '{name}': {len(data)} bytes, but {datatype} of shape {list(shape)} has {size}"
        )
    if datatype == "BF16":
        return widened(np.frombuffer(data, "<u2")).reshape(shape)
    if datatype == "BOOL":
        flags = np.frombuffer(data, np.uint8)
        if flags.max(initial=0) > 1:
            raise _wrong(f"the input '{name}' is BOOL, and has a byte that is neither 0 nor 1")
        return flags.view(np.bool_).reshape(shape)
    return np.frombuffer(data, NUMPY[datatype]).reshape(shape)


def refuse_more_elements(name: str, count: int, most: int) -> None:
    """Raise `RequestError` if a BYTES tensor has more elements than a request may have items."""
    if count > most:
        message = f"the input '{name}' has {count} elements: the most is {most} (--max-items)"
        raise RequestError(message, code="too_many_items")


def _elements(name: str, count: int, data: memoryview) -> Elements:
    if count > len(data) // _LENGTH.size:  # before a loop over them
        raise _wrong(f"unexpected size for input '{name}': {len(data)} bytes cannot be {count} elements of BYTES")
    found, place = [], 0
    for index in range(count):
        if len(data) - place < _LENGTH.size:
            raise _wrong(f"the input '{name}' ends before the length of its element {index}")
        (length,) = _LENGTH.unpack_from(data, place)
        place += _LENGTH.size
        if length > len(data) - place:
            raise _wrong(f"the input '{name}' ends within its element {index}, of {length} bytes")
        found.append(data[place : place + length])
        place += length
    if place != len(data):
        raise _wrong(f"unexpected size for input '{name}': {len(data) - place} bytes follow its last element")
    return tuple(found)


def to_bytes(datatype: V2Datatype, data: npt.NDArray[Any] | Elements) -> list[bytes | memoryview]:
    """The raw bytes of a tensor, in pieces to be joined. Those of an array are a view of it where it lies so already.

    BF16 takes an array of float32 and rounds to the nearest, ties to even.
    """
    if isinstance(data, tuple):
        pieces: list[bytes | memoryview] = []
        for element in data:
            pieces += (_LENGTH.pack(len(element)), element)
        return pieces
    array = narrowed(data) if datatype == "BF16" else np.ascontiguousarray(data, NUMPY[datatype])
    return [array.reshape(-1).view(np.uint8).data]


def widened(halves: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """The float32 numbers of bfloat16's bits, which are the upper half of theirs: exact."""
    return (halves.astype(np.uint32) << 16).view(np.float32)


def narrowed(numbers: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The bits of bfloat16 nearest to each float32, ties to even; a NaN stays one."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    upper = bits >> 16
    rounded = (bits + (0x7FFF + (upper & 1))) >> 16  # a NaN's could wrap round to zero
    return np.where(np.isnan(numbers), upper | 0x40, rounded).astype(np.uint16)


def _wrong(message: str) -> RequestError:
    return RequestError(message, code="invalid_tensor")
