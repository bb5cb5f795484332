"""What models take and give as JSON Schema (2020-12), from their bundles and the contract that validates requests.

It knows no route and no status; `flambeau.protocols.openapi` puts these into a document.
"""

import math
from typing import Any, get_args

import numpy as np

from flambeau.answers import Classification, Embedding, MultiLabel, Regression
from flambeau.answers.base import Schema, record
from flambeau.answers.embedding import NPY
from flambeau.errors import Code
from flambeau.pipelines.tensor import MAX_ROWS
from flambeau.protocols.messages import REQUEST_ID
from flambeau.protocols.parameters import FORM_PARTS, MEDIA_TYPES, TAKEN, BodyForm
from flambeau.serving.model import Model
from flambeau.types import PipelineKind, Task, TensorSpec

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

_UNIT: Schema = {"minimum": 0, "maximum": 1}


def request_bodies(model: Model) -> dict[str, Schema]:
    """What a body to that model may be, by content type."""
    kind = model.kind
    schemas: dict[BodyForm, Schema] = {"form": _form(kind, model.task), "json": _json(model), "raw": _WHOLE_FILE}
    return {media_type: {"schema": schemas[reading]} for reading in TAKEN[kind] for media_type in MEDIA_TYPES[reading]}


def answer(model: Model) -> Schema:
    """What that model answers with status 200."""
    manifest = model.bundle.manifest
    if model.kind == "tensor":
        numbers: Schema = {"type": ["number", "null"], "description": "null stands for what JSON has no number for."}
        return record({"output": _one_or_several(manifest.outputs[0].shape, numbers)})
    if model.kind == "python":
        return {"anyOf": [record({"output": {}}), _several(record({"output": {}}))]}
    items = _image_answers(model)
    return {"anyOf": [*items, _several(*items)]}


def told(model: Model) -> str:
    """The answer in a sentence."""
    return _TOLD[model.task]


_TOLD: dict[Task, str] = {
    "classification": "The best class: by name for the part `file` or a raw body, by index for the part `image`.",
    "multi-label": "The classes whose score reaches the threshold, and the scores of all.",
    "regression": "The number that the network gives, or nested lists of its numbers.",
    "embedding": (
        f"The vector. With `Accept: {NPY}` it is an array of numpy, float32: of shape (dimensions,) for one item, "
        "(items, dimensions) for several; then one bad item fails the request."
    ),
    "tensor": "The output, nested as the input was.",
    "python": "Whatever the model's own code answers.",
}


def _image_answers(model: Model) -> tuple[Schema, ...]:
    """The schemas of one image's answer."""
    manifest = model.bundle.manifest
    shape = manifest.outputs[0].shape
    if model.task == "regression":
        return Regression.schemas(shape)
    [count] = shape
    if model.task == "embedding":
        return Embedding.schemas(count)
    score: Schema = {"type": ["number", "null"]} | ({} if manifest.activated_by.function == "none" else _UNIT)
    made = MultiLabel if model.task == "multi-label" else Classification
    return made.schemas(count, model.bundle.labels(), score)


def _form(kind: PipelineKind, task: Task) -> Schema:
    what = "An image file." if kind == "image" else "A file."
    answered = {"file": "Answered by the class's name.", "image": "Answered by the class's index."}
    parts = {
        name: _PART | {"description": f"{what} {answered[name]}" if task == "classification" else what}
        for name in FORM_PARTS
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


_BASE64: Schema = {
    "type": "string",
    "minLength": 4,
    "contentEncoding": "base64",
    "description": "The file, or a data URL.",
}


def _json(model: Model) -> Schema:
    if model.kind == "image":
        return record({"image": _BASE64}, open_=True) | {"description": "An image file in base64."}
    if model.kind == "tensor":
        spec = model.bundle.manifest.inputs[0]
        taken = _one_or_several(spec.shape, _number(spec))
        taken["description"] = f"{spec.dtype}, one row of shape {list(spec.shape)} or at most {MAX_ROWS} of them."
        return record({"input": taken}, open_=True)
    return record({"input": {"description": "Whatever the model's own code takes."}}, open_=True)


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


def _several(*items: Schema) -> Schema:
    error: Schema = {"$ref": "#/components/schemas/Error"}
    whole = record({"predictions": {"type": "array", "items": {"anyOf": [*items, error]}}})
    return whole | {"description": "The answers to several parts, in the order sent."}
