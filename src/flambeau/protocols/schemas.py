"""What models take and give as JSON Schema (2020-12), from their bundles and the contract that validates requests.

It knows no route and no status; `flambeau.protocols.openapi` puts these into a document.
"""

from typing import Any, get_args

import numpy as np

from flambeau.answers.schemas import Schema, one_or_several, record
from flambeau.errors import Code
from flambeau.protocols.messages import REQUEST_ID
from flambeau.protocols.parameters import FORM_PARTS, MEDIA_TYPES, TAKEN, BodyForm
from flambeau.serving.model import Model
from flambeau.tasks import NetworkFacts
from flambeau.tasks.tensor import MAX_ROWS
from flambeau.types import TensorSpec

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


def request_bodies(model: Model) -> dict[str, Schema]:
    """What a body to that model may be, by content type."""
    kind = model.kind
    schemas: dict[BodyForm, Schema] = {"form": _form(model), "json": _json(model), "raw": _WHOLE_FILE}
    return {media_type: {"schema": schemas[reading]} for reading in TAKEN[kind] for media_type in MEDIA_TYPES[reading]}


def answer(model: Model) -> Schema:
    """What that model answers with status 200."""
    bundle = model.bundle
    items = model.does.schemas(
        NetworkFacts(
            inputs=bundle.manifest.inputs, outputs=bundle.manifest.outputs,
            activation=bundle.manifest.activated_by, labels=bundle.labels(),
        )
    )  # fmt: skip
    return {"anyOf": [*items, _several(*items)]} if "form" in TAKEN[model.kind] else items[0]


def _form(model: Model) -> Schema:
    what = "An image file." if model.kind == "image" else "A file."
    answered = model.does.parts
    parts = {
        name: _PART | {"description": f"{what} {answered[name]}" if name in answered else what} for name in FORM_PARTS
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
        specs = model.bundle.manifest.inputs
        if len(specs) == 1:
            return record({"input": _rows(specs[0])}, open_=True)
        named = record({spec.name: _rows(spec) for spec in specs})
        named["description"] = "Every input by its name: one row of each, or of each as many rows."
        return record({"input": named}, open_=True)
    return record({"input": {"description": "Whatever the model's own code takes."}}, open_=True)


def _rows(spec: TensorSpec) -> Schema:
    """One row of an input, or several."""
    told = f"{spec.dtype}, one row of shape [{', '.join(spec.sizes)}] or at most {MAX_ROWS} of them."
    taken = one_or_several(spec.shape, _number(spec), most=MAX_ROWS, least=spec.least)
    return taken | {"description": told}


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


def _several(*items: Schema) -> Schema:
    error: Schema = {"$ref": "#/components/schemas/Error"}
    whole = record({"predictions": {"type": "array", "items": {"anyOf": [*items, error]}}})
    return whole | {"description": "The answers to several parts, in the order sent."}
