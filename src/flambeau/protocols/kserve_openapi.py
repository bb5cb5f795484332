"""The operations of KServe's protocols, v2 and v1, in the OpenAPI document."""

from typing import Any

import msgspec

from flambeau.answers.schemas import Schema as Document
from flambeau.items import FREE
from flambeau.protocols import examples, v2_inference, v2_models, v2_rest
from flambeau.protocols.errors import STATUS
from flambeau.protocols.routes import Operation
from flambeau.protocols.v2_datatypes import datatype_of

_ERROR: Document = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string", "description": "What is wrong, in a sentence."}},
}
_STATUSES = sorted({v2_rest.status_of(code) for code in STATUS} - {405, 501})
_, _SCHEMAS = msgspec.json.schema_components(
    [v2_models.ServerMetadata, v2_models.ModelMetadata], ref_template="#/components/schemas/{name}"
)
COMPONENTS: Document = _SCHEMAS | {"V2Error": _ERROR}
"""The schemas that the operations refer to."""

_REFUSED: Document = {
    "description": "Refused; `error` says why.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/V2Error"}}},
}


def _get(identity: str, summary: str, schema: Any, *names: str, unready: bool = False) -> Document:
    content = {"application/json": {"schema": schema}}
    responses: Document = {"200": {"description": "It.", "content": content}}
    if unready:
        responses["503"] = {"description": "Not ready.", "content": content}
    return {
        "operationId": identity,
        "tags": ["v2"],
        "summary": summary,
        "parameters": [
            {"$ref": "#/components/parameters/RequestId"},
            *({"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names),
        ],
        "responses": {**responses, "default": _REFUSED},
    }


def _record(**properties: Any) -> Document:
    return {"type": "object", "required": list(properties), "properties": properties}


def live(_: Operation) -> Document:
    """`GET /v2/health/live`."""
    return _get("v2_live", "Whether the process is live", _record(live={"const": True}))


def ready(_: Operation) -> Document:
    """`GET /v2/health/ready`."""
    return _get("v2_ready", "Whether every model can answer", _record(ready={"type": "boolean"}), unready=True)


def server(_: Operation) -> Document:
    """`GET /v2`."""
    return _get("v2", "The server and its extensions", {"$ref": "#/components/schemas/ServerMetadata"})


def listed(_: Operation) -> Document:
    """`GET /v2/models`."""
    names = _record(models={"type": "array", "items": {"type": "string"}})
    return _get("v2_models", "The names of all models", names)


def _names(operation: Operation) -> tuple[str, ...]:
    return ("model", "version") if "{version}" in operation.path else ("model",)


def model_ready(operation: Operation) -> Document:
    """`GET /v2/models/{model}/ready`."""
    names = _names(operation)
    schema = _record(name={"type": "string"}, ready={"type": "boolean"})
    return _get(f"v2_{'_'.join(names)}_ready", "Whether a model can answer", schema, *names, unready=True)


def metadata(operation: Operation) -> Document:
    """`GET /v2/models/{model}`."""
    names = _names(operation)
    schema = {"$ref": "#/components/schemas/ModelMetadata"}
    return _get(f"v2_{'_'.join(names)}", "A model's inputs and outputs", schema, *names)


def infer(operation: Operation) -> Document:
    """`POST /v2/models/{model}/infer`."""
    model = operation.model
    assert model is not None  # there is one for each model
    raw = [(spec.name, datatype_of(spec.dtype), spec.shape) for spec in v2_inference.raw_inputs(model)]
    tensors: list[Document] = [_tensor(name, datatype, (FREE, *shape)) for name, datatype, shape in raw]
    whole = [_tensor(name, "BYTES", (FREE,)) for name in v2_inference.whole_inputs(model)]
    several = {"type": "array", "items": {"anyOf": tensors}, "minItems": len(tensors), "maxItems": len(tensors)}
    alone = [{"type": "array", "items": each, "minItems": 1, "maxItems": 1} for each in whole]
    parameters = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
    request = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": parameters,
            "inputs": {"anyOf": [*([several] if tensors else []), *alone]},
            "outputs": {
                "type": "array", "items": {"type": "object", "required": ["name"], "properties": {
                    "name": {"type": "string"}, "parameters": parameters,
                }},
            },
        },
    }  # fmt: skip
    output = _record(
        name={"type": "string"}, datatype={"type": "string"},
        shape={"type": "array", "items": {"type": "integer", "minimum": 0}},
    )  # fmt: skip
    response = _record(
        model_name={"type": "string"}, model_version={"type": "string"}, outputs={"type": "array", "items": output}
    )
    binary: Document = {v2_rest.BINARY: {}}
    answers: Document = {
        "200": {
            "description": f"The outputs. With binary data, `{v2_rest.JSON_LENGTH}` is the length of the JSON.",
            "content": {"application/json": {"schema": response}, **binary},
        }
    }
    sent: Document = {"application/json": {"schema": request, **examples.v2(model)}, **binary}
    return {
        "operationId": operation.path[1:],
        "tags": ["v2"],
        "summary": f"Inference of {operation.which}",
        "description": (
            "The Open Inference Protocol (KServe v2), with Triton's extensions for binary tensors and classification. "
            + " ".join(v2_models.properties(model).values())
        ),
        "parameters": [{"$ref": "#/components/parameters/RequestId"}],
        "requestBody": {"required": True, "content": sent},
        "responses": answers | {str(status): _REFUSED for status in _STATUSES},
    }


def _tensor(name: str, datatype: str, shape: tuple[int, ...]) -> Document:
    sizes = [{"type": "integer", "minimum": 1} if size == FREE else {"const": size} for size in shape]
    return {
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": {"const": name},
            "datatype": {"const": datatype},
            "shape": {"type": "array", "prefixItems": sizes, "minItems": len(sizes), "maxItems": len(sizes)},
            "parameters": {"type": "object"},
            "data": {"type": "array", "description": "Flat, or nested as the shape; or binary data instead."},
        },
    }


# KServe v1


def v1_listed(_: Operation) -> Document:
    """`GET /v1/models`."""
    described = _get(
        "v1_models", "The names of all models", _record(models={"type": "array", "items": {"type": "string"}})
    )
    return described | {"tags": ["v1"]}


def v1_predict(operation: Operation) -> Document:
    """`POST /v1/models/{model}:predict`."""
    model = operation.model
    assert model is not None  # there is one for each model
    values: Document = {"type": "array", "minItems": 1}
    request = {
        "type": "object",
        "properties": {"instances": values, "inputs": {"type": ["array", "object"]}, "parameters": {"type": "object"}},
    }
    answered = {"type": "object", "properties": {"predictions": values, "outputs": {"type": ["array", "object"]}}}
    return {
        "operationId": operation.path[1:],
        "tags": ["v1"],
        "summary": f"A prediction of {operation.which} over KServe v1",
        "parameters": [{"$ref": "#/components/parameters/RequestId"}],
        "requestBody": {"required": True, "content": {"application/json": {"schema": request, **examples.v1(model)}}},
        "responses": {
            "200": {"description": "The predictions.", "content": {"application/json": {"schema": answered}}},
            **{str(status): _REFUSED for status in _STATUSES},
        },
    }
