"""JSON numbers to a tensor and back, for networks over numbers.

`{"input": x}`: x is one row (the nesting of the model's input), several rows (one level more), or, where the row is a
single number, that number alone. The answer is nested the same way: a row for a row, rows for rows, a number for a
number.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from flambeau.errors import InvalidInput
from flambeau.pipelines.json_numbers import UnlikeError, read_rows
from flambeau.tasks import Postprocess
from flambeau.tasks.tensor import MAX_ROWS, nesting_of
from flambeau.types import Payload, Tensors, TensorSpec

_SMALL = 256 * 1024
"""Bytes of text that may be decoded as they are: what is made of them takes thirty times as much at the worst."""


class TensorPipeline:
    """One JSON value to (rows, *shape), and the rows of the output to what its task makes of them."""

    def __init__(self, *, postprocess: Postprocess, inputs: Sequence[TensorSpec]) -> None:
        self.postprocess = postprocess
        self._input = inputs[0]
        self._number = {"f": float, "i": int, "u": int, "b": bool}[np.dtype(self._input.dtype).kind]

    def preprocess(self, payload: Payload) -> Tensors:
        """Raises `InvalidInput` with a sentence that says what was expected and what came."""
        if payload.kind != "json":
            raise InvalidInput(
                f'this model takes numbers, not a file: send JSON like {{"input": {self._example_text()}}}',
                code="unsupported_media_type",
            )
        array = self._read(bytes(payload.data))
        row = self._input.shape
        if array.shape == row:
            array = array[None]
        elif array.shape == () and math.prod(row) == 1:
            array = array.reshape(1, *row)
        elif array.shape[1:] != row or not len(array):
            raise self._wrong(f"its shape is {list(array.shape)}")
        elif len(array) > MAX_ROWS:
            raise self._wrong(f"it has {len(array)} rows, and the most is {MAX_ROWS}")
        return {self._input.name: array}

    def example(self) -> Payload:
        """A row of zeros."""
        return Payload("json", msgspec.json.encode(np.zeros(self._input.shape, self._input.dtype).tolist()))

    def _read(self, text: bytes) -> npt.NDArray[Any]:
        try:
            with np.errstate(over="ignore"):  # a number too large becomes infinite, and is refused below
                array = self._read_small(text) if len(text) <= _SMALL else self._read_large(text)
        except UnlikeError as error:
            raise self._wrong(str(error)) from None
        except msgspec.DecodeError as error:
            raise self._wrong(_in_words(error)) from None
        except OverflowError:
            raise self._out_of_range() from None
        except ValueError:
            raise self._wrong("its lists are of unlike length") from None
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise self._out_of_range()
        return array

    def _read_small(self, text: bytes) -> npt.NDArray[Any]:
        nested: Any = self._number
        for _ in range(nesting_of(text)):
            nested = list[nested]
        return np.array(msgspec.json.decode(text, type=nested), dtype=self._input.dtype)

    def _read_large(self, text: bytes) -> npt.NDArray[Any]:
        nesting = nesting_of(text)
        if not nesting:
            return self._read_small(text)
        return read_rows(
            text, self._input.shape, self._input.dtype, number=self._number, nesting=nesting, most=MAX_ROWS
        )

    def _out_of_range(self) -> InvalidInput:
        return self._wrong(f"one of its numbers is out of range for {self._input.dtype}")

    def _wrong(self, found: str) -> InvalidInput:
        return InvalidInput(f"input must be {self._expected()}, but {found}", code="invalid_tensor")

    def _expected(self) -> str:
        shape = self._input.shape
        if not shape:
            return "a number, or a list of numbers"
        if math.prod(shape) == 1:
            return f"a number, or nested lists of shape {list(shape)}, or a list of those"
        if len(shape) == 1:
            return f"a list of {shape[0]} numbers, or a list of such lists"
        return f"nested lists of shape {list(shape)}, or a list of those"

    def _example_text(self) -> str:
        text = self.example().data
        return bytes(text).decode() if len(text) <= 60 else "[…]"


_FOUND = {
    "str": "text", "null": "null", "bool": "a truth value", "object": "an object", "array": "a list",
    "int": "a number", "float": "a number",
}  # fmt: skip
_EXPECTED = {"array": "a list", "int": "a whole number", "bool": "a truth value", "float": "a number"}


def _in_words(error: msgspec.DecodeError) -> str:
    """msgspec's finding as the end of a sentence: "it has text where a number belongs"."""
    message = str(error)
    if match := re.match(r"Expected `(\w+)`, got `(\w+)`", message):
        expected, found = match.groups()
        word = "a decimal number" if (expected, found) == ("int", "float") else _FOUND.get(found, found)
        return f"it has {word} where {_EXPECTED.get(expected, expected)} belongs"
    return "one of its numbers is out of range" if "out of range" in message else "it cannot be read"
