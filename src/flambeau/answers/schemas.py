"""Building blocks for the schemas of answers, in JSON Schema 2020-12."""

from typing import Any

from flambeau.answers.activation import Activation
from flambeau.answers.base import Label
from flambeau.items import FREE

Schema = dict[str, Any]

NUMBER: Schema = {"type": ["number", "null"], "description": "null stands for NaN or an infinity."}

RANKED = "How many classes to rank, best first, under `predictions`."
"""The meaning of `?top_k=`, for every task that has it."""


def record(
    required: dict[str, Schema], *, optional: dict[str, Schema] | None = None, title: str = "", open_: bool = False
) -> Schema:
    """The schema of an object. `open_`: other members are allowed."""
    found: Schema = {"title": title} if title else {}
    found |= {"type": "object", "required": list(required), "properties": required | (optional or {})}
    return found if open_ else found | {"additionalProperties": False}


def nested(shape: tuple[int, ...], number: Schema, *, least: int = 1) -> Schema:
    """The schema of nested lists of exactly that shape; an axis with a free size has `least` elements or more.

    For an empty shape, the schema of the number itself.
    """
    row = number
    for size in reversed(shape):
        exactly = {"minItems": least} if size == FREE else {"minItems": size, "maxItems": size}
        row = {"type": "array", "items": row, **exactly}
    return row


def one_or_several(shape: tuple[int, ...], number: Schema, *, most: int, least: int = 1) -> Schema:
    """The schema of a row, of up to `most` rows, or, if a row is a single number, of that number alone."""
    row = nested(shape, number, least=least)
    several = {"type": "array", "items": row, "minItems": 1, "maxItems": most}
    alone = [number] if shape and all(size == 1 for size in shape) else []
    return {"anyOf": [row, several, *alone]}


def score_of(activation: Activation) -> Schema:
    """The schema of a class's score: a probability, unless there is no activation."""
    return {"type": ["number", "null"]} | ({} if activation.function == "none" else {"minimum": 0, "maximum": 1})


def ranking(labels: tuple[Label, ...] | None, score: Schema) -> Schema:
    """The schema of `predictions`, the best classes."""
    identity, name = named(labels)
    each = record({"class_id": identity, "class_name": name, "probability": score})
    return {"type": "array", "items": each, "description": "The ranked classes, best first, if `top_k` was given."}


def named(labels: tuple[Label, ...] | None) -> tuple[Schema, Schema]:
    """The schemas of a class's id and name, with the first few as examples."""
    first = labels[:3] if labels else (Label("0", "0"),)
    return (
        {"type": "string", "examples": [label.id for label in first]},
        {"type": "string", "examples": [label.name for label in first]},
    )
