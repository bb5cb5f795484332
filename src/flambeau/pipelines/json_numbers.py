"""Read large JSON lists of numbers against the shape they must have, in linear time and with little memory.

A decoder makes an object of every number and list, some thirty bytes for each byte of text, before they can be counted.
Here the brackets and commas are compared with those of the shape first; then the numbers go into the array piece by
piece. For example, rows of shape (2, 3) must have the brackets and commas `[[,,],[,,]]`.
"""

import math
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from flambeau.items import FREE

_PIECE = 256 * 1024  # bytes of text that are decoded together
_NOT_MARKS = bytes(set(range(256)) - set(b"[],"))
_NO_BRACKETS = bytes.maketrans(b"[]", b"  ")


class UnlikeError(ValueError):
    """The text does not have the shape; the message says how, and completes a sentence that ends in "but"."""


def read_rows(
    text: bytes, shape: tuple[int, ...], dtype: str, *, number: Any, nesting: int, most: int
) -> npt.NDArray[Any]:
    """The array, shape (rows, *shape), of a JSON value: a row, nested as deep as the shape, or a list of rows.

    `number` is the Python type of each number, with `None` where it may be missing, `nesting` how many lists the text
    opens with, `most` the limit on rows.
    Raises `UnlikeError`, `msgspec.DecodeError` for anything but numbers, and `OverflowError`.
    """
    msgspec.json.decode(text, type=msgspec.Raw)  # checks the grammar of the whole text, and makes no objects
    rows = _count_rows(text, shape, nesting)
    if rows > most:
        raise UnlikeError(f"it has {rows} rows, and the most is {most}")
    array = np.empty(rows * math.prod(shape), dtype)
    filled = start = 0
    while start < len(text):
        end = text.find(b",", start + _PIECE)
        end = len(text) if end < 0 else end
        piece = b"[" + text[start:end].translate(_NO_BRACKETS) + b"]"
        numbers = msgspec.json.decode(piece, type=list[number])
        if filled + len(numbers) > len(array):
            raise UnlikeError("its lists are of unequal length")
        array[filled : filled + len(numbers)] = np.array(numbers, dtype)
        filled += len(numbers)
        start = end + 1
    if filled < len(array):  # an empty list where a number belongs
        raise UnlikeError("its lists are of unequal length")
    return array.reshape(rows, *shape)


def shape_of(text: bytes, shape: tuple[int, ...], nesting: int) -> tuple[int, ...]:
    """The shape, with its free axes set to their lengths in the first row of the text. Raises `UnlikeError`."""
    if FREE not in shape:
        return shape
    marks = np.frombuffer(text.translate(None, delete=_NOT_MARKS), np.uint8)
    depths = np.cumsum((marks == ord("[")).astype(np.int32) - (marks == ord("]")))
    found = list(shape)
    for axis, size in enumerate(shape):
        if size != FREE:
            continue
        level = nesting - len(shape) + axis + 1  # the depth of the first list along the axis; it opens at that mark
        if level < 1:
            raise UnlikeError(f"its lists are nested {nesting} deep")
        within = depths[level - 1 :]
        ends = int(np.argmax(within < level)) or len(within)
        found[axis] = 1 + int(((marks[level - 1 :] == ord(",")) & (within == level))[:ends].sum())
    return tuple(found)


def _count_rows(text: bytes, shape: tuple[int, ...], nesting: int) -> int:
    """How many rows the text has. Raises `UnlikeError` unless its brackets and commas are those of rows of `shape`."""
    if b'"' in text:
        raise UnlikeError("it has text where a number belongs")
    if nesting not in (len(shape), len(shape) + 1):
        raise UnlikeError(f"its lists are nested {nesting} deep")
    marks = text.translate(None, delete=_NOT_MARKS)
    if math.prod(shape) > len(marks) + 1:
        raise UnlikeError("it has fewer numbers than a row")
    row = _marks_of(shape)
    rows = 1 if nesting == len(shape) else (len(marks) - 1) // (len(row) + 1)
    if marks != (row if nesting == len(shape) else _list_of(row, rows)):
        raise UnlikeError("its lists are not of that shape")
    return rows


def _marks_of(shape: tuple[int, ...]) -> bytes:
    """The brackets and commas of one row: for (2, 3), `[[,,],[,,]]`."""
    return _list_of(_marks_of(shape[1:]), shape[0]) if shape else b""


def _list_of(element: bytes, count: int) -> bytes:
    return b"[" + ((element + b",") * count)[:-1] + b"]"
