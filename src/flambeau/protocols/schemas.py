"""JSON Schema (2020-12) of a model's requests and answers, from its bundle and the table that validates requests.

Routes and statuses are left to `flambeau.protocols.openapi`, which puts these schemas into a document.
"""

import dataclasses
from typing import Any, get_args

import numpy as np

from flambeau.answers.schemas import Schema, one_or_several, record
from flambeau.errors import Code
from flambeau.protocols import examples
from flambeau.protocols.messages import REQUEST_ID
from flambeau.protocols.parameters import FORM_PARTS, MEDIA_TYPES, TAKEN, BodyForm
from flambeau.serving.model import Model
from flambeau.tasks.tensor import MAX_ROWS
from flambeau.types import TensorSpec

_WHOLE_FILE: Schema = {"type": "string", "format": "binary", "minLength": 1}
LONGEST_TEXT = 64 * 1024
"""The most bytes of a text, as `flambeau.pipelines.text` has it, which a front without tokenizers does not import."""

_PART: Schema = {"contentMediaType": "application/octet-stream"}  # no `type`: any bytes are accepted

ERROR: Schema = {
    "type": "object",
    "title": "Error",
    "required": ["error", "code", "retryable", "request_id"],
    "properties": {
        "error": {"type": "string", "description": "What is wrong, in a sentence for people."},
        "code": {"type": "string", "enum": sorted(get_args(Code)), "description": "The reason, from a closed set."},
        "retryable": {"type": "boolean", "description": "Whether the same request may succeed if it is sent again."},
        "request_id": {
            "type": "string",
            "pattern": f"^{REQUEST_ID.pattern}$",
            "description": "The id of the request, as in the log: quote it when you report a problem.",
        },
        "hint": {"type": "string", "description": "A remedy, if there is one."},
    },
    "additionalProperties": False,
}


def request_bodies(model: Model) -> dict[str, Schema]:
    """The schemas of request bodies to that model, by content type."""
    kind = model.kind
    schemas: dict[BodyForm, Schema] = {"form": _form(model), "json": _json(model), "raw": _WHOLE_FILE}
    found = {media_type: {"schema": schemas[reading]} for reading in TAKEN[kind] for media_type in MEDIA_TYPES[reading]}
    for media_type in MEDIA_TYPES["json"]:
        found[media_type] |= examples.native(model)
    if kind == "audio":
        found["audio/*"] = found.pop("image/*")
    return found


def answer(model: Model) -> Schema:
    """The schema of that model's answer with status 200."""
    bundle = model.bundle
    items = model.does.schemas(dataclasses.replace(bundle.manifest.facts, labels=bundle.labels()))
    several = model.kind == "text" or "form" in TAKEN[model.kind]
    return {"anyOf": [*items, _several(*items)]} if several else items[0]


def _form(model: Model) -> Schema:
    what = {"image": "An image file.", "audio": "A WAV or FLAC file."}.get(model.kind, "A file.")
    answered = model.does.parts
    parts = {
        name: _PART | {"description": f"{what} {answered[name]}" if name in answered else what} for name in FORM_PARTS
    }
    return {
        "type": "object",
        "properties": parts,
        "minProperties": 1,
        "description": (
            f"At least one part {' or '.join(FORM_PARTS)}; other parts are ignored. "
            "Several parts are answered in the order sent, and a bad one fails alone."
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
    if model.kind == "audio":
        return record({"input": _BASE64}, open_=True) | {"description": "A WAV or FLAC file in base64."}
    if model.kind == "text":
        text: Schema = {"type": "string", "minLength": 1, "maxLength": LONGEST_TEXT}
        several: Schema = {"type": "array", "items": text, "minItems": 1}
        told = "A text; or several, which are answered in the order sent, and a bad one fails alone."
        return record({"input": {"anyOf": [text, several], "description": told}}, open_=True)
    if model.kind == "tensor":
        specs = model.bundle.manifest.inputs
        if len(specs) == 1:
            return record({"input": _rows(specs[0])}, open_=True)
        named = record({spec.name: _rows(spec) for spec in specs})
        named["description"] = "Every input by name: one row of each, or the same number of rows of each."
        return record({"input": named}, open_=True)
    return record({"input": {"description": "Whatever the model's own code takes."}}, open_=True)


def _rows(spec: TensorSpec) -> Schema:
    """The schema of one row of an input, or several."""
    told = f"{spec.dtype}, one row of shape [{', '.join(spec.sizes)}] or at most {MAX_ROWS} of them."
    taken = one_or_several(spec.shape, _number(spec), most=MAX_ROWS, least=spec.least)
    return taken | {"description": told}


def _number(spec: TensorSpec) -> Schema:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "b":
        return {"type": "boolean"}
    if dtype.kind == "f":
        bounds = {"minimum": 0, "exclusiveMaximum": spec.below} if spec.below else _bounds(np.finfo(dtype))
        return {"type": ["number", "null"] if spec.missing else "number", "examples": [0.0]} | bounds
    if least := spec.below or min((size for size in spec.tables if size), default=0):
        return {"type": "integer", "examples": [0], "minimum": 0, "maximum": least - 1}
    limits = np.iinfo(dtype)
    return {"type": "integer", "examples": [0], "minimum": int(limits.min), "maximum": int(limits.max)}


def _bounds(numbers: "np.finfo[Any]") -> Schema:
    """The bounds past which a number rounds to infinity. float64 has none here: every number that parses is finite."""
    if numbers.bits == 64:
        return {}
    most = float(numbers.max) + 2.0 ** (int(numbers.maxexp) - int(numbers.nmant) - 2)
    return {"exclusiveMinimum": -most, "exclusiveMaximum": most}


def _several(*items: Schema) -> Schema:
    error: Schema = {"$ref": "#/components/schemas/Error"}
    whole = record({"predictions": {"type": "array", "items": {"anyOf": [*items, error]}}})
    return whole | {"description": "The answers to several parts, in the order sent."}
