"""Numbers that mean what they are: the answer of a regression over images."""

from typing import Any, ClassVar

import msgspec
from msgspec import UNSET

from flambeau.answers import json_values, packed_array
from flambeau.answers.base import Asked, Expected, Schema, foreign, record


class Regression(msgspec.Struct, frozen=True, array_like=True, tag=str.lower):
    """The network's own numbers. `shape` is that of its output, without the row; `vector` are float64."""

    PARTS: ClassVar[tuple[str, ...]] = ("output",)

    shape: tuple[int, ...]
    vector: bytes

    def __post_init__(self) -> None:
        packed_array.check(self.vector, packed_array.DOUBLE, self.shape)

    @property
    def output(self) -> Any:
        """A number for a network with one output, else lists that are nested as its output is."""
        array = packed_array.unpacked(self.vector, packed_array.DOUBLE)
        return array.item() if array.size == 1 else array.reshape(self.shape).tolist()

    @property
    def nonfinite(self) -> int:
        return packed_array.count_nonfinite(packed_array.unpacked(self.vector, packed_array.DOUBLE))

    @property
    def size(self) -> int:
        return len(self.vector)

    def body(self, asked: Asked) -> dict[str, Any]:
        return {"output": self.output}

    def row(self, *, top_k: int | None, probabilities: bool) -> dict[str, Any]:
        return {"output": self.output}

    def returned(self) -> "Regression":
        return self

    def differs(self, expected: Expected) -> str | None:
        if odd := foreign(expected, self.PARTS, kind="a number"):
            return odd
        return None if expected.output is UNSET else json_values.differs(expected.output, self.output, "output")

    def readable(self) -> Expected:
        return Expected()  # the outputs that are kept beside it are the same

    @staticmethod
    def schemas(shape: tuple[int, ...]) -> tuple[Schema, ...]:
        """The schema of its body."""
        number: Schema = {"type": ["number", "null"], "description": "null stands for what JSON has no number for."}
        row = number
        for size in reversed(shape if packed_array.elements(shape) != 1 else ()):
            row = {"type": "array", "items": row, "minItems": size, "maxItems": size}
        return (record({"output": row}),)
