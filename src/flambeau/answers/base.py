"""What every answer can do, how it may be asked for, and what golden samples insist on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np

from flambeau.answers import json_values
from flambeau.items import Tensors

PartName = Literal["file", "image"]
"""The name of the part that carried an item, which decides the shape of a classification's body."""

Expected = Mapping[str, Any]
"""The parts of an answer that are insisted on, by name: those that its `PARTS` names."""


class Label(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A class: `id` for machines (a WordNet id, or the index as a string), `name` for people."""

    id: str
    name: str


class Scored(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A class with its index in the model's outputs and its probability in [0, 1]."""

    index: int
    label: Label
    probability: float

    def body(self) -> dict[str, Any]:
        """As it stands in a ranking."""
        return {"class_id": self.label.id, "class_name": self.label.name, "probability": self.probability}


@dataclass(frozen=True, slots=True)
class Asked:
    """How an answer is wanted: by the part that carried the item, and with how many ranked classes, if any."""

    form: PartName = "file"
    top_k: int | None = None


class Answer(msgspec.Struct, frozen=True, array_like=True, tag=str.lower):
    """The answer to one item. It travels between processes as it is, under the name of its class.

    What a task does not say is this: no number of it is special, a table has one column for all of it, and golden
    samples compare the whole of it.
    """

    KIND: ClassVar[str] = "no class"
    """What it is, as a sentence goes on after "the answer is"."""

    PARTS: ClassVar[Mapping[str, Any]] = {"output": Any}
    """The parts that golden samples may insist on, with their types."""

    RANKS: ClassVar[bool] = False
    """Whether the largest output is the answer, so that two engines must have it at the same place."""

    @property
    def nonfinite(self) -> int:
        """How many of its numbers are NaN or infinite. They are `null` in JSON, which has no word for them."""
        return 0

    @property
    def size(self) -> int:
        """Bytes that it takes on its way between processes, about."""
        return 0

    def body(self, asked: Asked) -> dict[str, Any]:
        """The native JSON."""
        raise NotImplementedError

    def row(self, *, top_k: int | None, probabilities: bool) -> dict[str, Any]:
        """The cells of `flambeau predict`, by column."""
        return {"output": self.output}

    @property
    def output(self) -> Any:
        """All of it as one value: what stands under `output`, or the whole body."""
        body = self.body(Asked())
        return body.get("output", body)

    def tensors(self) -> Tensors:
        """It as named arrays of one row, for protocols that know nothing else. Raises `ValueError` where it is no
        array of numbers."""
        array = np.asarray(self.output)
        if array.dtype.kind not in "fiub":
            raise ValueError("the answer is no array of numbers")
        return {"output": array[None]}

    def returned(self) -> Any:
        """What a caller in Python is given."""
        return self

    def differs(self, expected: Expected) -> str | None:
        """The first thing insisted on and not so: "class_id is 'a' where 'b' is expected". `None` if all is so."""
        if odd := foreign(expected, self):
            return odd
        if "output" not in expected:
            return None
        found = msgspec.json.decode(msgspec.json.encode(self.output))
        return json_values.differs(expected["output"], found, "output")

    def readable(self) -> dict[str, Any]:
        """What a person can read of it, to keep beside a golden sample: the outputs that are kept beside it are the
        same, so mostly it is nothing."""
        return {}


def foreign(expected: Expected, answer: Answer) -> str | None:
    """The sentence about a part that an answer of this kind does not have, or `None` where it has all of them."""
    odd = next((name for name in expected if name not in answer.PARTS), None)
    return odd and f"the answer is {answer.KIND}, and has no {odd}"
