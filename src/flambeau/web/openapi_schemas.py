"""What models take and give as JSON Schema (2020-12), from their bundles and the contract that validates requests.

It knows no route and no status; `flambeau.web.openapi` puts these into a document.
"""

import math
from typing import Any, get_args

import numpy as np

from flambeau.errors import Code
from flambeau.model import Model
from flambeau.pipelines.tensor import MAX_ROWS
from flambeau.types import Kind, TensorSpec
from flambeau.web.contract import FORM_PARTS, MEDIA_TYPES, TAKEN, Reading
from flambeau.web.http import REQUEST_ID

Schema = dict[str, Any]

_WHOLE_FILE: Schema = {"type": "string", "format": "binary", "minLength": 1}
_PART: Schema = {"contentMediaType": "application/octet-stream"}  # no type: it is bytes, whatever they say

ERROR: Schema = {
    "type": "object",
    "title": "Error",
    "required": ["error", "code", "retryable", "request_id"],
    "properties": {
        "error": {"type": "string", "description": "What is wrong, in a sentence for people."},
        "code": {"type": "string", "enum": sorted(get_args(Code)), "description": "The reason: a closed set."},
        "retryable": {"type": "boolean", "description": "Whether the same request may succeed if it is sent again."},
        "request_id": {"type": "string", "pattern": f"^{REQUEST_ID.pattern}$", "description": "What to ask about."},
        "hint": {"type": "string", "description": "The remedy, where there is one."},
    },
    "additionalProperties": False,
}

_PROBABILITY: Schema = {"type": "number", "minimum": 0, "maximum": 1}


def request_bodies(model: Model) -> dict[str, Schema]:
    """What a body to that model may be, by content type."""
    kind = model.kind
    schemas: dict[Reading, Schema] = {"form": _form(kind), "json": _json(model), "raw": _WHOLE_FILE}
    return {media_type: {"schema": schemas[reading]} for reading in TAKEN[kind] for media_type in MEDIA_TYPES[reading]}


def answer(model: Model) -> Schema:
    """What that model answers with status 200."""
    manifest = model.bundle.manifest
    if model.kind == "tensor":
        numbers: Schema = {"type": ["number", "null"], "description": "null stands for what JSON has no number for."}
        return _object({"output": _one_or_several(manifest.outputs[0].shape, numbers)})
    if model.kind == "python":
        return {"anyOf": [_object({"output": {}}), _several(_object({"output": {}}))]}
    classes = manifest.outputs[0].shape[0]
    by_name, by_index = _by_name(model), _by_index(classes)
    return {"anyOf": [by_name, by_index, _several(by_name, by_index)]}


def _form(kind: Kind) -> Schema:
    what = "An image file." if kind == "image" else "A file."
    answered = {"file": "Answered by the class's name.", "image": "Answered by the class's index."}
    parts = {
        name: _PART | {"description": f"{what} {answered[name]}" if kind == "image" else what} for name in FORM_PARTS
    }
    return {
        "type": "object",
        "properties": parts,
        "minProperties": 1,
        "description": (
            f"At least one part {' or '.join(FORM_PARTS)}; others are passed over. "
            "Several are answered in the order sent, and a bad one among them fails alone."
        ),
    }


def _json(model: Model) -> Schema:
    if model.kind == "tensor":
        spec = model.bundle.manifest.inputs[0]
        taken = _one_or_several(spec.shape, _number(spec))
        taken["description"] = f"{spec.dtype}, one row of shape {list(spec.shape)} or at most {MAX_ROWS} of them."
        return _object({"input": taken}, open_=True)
    return _object({"input": {"description": "Whatever the model's own code takes."}}, open_=True)


def _number(spec: TensorSpec) -> Schema:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "b":
        return {"type": "boolean"}
    if dtype.kind == "f":
        return {"type": "number"} | _bounds(np.finfo(dtype))
    limits = np.iinfo(dtype)
    return {"type": "integer", "minimum": int(limits.min), "maximum": int(limits.max)}


def _bounds(numbers: "np.finfo[Any]") -> Schema:
    """From where on a number is rounded to infinity; of float64 whatever JSON can be read into is taken."""
    if numbers.bits == 64:
        return {}
    most = float(numbers.max) + 2.0 ** (int(numbers.maxexp) - int(numbers.nmant) - 2)
    return {"exclusiveMinimum": -most, "exclusiveMaximum": most}


def _one_or_several(shape: tuple[int, ...], number: Schema) -> Schema:
    """A row, rows, or a number where a row is a single one."""
    row = number
    for size in reversed(shape):
        row = {"type": "array", "items": row, "minItems": size, "maxItems": size}
    several = {"type": "array", "items": row, "minItems": 1, "maxItems": MAX_ROWS}
    alone = [number] if shape and math.prod(shape) == 1 else []
    return {"anyOf": [row, several, *alone]}


def _by_name(model: Model) -> Schema:
    labels = model.bundle.labels()
    shown = [label.name for label in labels[:3]] if labels else ["0"]
    identity: Schema = {"type": "string", "examples": [label.id for label in labels[:3]] if labels else ["0"]}
    name: Schema = {"type": "string", "examples": shown}
    ranked = _object({"class_id": identity, "class_name": name, "probability": _PROBABILITY})
    return _object(
        {"class_id": _or_null(identity), "class_name": _or_null(name)}, optional=_abstention(ranked), title="ByName"
    )


def _by_index(classes: int) -> Schema:
    identity: Schema = {"type": "string"}
    ranked = _object({"class_id": identity, "class_name": identity, "probability": _PROBABILITY})
    vector: Schema = {"type": "array", "items": _PROBABILITY, "minItems": classes, "maxItems": classes}
    index: Schema = {"type": ["integer", "null"], "minimum": 0, "maximum": classes - 1}
    return _object({"class_index": index, "probabilities": vector}, optional=_abstention(ranked), title="ByIndex")


def _abstention(ranked: Schema) -> dict[str, Schema]:
    return {
        "reason": {"type": "string", "description": "Why nothing was recognised; the class is null then."},
        "predictions": {"type": "array", "items": ranked, "description": "Ranked, when `top_k` was asked for."},
    }


def _several(*items: Schema) -> Schema:
    error: Schema = {"$ref": "#/components/schemas/Error"}
    whole = _object({"predictions": {"type": "array", "items": {"anyOf": [*items, error]}}})
    return whole | {"description": "The answers to several parts, in the order sent."}


def _or_null(schema: Schema) -> Schema:
    return schema | {"type": [schema["type"], "null"]}


def _object(
    required: dict[str, Schema], *, optional: dict[str, Schema] | None = None, title: str = "", open_: bool = False
) -> Schema:
    found: Schema = {"title": title} if title else {}
    found |= {"type": "object", "required": list(required), "properties": required | (optional or {})}
    return found if open_ else found | {"additionalProperties": False}
