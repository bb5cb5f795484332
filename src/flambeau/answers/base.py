"""The base class of all answers, the options of a client, and the comparison with golden samples."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np

from flambeau.answers import json_values
from flambeau.items import Tensors

PartName = Literal["file", "image"]
"""The name of the part that carried an item. It decides the shape of a classification's body."""

Expected = Mapping[str, Any]
"""The expected parts of an answer, by name: some of those in its `PARTS`."""


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
        """The class as an element of a ranking."""
        return {"class_id": self.label.id, "class_name": self.label.name, "probability": self.probability}


@dataclass(frozen=True, slots=True)
class Asked:
    """How a client wants an answer. `form`: the part with the item. `top_k`: how many classes to rank, if any."""

    form: PartName = "file"
    top_k: int | None = None


class Answer(msgspec.Struct, frozen=True, array_like=True, tag=str.lower):
    """The answer to one item. It is sent between processes as it is, tagged with the name of its class.

    By default no number counts as non-finite, a table has one column for the whole answer, and golden samples compare
    the whole answer.
    """

    KIND: ClassVar[str] = "no class"
    """The words that complete the sentence "the answer is ..."."""

    PARTS: ClassVar[Mapping[str, Any]] = {"output": Any}
    """The parts that golden samples may compare, with their types."""

    RANKS: ClassVar[bool] = False
    """Whether the largest output is the answer, so that two engines must agree on which one it is."""

    @property
    def nonfinite(self) -> int:
        """How many of its numbers are NaN or infinite. They are `null` in JSON, which cannot express them."""
        return 0

    @property
    def size(self) -> int:
        """Roughly the bytes that it takes between processes."""
        return 0

    def body(self, asked: Asked) -> dict[str, Any]:
        """The body of the native protocol, to be encoded as JSON."""
        raise NotImplementedError

    def row(self, *, top_k: int | None, probabilities: bool) -> dict[str, Any]:
        """The answer's row in the table of `flambeau predict`, by column."""
        return {"output": self.output}

    @property
    def output(self) -> Any:
        """The whole answer as one value: the body's member `output`, or the whole body."""
        body = self.body(Asked())
        return body.get("output", body)

    def tensors(self) -> Tensors:
        """The answer as named arrays of one row, shape (1, ...), for protocols that have nothing else.

        Raises `ValueError` if it is not an array of numbers.
        """
        array = np.asarray(self.output)
        if array.dtype.kind not in "fiub":
            raise ValueError("the answer is not an array of numbers")
        return {"output": array[None]}

    def picture(self) -> bytes:
        """The answer as an image file, for a folder of results; empty if it is none."""
        return b""

    def returned(self) -> Any:
        """The answer as a caller in Python gets it."""
        return self

    def differs(self, expected: Expected) -> str | None:
        """The first difference from what is expected: "class_id is 'a' where 'b' is expected". `None` without any."""
        if odd := foreign(expected, self):
            return odd
        if "output" not in expected:
            return None
        found = msgspec.json.decode(msgspec.json.encode(self.output))
        return json_values.differs(expected["output"], found, "output")

    def readable(self) -> dict[str, Any]:
        """The parts that are worth storing beside a golden sample for people to read.

        Mostly none, because the outputs are stored there anyway.
        """
        return {}


def foreign(expected: Expected, answer: Answer) -> str | None:
    """The sentence about an expected part that this kind of answer does not have; `None` if it has them all."""
    odd = next((name for name in expected if name not in answer.PARTS), None)
    return odd and f"the answer is {answer.KIND}, and has no {odd}"
