"""JSON numbers to tensors and back, for networks over numbers.

`{"input": x}`: x is one row (nested like the model's input), several rows (one level deeper), or, if a row is a single
number, that number alone. The answer is nested the same way: a row for a row, rows for rows, a number for a number.
With several inputs, x is an object of inputs by name: one row of each, or the same number of rows of each. A
number that may be missing is null then.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from flambeau.errors import InvalidInput
from flambeau.items import FREE
from flambeau.pipelines.json_document import refuse_another
from flambeau.pipelines.json_numbers import UnlikeError, read_rows, shape_of
from flambeau.pipelines.named_tensors import refuse_unlike
from flambeau.tasks import Postprocess
from flambeau.tasks.tensor import MAX_ROWS, inputs_of, nesting_of
from flambeau.types import Payload, Tensors, TensorSpec

_SMALL = 256 * 1024
"""Bytes of text that are decoded in one go. The decoded objects take up to thirty times as much."""


class TensorPipeline:
    """JSON values to tensors, shape (rows, *shape), and the rows of the outputs to the task's answer."""

    def __init__(self, *, postprocess: Postprocess, inputs: Sequence[TensorSpec]) -> None:
        self.postprocess = postprocess
        self._inputs = [_Input(spec, several=len(inputs) > 1) for spec in inputs]
        self._share_lengths = any(any(spec.words) for spec in inputs)

    def preprocess(self, payload: Payload) -> Tensors:
        """Raises `InvalidInput` that says what was expected and what was sent."""
        if payload.kind != "json":
            raise InvalidInput(
                f'this model takes numbers, not a file: send JSON like {{"input": {self._example_text()}}}',
                code="unsupported_media_type",
            )
        text = bytes(payload.data)
        if len(self._inputs) == 1:
            [only] = self._inputs
            alone = {only.spec.name: only.read(text)[0]}
            if self._share_lengths:
                refuse_unlike((only.spec,), alone)
            return alone
        texts = self._named(text)
        tensors: Tensors = {}
        first: tuple[str, int, bool] | None = None
        for each in self._inputs:
            name = each.spec.name
            rows, listed = each.read(texts[name])
            first = first or (name, len(rows), listed)
            if (len(rows), listed) != first[1:]:
                told = [
                    f"a list of {count} rows" if of else "one row" for count, of in (first[1:], (len(rows), listed))
                ]
                raise InvalidInput(
                    f"'{first[0]}' is {told[0]}, and '{name}' is {told[1]}: "
                    "send one row of each, or lists of equal length",
                    code="invalid_tensor",
                )
            tensors[name] = rows
        refuse_unlike([each.spec for each in self._inputs], tensors)
        return tensors

    def together(self, payloads: Sequence[Payload]) -> Tensors | None:
        """The rows of payloads that are one plain row each, in order, read in one go; `None` for any others.

        They are the numbers that `preprocess` gives for each. What is wrong, or only unusual, is left to that.
        """
        if len(self._inputs) > 1 or self._share_lengths or any(payload.kind != "json" for payload in payloads):
            return None
        [only] = self._inputs
        rows = only.read_together([bytes(payload.data) for payload in payloads])
        return None if rows is None else {only.spec.name: rows}

    def example(self) -> Payload:
        """A plain row for each input."""
        row = {each.spec.name: each.spec.plain(1)[0].tolist() for each in self._inputs}
        return Payload("json", msgspec.json.encode(row if len(row) > 1 else row[self._inputs[0].spec.name]))

    def _named(self, text: bytes) -> dict[str, bytes]:
        """The JSON text of every input, by name. Raises `InvalidInput`."""
        names = [each.spec.name for each in self._inputs]
        wanted = "input must be an object with " + ", ".join(f'"{name}"' for name in names)
        try:
            found = inputs_of(text)
        except msgspec.DecodeError:
            raise InvalidInput(wanted, code="invalid_tensor") from None
        for name in names:
            if name not in found:
                raise InvalidInput(f'{wanted}, but it has no "{name}"', code="invalid_tensor")
        if odd := [name for name in found if name not in names]:
            raise InvalidInput(f"{wanted}, and nothing else: it has {odd[0][:40]!r}", code="invalid_tensor")
        for name, value in found.items():
            refuse_another(text, memoryview(value), name, functools.partial(_has, name))
        return {name: bytes(value) for name, value in found.items()}

    def _example_text(self) -> str:
        text = self.example().data
        return bytes(text).decode() if len(text) <= 60 else "[…]"


class _Input:
    """Reads the JSON of one input. With `several` inputs, errors name the input."""

    def __init__(self, spec: TensorSpec, *, several: bool) -> None:
        self.spec = spec
        self._called = f"input '{spec.name}'" if several else "input"
        number = {"f": float, "i": int, "u": int, "b": bool}[np.dtype(spec.dtype).kind]
        self._number: Any = number | None if spec.missing else number
        self._single = all(size == 1 for size in spec.shape)
        self._nested = [_decoder(self._number, nesting) for nesting in range(len(spec.shape) + 2)]
        """What decodes a number, a list of them and so on; the last one rows."""

    def read(self, text: bytes) -> tuple[npt.NDArray[Any], bool]:
        """The rows, and whether they came as a list. Raises `InvalidInput`."""
        array, listed = self._rows_of(self._read(text))
        if odd := self.spec.outside(array):
            raise self._wrong(f"it has {odd}")
        return array, listed

    def _rows_of(self, array: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], bool]:
        row = self.spec.shape
        if self.spec.takes(array.shape):
            return array[None], False
        if array.shape == () and self._single:
            return array.reshape(1, *row), False
        if not self.spec.takes(array.shape[1:]) or not len(array):
            raise self._wrong(f"its shape is {list(array.shape)}")
        if len(array) > MAX_ROWS:
            raise self._wrong(f"it has {len(array)} rows, and the most is {MAX_ROWS}")
        return array, True

    def read_together(self, texts: list[bytes]) -> npt.NDArray[Any] | None:
        """The rows of texts that are one row each, shape (texts, *shape); `None` unless all of them are, and right.

        Rows with a free axis are not read so. The texts are decoded as one list. Each closes as many lists as it opens,
        so that it is at least one element: if there are as many elements as texts, each text is one. A text that closed
        a list before it opened one would end the whole.
        """
        if FREE in self.spec.shape or sum(map(len, texts)) > _SMALL:
            return None
        if any(text.count(b"[") != text.count(b"]") for text in texts):
            return None
        try:
            with np.errstate(over="ignore"):
                rows = np.array(self._nested[-1].decode(b"[" + b",".join(texts) + b"]"), dtype=self.spec.dtype)
        except (msgspec.DecodeError, OverflowError, ValueError):
            return None
        if rows.shape != (len(texts), *self.spec.shape) or not self._is_right(rows) or self.spec.outside(rows):
            return None
        return rows

    def _read(self, text: bytes) -> npt.NDArray[Any]:
        try:
            with np.errstate(over="ignore"):  # a number that is too large becomes infinite, and is refused below
                array = self._read_small(text) if len(text) <= _SMALL else self._read_large(text)
        except UnlikeError as error:
            raise self._wrong(str(error)) from None
        except msgspec.DecodeError as error:
            raise self._wrong(_in_words(error)) from None
        except OverflowError:
            raise self._out_of_range() from None
        except ValueError:
            raise self._wrong("its lists are of unequal length") from None
        if not self._is_right(array):
            raise self._out_of_range()
        return array

    def _read_small(self, text: bytes) -> npt.NDArray[Any]:
        nesting = nesting_of(text)
        known = nesting < len(self._nested)
        decoder = self._nested[nesting] if known else _decoder(self._number, nesting)
        return np.array(decoder.decode(text), dtype=self.spec.dtype)

    def _read_large(self, text: bytes) -> npt.NDArray[Any]:
        nesting = nesting_of(text)
        if not nesting:
            return self._read_small(text)
        shape = shape_of(text, self.spec.shape, nesting)
        return read_rows(text, shape, self.spec.dtype, number=self._number, nesting=nesting, most=MAX_ROWS)

    def _is_right(self, array: npt.NDArray[Any]) -> bool:
        """Whether its numbers are finite, or missing where they may be."""
        if array.dtype.kind != "f":
            return True
        right = ~np.isinf(array) if self.spec.missing else np.isfinite(array)
        return bool(np.count_nonzero(right) == array.size)  # a third of what `all` takes

    def _out_of_range(self) -> InvalidInput:
        return self._wrong(f"one of its numbers is out of range for {self.spec.dtype}")

    def _wrong(self, found: str) -> InvalidInput:
        return InvalidInput(f"{self._called} must be {self._expected()}, but {found}", code="invalid_tensor")

    def _expected(self) -> str:
        shape = self.spec.shape
        number = "truth value" if self._number is bool else "number"
        if not shape:
            return f"a {number}, or a list of {number}s"
        if self._single:
            return f"a {number}, or nested lists of shape {list(shape)}, or a list of those"
        if len(shape) == 1:
            count = "" if self.spec.sizes == ["any"] else f"{self.spec.sizes[0]} "
            return f"a list of {count}{number}s, or a list of such lists"
        return f"nested lists of shape [{', '.join(self.spec.sizes)}], or a list of those"


def _decoder(number: Any, nesting: int) -> "msgspec.json.Decoder[Any]":
    """A decoder of numbers in lists, nested so deep."""
    nested: Any = number
    for _ in range(nesting):
        nested = list[nested]
    return msgspec.json.Decoder(nested)


def _has(name: str, text: bytes) -> bool:
    return name in inputs_of(text)


_MISSING = (
    "null where a number belongs, and nothing in the network says what it makes of missing ones (if it takes NaN, send "
    "that as binary data over KServe v2)"
)
_FOUND = {
    "str": "text", "null": "null", "bool": "a truth value", "object": "an object", "array": "a list",
    "int": "a number", "float": "a number",
}  # fmt: skip
_EXPECTED = {"array": "a list", "int": "a whole number", "bool": "a truth value", "float": "a number"}


def _in_words(error: msgspec.DecodeError) -> str:
    """msgspec's error as the end of a sentence: "it has text where a number belongs"."""
    message = str(error)
    if match := re.match(r"Expected `(\w+)(?: \| null)?`, got `(\w+)`", message):
        expected, found = match.groups()
        if (expected, found) == ("float", "null"):
            return f"it has {_MISSING}"
        word = "a decimal number" if (expected, found) == ("int", "float") else _FOUND.get(found, found)
        return f"it has {word} where {_EXPECTED.get(expected, expected)} belongs"
    return "one of its numbers is out of range" if "out of range" in message else "it cannot be read"
