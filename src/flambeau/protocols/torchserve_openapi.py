"""TorchServe's predictions in the OpenAPI document: what is sent, and what is answered, for each model.

Management has no entries: it is not at the address that the document describes.
"""

from typing import Any

from flambeau.protocols import examples
from flambeau.protocols.routes import Operation
from flambeau.tasks.classification import Classification
from flambeau.tasks.handler import Handled
from flambeau.tasks.multi_label import MultiLabel
from flambeau.tasks.object_detection import ObjectDetection
from flambeau.types import Answer

Described = dict[str, Any]

_BYTES: Described = {}  # of a type that is not JSON
_PROBABILITIES: Described = {
    "type": "object",
    "maxProperties": 5,
    "additionalProperties": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
    "description": "The best five classes by name, best first.",
}
_BOXES: Described = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["score"],
        "properties": {"score": {"type": ["number", "null"], "minimum": 0, "maximum": 1}},
        "additionalProperties": {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4},
    },
    "description": "Each object's box by the name of its class: xmin, ymin, xmax, ymax in pixels; and its score.",
}
_ANSWERS: dict[type[Answer], Described] = {
    Classification: _PROBABILITIES,
    MultiLabel: _PROBABILITIES,
    ObjectDetection: _BOXES,
}
"""The forms of answers as TorchServe's own handlers give them; one with masks or keypoints is an object detector's."""
_REFUSED: Described = {
    "description": "Refused, in the form of TorchServe's errors.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["code", "type", "message"],
                "properties": {
                    "code": {"type": "integer", "minimum": 400, "maximum": 599},
                    "type": {"type": "string"},
                    "message": {"type": "string"},
                },
            }
        }
    },
}


def schema_of(answer: type[Answer]) -> Described:
    """The schema of an answer of this type; empty for one that has our own form there."""
    return next((schema for kind, schema in _ANSWERS.items() if issubclass(answer, kind)), {})


def prediction(operation: Operation) -> Described:
    """`POST` or `PUT /predictions/{model}`."""
    model = operation.model
    assert model is not None  # of a prediction there is one
    form = {"type": "object", "required": ["data"], "properties": {"data": {}}}
    bodies: Described = {
        "application/json": {"schema": {}, **examples.native(model)},
        "multipart/form-data": {"schema": form},
    }
    bodies["image/*" if model.kind == "image" else "application/octet-stream"] = _BYTES
    answers: Described = {"application/json": {"schema": schema_of(model.does.answer)}}
    if model.does.answer is Handled:
        answers["*/*"] = _BYTES  # of whatever type the handler says
    return {
        "tags": ["torchserve"],
        "summary": f"A prediction of {operation.which}, as TorchServe answers it",
        "description": "The file itself, a form with it as the field `data`, or JSON.",
        "requestBody": {"required": True, "content": bodies},
        "responses": {"200": {"description": model.does.told, "content": answers}, "default": _REFUSED},
    }
