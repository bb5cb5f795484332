"""Any other answer: JSON text of a network over numbers or a Python model, or an object of this process."""

from typing import Any, ClassVar

import msgspec
from msgspec import UNSET

from flambeau.answers import json_values
from flambeau.answers.base import Asked, Expected, foreign


class Value(msgspec.Struct, frozen=True, array_like=True, tag=str.lower):
    """The answer of a network over numbers, or of a Python model: strict JSON text, made where the answer was made.

    `nonfinite` counts the NaN and infinite numbers that became `null`, for JSON has no word for them.
    """

    PARTS: ClassVar[tuple[str, ...]] = ("output",)

    json: bytes
    nonfinite: int = 0

    @property
    def size(self) -> int:
        return len(self.json)

    def body(self, asked: Asked) -> dict[str, Any]:
        return {"output": msgspec.Raw(self.json)}

    def row(self, *, top_k: int | None, probabilities: bool) -> dict[str, Any]:
        return {"output": msgspec.Raw(self.json)}

    def returned(self) -> Any:
        return msgspec.json.decode(self.json)

    def differs(self, expected: Expected) -> str | None:
        if odd := foreign(expected, self.PARTS, kind="no class"):
            return odd
        return None if expected.output is UNSET else json_values.differs(expected.output, self.returned(), "output")

    def readable(self) -> Expected:
        return Expected()


class Plain(msgspec.Struct, frozen=True):
    """The answer to a payload of kind `value`: an object of the model's own, which never leaves the process."""

    value: Any
    nonfinite: int = 0
    size: int = 0

    def body(self, asked: Asked) -> dict[str, Any]:
        return {"output": self.value}

    def row(self, *, top_k: int | None, probabilities: bool) -> dict[str, Any]:
        return {"output": self.value}

    def returned(self) -> Any:
        return self.value

    def differs(self, expected: Expected) -> str | None:
        return None if expected.output is UNSET else json_values.differs(expected.output, self.value, "output")

    def readable(self) -> Expected:
        return Expected()
