"""Any other answer: the JSON text of a network over numbers or a Python model, or an object within this process.

Numpy arrays, numpy scalars and torch tensors become strict JSON; NaN and infinities become null.
"""

import math
from typing import Any, Literal

import msgspec
import numpy as np

from flambeau.answers.base import Answer, Asked
from flambeau.items import Tensors


class Value(Answer, frozen=True):
    """The answer of a network over numbers, or of a Python model: strict JSON text, encoded in the replica.

    `nonfinite` counts the NaN and infinite numbers that became `null`, since JSON cannot express them. With `key`
    "outputs" the text is an object of a network's several outputs by name.
    """

    json: bytes
    nonfinite: int = 0
    key: Literal["output", "outputs"] = "output"

    @property
    def size(self) -> int:
        return len(self.json)

    def body(self, asked: Asked) -> dict[str, Any]:
        return {self.key: msgspec.Raw(self.json)}

    @property
    def output(self) -> Any:
        return msgspec.Raw(self.json)

    def row(self, *, top_k: int | None, probabilities: bool) -> dict[str, Any]:
        if self.key == "output":
            return {"output": self.output}
        return {column_of(name): each for name, each in msgspec.json.decode(self.json, type=_BY_NAME).items()}

    def tensors(self) -> Tensors:
        found = self.returned()
        arrays = {
            name: np.asarray(each) for name, each in (found if self.key == "outputs" else {"output": found}).items()
        }
        if any(array.dtype.kind not in "fiub" for array in arrays.values()):
            raise ValueError("the answer is not an array of numbers")
        return {name: array[None] for name, array in arrays.items()}

    def returned(self) -> Any:
        return msgspec.json.decode(self.json)


_BY_NAME = dict[str, msgspec.Raw]


def column_of(output: str) -> str:
    """The table column of one of several outputs."""
    return f"output.{output}"


class Plain(Answer, frozen=True):
    """The answer to a payload of kind `value`: the model's own object, which never leaves the process."""

    value: Any
    nonfinite: int = 0
    size: int = 0

    def body(self, asked: Asked) -> dict[str, Any]:
        return {"output": self.value}

    def returned(self) -> Any:
        return self.value


def encode(answer: Any, key: Literal["output", "outputs"] = "output") -> Value:
    """An answer as JSON text, with the count of its numbers that are not finite.

    Raises `TypeError` (or what the object's own code raises) for a value that has no JSON form.
    """
    text = _ENCODER.encode(answer)
    return Value(text, nonfinite=_count_nonfinite(answer) if b"null" in text else 0, key=key)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind not in "biufSU":
            raise TypeError(f"a numpy array of {value.dtype} has no JSON form")
        if value.dtype == np.longdouble:
            value = value.astype(np.float64)  # Python has no such type, so `tolist` would not convert it
        return value.tolist()
    if hasattr(value, "detach") and hasattr(value, "tolist"):  # a torch tensor, recognised without importing torch
        return value.detach().cpu().tolist()
    raise TypeError(f"a {type(value).__name__} has no JSON form")


_ENCODER = msgspec.json.Encoder(enc_hook=_plain)


def _count_nonfinite(value: Any) -> int:
    """Count the non-finite numbers in a value: msgspec writes them as null, like real nulls."""
    if isinstance(value, float):
        return 0 if math.isfinite(value) else 1
    if isinstance(value, dict):
        return sum(map(_count_nonfinite, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return sum(map(_count_nonfinite, value))
    if isinstance(value, str | bytes | int | None):
        return 0
    try:
        return _count_nonfinite(_plain(value))
    except TypeError:
        return 0
