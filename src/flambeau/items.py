"""One unit of work: the payload, the client's options, and tensors with their specs. It knows no answer.

These structs are the wire format between processes. Named arrays are sent as their bytes, one after the other, with
their dtypes and shapes in a spec; bytes from another process are checked before they become arrays.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

Tensors = dict[str, npt.NDArray[Any]]
"""Named arrays. Axis 0 of each is the row; all arrays of one `Tensors` have the same number of rows."""

PipelineKind = Literal["image", "text", "audio", "tensor", "python"]
"""What a model takes: image files, texts, sound files, numbers as JSON, or whatever its own Python code accepts."""


FREE = -1
"""The size of a free axis, one of any length."""


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One input or output: its name, its numpy dtype and the shape of one row, without the row axis itself. An axis of
    any length is `FREE`; `least` is the least length of such axes. `words`: for each axis the word that it shares with
    others of the model's inputs, all of one length in a request; empty for one that shares none. Where `below` is set,
    its numbers are places in a table of so many vectors: 0 is the first. `tables`: the same for each number of a row on
    its own, in order, where they differ; 0 for one that is not looked up. `known`: numbers that the network is
    tried with because it knows no others, such as sampling rates, or the 0 and 1 of a mask; the first of them alone has
    an answer. `missing`: the network says what it makes of numbers that are missing, which are NaN."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    least: int = 1
    words: tuple[str, ...] = ()
    below: int = 0
    tables: tuple[int, ...] = ()
    known: tuple[int, ...] = ()
    missing: bool = False

    def plain(self, rows: int) -> npt.NDArray[Any]:
        """Rows for trying out the network, all alike: of zeros, or of the first number that the network knows."""
        return np.full((rows, *self.usual), self.known[0] if self.known else 0, self.dtype)

    def outside(self, rows: npt.NDArray[Any]) -> str:
        """The first of the numbers that is no place in its table, in words; empty if all are, or there is none.

        An exported graph would count negative ones from the end of the table, which the network itself refuses.
        """
        if self.tables:
            sizes = np.array(self.tables)
            flat = rows.reshape(-1, len(sizes))
            wrong = ~((flat >= 0) & (flat < sizes)) & (sizes > 0)  # so that NaN is no place
            if not wrong.any():
                return ""
            place = int(wrong.any(axis=0).argmax())
            return _no_place(flat[wrong[:, place], place][0], sizes[place], f" as number {place + 1} of a row")
        if not self.below or not rows.size or (rows.min() >= 0 and rows.max() < self.below):
            return ""
        return _no_place(rows[~((rows >= 0) & (rows < self.below))].flat[0], self.below)

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether a row may have this shape."""
        if shape == self.shape:
            return True
        return len(shape) == len(self.shape) and all(
            size == own or (own == FREE and size >= self.least) for size, own in zip(shape, self.shape, strict=True)
        )

    def long(self, length: int) -> tuple[int, ...]:
        """The shape of one row whose free axes all have this length."""
        return tuple(length if size == FREE else size for size in self.shape)

    @property
    def usual(self) -> tuple[int, ...]:
        """The shape of one row for trying out the network."""
        return self.long(max(self.least, USUAL_LENGTH))

    @property
    def sizes(self) -> list[str]:
        """The sizes of one row in words: `any` or `5 or more` for a free axis."""
        free = "any" if self.least == 1 else f"{self.least} or more"
        return [free if size == FREE else str(size) for size in self.shape]

    def __str__(self) -> str:
        """`float32 [N, 4]`."""
        return f"{self.dtype} [{', '.join(['N', *self.sizes])}]"


def _no_place(number: Any, size: int, where: str = "") -> str:
    return f"{number}{where}, and the network's table has the places 0 to {size - 1:,}"


USUAL_LENGTH = 8
"""The length of a free axis when a network is tried out."""


DType = Literal[
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"
]
"""The dtypes of arrays sent between processes, by numpy's names. Little-endian, in row-major order."""

_MOST_DIMENSIONS = 32


class ArraySpec(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The spec of one named array as it is sent: its shape is complete, the row axis first."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The array's size in bytes. Raises `ValueError` for a shape that no array with rows can have."""
        if not 1 <= len(self.shape) <= _MOST_DIMENSIONS or min(self.shape) < 0:
            raise ValueError(f"{list(self.shape)} is the shape of no array with rows")
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@functools.cache
def name_of(dtype: "np.dtype[Any]") -> str:
    """The dtype's name, which numpy makes anew whenever it is asked."""
    return dtype.name


def pack(tensors: Tensors, *, lent: bool = False) -> tuple[tuple[ArraySpec, ...], bytearray | memoryview]:
    """The arrays' specs and bytes. The bytes are a copy, because a network may write into its input.

    `lent`: they go to another process, so those of a single array may be a view of it.
    """
    specs, parts = [], []
    for name, each in tensors.items():
        laid = np.ascontiguousarray(each, each.dtype.newbyteorder("<"))
        specs.append(ArraySpec(name, name_of(laid.dtype), laid.shape))  # type: ignore[arg-type]
        parts.append(laid.reshape(-1).view(np.uint8).data)
    return tuple(specs), parts[0] if lent and len(parts) == 1 else bytearray().join(parts)


def check_packed(specs: Sequence[ArraySpec], size: int) -> None:
    """Raise `ValueError` unless the arrays take `size` bytes and have distinct names and the same number of rows."""
    names, rows, left = set(), set(), size
    for spec in specs:
        left -= spec.size
        names.add(spec.name)
        rows.add(spec.shape[0])
    if len(names) != len(specs) or not names:
        raise ValueError(f"{len(specs)} arrays do not have as many names")
    if left:
        raise ValueError(f"{size} bytes are not the arrays that are told")
    if len(rows) != 1:
        raise ValueError("the arrays have unlike numbers of rows")


def unpack(specs: Sequence[ArraySpec], data: bytes | bytearray | memoryview) -> Tensors:
    """The arrays, as views of `data`. Raises `ValueError`."""
    check_packed(specs, len(data))
    return views(specs, data)


def views(specs: Sequence[ArraySpec], data: bytes | bytearray | memoryview) -> Tensors:
    """The same of arrays that were checked (`check_packed`). Raises `ValueError` where one of bool holds no bool."""
    found, start = {}, 0
    for spec in specs:
        flat = np.frombuffer(data, np.dtype(spec.dtype).newbyteorder("<"), math.prod(spec.shape), start)
        if spec.dtype == "bool" and flat.size and flat.view(np.uint8).max() > 1:
            raise ValueError(f"{spec.name} holds what is neither true nor false")
        found[spec.name] = flat.reshape(spec.shape)
        start += spec.size
    return found


class Payload(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One item as it came in, not yet parsed.

    By `kind`, `data` is: `file`, the bytes of a file; `json`, the JSON text of one value; `document`, a whole JSON
    document for the replica to parse; `tensors`, the bytes of the network's own inputs, described by `arrays`; `value`,
    the value itself, within one process only; `request`, a whole request to a handler, a `HandlerCall` in MessagePack.

    On the wire between two processes, `data` is the number of the bytes, which follow separately (`runners.wire`).
    """

    kind: Literal["file", "json", "document", "tensors", "value", "request"]
    data: Any
    arrays: tuple[ArraySpec, ...] = ()

    @property
    def size(self) -> int:
        """The size in bytes; 0 for a value, which never was bytes."""
        return 0 if self.kind == "value" else len(self.data)


MaskForm = Literal["png", "rle"]
"""The form of a mask in JSON: a PNG in base64, or COCO's run-length encoding."""


class HandlerPart(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One part of a form, or the whole body, whose name is `body`. `media_type` is empty where the client said none."""

    name: str
    media_type: str
    data: bytes


class HandlerCall(msgspec.Struct, frozen=True, array_like=True):
    """A request as a handler reads it. Names of headers are lower-case; the token is not among them."""

    identity: str
    headers: dict[str, str]
    parts: tuple[HandlerPart, ...]


class Options(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The client's options for its answer.

    `top_k`: how many classes to rank, best first. `threshold`: the probability below which nothing counts as
    recognised, and no label as present; `None` takes the model's. `probabilities`: whether a classification includes
    the whole vector. `most`: how many detected objects to answer at most, the best; `None` for all. `mask`: the
    form in which the replica makes masks; `None` if only their map is wanted.
    `bits`: those of a sample in a picture, 8 or 16.
    """

    top_k: int = 1
    threshold: float | None = None
    probabilities: bool = False
    most: int | None = None
    mask: MaskForm | None = None
    bits: int = 8


class Item(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One unit of work for a replica."""

    payload: Payload
    options: Options
