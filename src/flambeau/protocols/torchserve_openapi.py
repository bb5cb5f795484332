"""TorchServe's predictions in the OpenAPI document: what is sent, and what is answered, for each model.

Management has no entries: it is not at the address that the document describes.
"""

from typing import Any

from flambeau.protocols.routes import Operation
from flambeau.tasks.handler import Handled

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
_ANSWERS = {"classification": _PROBABILITIES, "multi-label": _PROBABILITIES, "object-detection": _BOXES}
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


def prediction(operation: Operation) -> Described:
    """`POST` or `PUT /predictions/{model}`."""
    model = operation.model
    assert model is not None  # of a prediction there is one
    form = {"type": "object", "required": ["data"], "properties": {"data": {}}}
    bodies: Described = {"application/json": {"schema": {}}, "multipart/form-data": {"schema": form}}
    bodies["image/*" if model.kind == "image" else "application/octet-stream"] = _BYTES
    answers: Described = {"application/json": {"schema": _ANSWERS.get(model.task, {})}}
    if model.does.answer is Handled:
        answers["*/*"] = _BYTES  # of whatever type the handler says
    return {
        "tags": ["torchserve"],
        "summary": f"A prediction of {operation.which}, as TorchServe answers it",
        "description": "The file itself, a form with it as the field `data`, or JSON.",
        "requestBody": {"required": True, "content": bodies},
        "responses": {"200": {"description": model.does.told, "content": answers}, "default": _REFUSED},
    }
