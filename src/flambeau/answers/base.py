"""What every answer can do, how it may be asked for, and what golden samples insist on."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import UNSET

PartName = Literal["file", "image"]
"""The name of the part that carried an item, which decides the shape of a classification's body."""

Schema = dict[str, Any]
"""A JSON Schema (2020-12)."""


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


class Expected(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The parts of an answer that are insisted on. Each task has its own; `PARTS` of its answer names them.

    Of a classification: its best class, and the least probability of that. Of several labels: which stand at the
    threshold or above, and the least score of those. Of an embedding: its numbers. `output` is the JSON value of any
    other answer; left out, it is `UNSET`, for null is a value too.
    """

    class_index: int | None = None
    class_id: str | None = None
    class_name: str | None = None
    min_probability: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    labels: tuple[str, ...] | None = None
    min_score: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    embedding: tuple[float, ...] | None = None
    output: Any = UNSET


class Answer(Protocol):
    """The answer to one item. Those that travel between processes are structs, and travel as they are."""

    @property
    def nonfinite(self) -> int:
        """How many of its numbers are NaN or infinite. They are `null` in JSON, which has no word for them."""
        ...

    @property
    def size(self) -> int:
        """Bytes that it takes on its way between processes, about."""
        ...

    def body(self, asked: Asked) -> dict[str, Any]:
        """The native JSON."""
        ...

    def row(self, *, top_k: int | None, probabilities: bool) -> dict[str, Any]:
        """The cells of `flambeau predict`, by column."""
        ...

    def returned(self) -> Any:
        """What a caller in Python is given."""
        ...

    def differs(self, expected: Expected) -> str | None:
        """The first thing insisted on and not so: "class_id is 'a' where 'b' is expected". `None` if all is so."""
        ...

    def readable(self) -> Expected:
        """What a person can read of it, to keep beside a golden sample."""
        ...


def insisted(expected: Expected) -> tuple[str, ...]:
    """The parts that an expectation insists on, by name."""
    silent = msgspec.structs.asdict(Expected())
    return tuple(name for name in silent if getattr(expected, name) is not silent[name])


def foreign(expected: Expected, parts: tuple[str, ...], *, kind: str) -> str | None:
    """The sentence about a part that an answer of this kind does not have, or `None` where it has all of them."""
    odd = next((name for name in insisted(expected) if name not in parts), None)
    return odd and f"the answer is {kind}, and has no {odd}"


def record(
    required: dict[str, Schema], *, optional: dict[str, Schema] | None = None, title: str = "", open_: bool = False
) -> Schema:
    """The schema of an object. `open_`: it may have other members too."""
    found: Schema = {"title": title} if title else {}
    found |= {"type": "object", "required": list(required), "properties": required | (optional or {})}
    return found if open_ else found | {"additionalProperties": False}


def ranking(labels: tuple[Label, ...] | None, score: Schema) -> Schema:
    """The schema of `predictions`, the best classes."""
    identity, name = named(labels)
    each = record({"class_id": identity, "class_name": name, "probability": score})
    return {"type": "array", "items": each, "description": "Ranked, best first, when `top_k` was asked for."}


def named(labels: tuple[Label, ...] | None) -> tuple[Schema, Schema]:
    """The schemas of a class's id and name, with the first few as examples."""
    first = labels[:3] if labels else (Label("0", "0"),)
    return (
        {"type": "string", "examples": [label.id for label in first]},
        {"type": "string", "examples": [label.name for label in first]},
    )
