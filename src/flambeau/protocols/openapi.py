"""The OpenAPI 3.1 document of a running service: its own models, its own limits, every status with its codes.

Bodies and parameters come from `flambeau.protocols.parameters`, which also validates requests; statuses from
`flambeau.protocols.errors`, and operations from the table of routes.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any

import msgspec

from flambeau.errors import Code, RequestError
from flambeau.protocols import kserve_openapi, model_views, schemas
from flambeau.protocols.errors import STATUS
from flambeau.protocols.messages import REQUEST_ID, HttpAnswer, HttpRequest
from flambeau.protocols.model_sentences import about
from flambeau.protocols.parameters import Number, WordChoice, choices_of, numbers_of
from flambeau.protocols.routes import OPEN, Operation, Route, RouteTable
from flambeau.serving.model import Model
from flambeau.serving.service import Service
from flambeau.types import ModelState
from flambeau.version import VERSION

Document = dict[str, Any]

_NOT_OF_PREDICTIONS: frozenset[Code] = frozenset({"not_found", "not_implemented", "method_not_allowed"})
_REASONS = {
    400: "The request is malformed, or the model rejects the input.",
    401: "The request has no token, or one that is not known.",
    403: "The token lacks the scope, or the request comes from a page of another site.",
    404: "There is no such model or version.",
    408: "The request did not arrive in time.",
    413: "The request is larger than the service takes.",
    415: "The type or encoding of the body is not supported.",
    422: "The input is broken, or crashes the model.",
    429: "Too many requests: try again after `Retry-After`.",
    500: "The model or the server failed.",
    503: "Unavailable for now: try again after `Retry-After`.",
    504: "The answer was not ready in time.",
    507: "The model ran out of memory.",
}


def document(service: Service, table: Iterable[Route], *, tokens: bool) -> Document:
    """The document of a service as it is now, with every route that has a description. `tokens`: some require one."""
    paths: Document = {}
    for route, operation in _operations(service, [route for route in table if route.describe is not None]):
        assert route.describe is not None
        described = route.describe(operation)
        if tokens and route.scope not in OPEN:
            described["security"] = [{"token": []}]
        paths.setdefault(operation.path, {})[route.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Flambeau",
            "version": VERSION,
            "summary": "Predictions of: " + ", ".join(dict.fromkeys(model.name for model in service.models())),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "./"}],
        "tags": [
            {"name": "predictions"},
            {"name": "models"},
            {"name": "v2", "description": "The Open Inference Protocol, as KServe and Triton have it."},
            {"name": "v1", "description": "KServe's first protocol."},
            {"name": "torchserve", "description": "TorchServe's inference API."},
            {"name": "operations", "description": "For operators and their tools."},
        ],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": schemas.ERROR, "Readiness": _READINESS, **_VIEWS, **kserve_openapi.COMPONENTS},
            "parameters": {"RequestId": _REQUEST_ID},
            "headers": _HEADERS,
        },
    }


def _operations(service: Service, routes: list[Route]) -> Iterator[tuple[Route, Operation]]:
    """The operations of the routes. A route `by_model` has one for each model; they are grouped by model."""
    for by_model, several in groupby(routes, key=lambda route: route.by_model):
        group = list(several)
        for model in service.models() if by_model else [service.shown()]:
            for route in group:
                operation = _operation(service, model, route)
                if operation is not None:
                    yield route, operation


def _operation(service: Service, model: Model | None, route: Route) -> Operation | None:
    """The operation of a route; `None` for that of a model where its default version is not loaded."""
    path = route.path
    if not route.by_model:
        about_a_model = route.describe is prediction
        usable = model is not None and service.is_default(model)
        return None if about_a_model and not usable else Operation(path, model, "the default model", service.settings)
    assert model is not None
    which = f"{model.name}, version {model.version}"
    if "{version}" not in path:
        try:
            which, model = f"{model.name}, its default version", service.get(model.name)
        except RequestError:
            return None
    path = path.replace("{model}", model.name).replace("{version}", model.version)
    return Operation(path, model, which, service.settings)


def route(table: Callable[[], RouteTable], *, tokens: bool) -> Route:
    """The route of the document about that table, which includes this route."""

    def answer(service: Service, request: HttpRequest) -> HttpAnswer:
        return HttpAnswer(200, msgspec.json.encode(document(service, table(), tokens=tokens)))

    return Route("GET", "/openapi.json", "public", answer, describe=_this_document)


def prediction(operation: Operation) -> Document:
    """A prediction route of the native protocol."""
    model, settings = operation.model, operation.settings
    assert model is not None  # of a prediction there is one
    named: Document = {
        name: {"$ref": f"#/components/headers/{name}"}
        for name in ("X-Request-ID", "Server-Timing", "X-Nonfinite-Outputs")
    }
    content: Document = {"application/json": {"schema": schemas.answer(model)}}
    content |= {media_type: {} for media_type in model.does.media_types}  # bytes
    answered = {"description": model.does.told, "headers": named, "content": content}
    return {
        "operationId": operation.path[1:],
        "tags": ["predictions"],
        "summary": f"A prediction of {operation.which}",
        "description": (
            f"{about(model)} At most {settings.max_body_bytes} bytes and {settings.max_items} items, "
            f"answered within {settings.deadline:g} seconds."
        ),
        "parameters": [
            *(_parameter(number) for number in numbers_of(model.task)),
            *(_words(choice) for choice in choices_of(model.task)),
            {"$ref": "#/components/parameters/RequestId"},
        ],
        "requestBody": {"required": True, "content": schemas.request_bodies(model)},
        "responses": {"200": answered, **_refusals()},
    }


def _parameter(number: Number) -> Document:
    return {
        "name": number.name,
        "in": number.place,
        "description": number.meaning,
        "schema": {
            "type": "integer" if number.whole else "number",
            "minimum": number.least,
            "maximum": number.most,
        },
        "example": number.example,
    }


def _words(choice: WordChoice) -> Document:
    return {
        "name": choice.name,
        "in": "query",
        "description": choice.meaning,
        "schema": {"type": "string", "enum": list(choice.words)},
        "example": choice.words[0],
    }


def _refusals() -> Document:
    """Every status that a prediction can fail with, and its codes."""
    found: Document = {}
    for status in sorted({STATUS[code] for code in STATUS if code not in _NOT_OF_PREDICTIONS}):
        codes = sorted(code for code, its in STATUS.items() if its == status and code not in _NOT_OF_PREDICTIONS)
        names = ["X-Request-ID", "Server-Timing", *(["Retry-After"] if status == 503 else [])]
        exact = {"properties": {"code": {"enum": codes}}}
        found[str(status)] = {
            "description": f"{_REASONS.get(status, 'Refused.')} Code: {', '.join(codes)}.",
            "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names},
            "content": {"application/json": {"schema": {"allOf": [{"$ref": "#/components/schemas/Error"}, exact]}}},
        }
    return found


_REFUSED: Document = {
    "description": "Refused; `code` says why.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}


def _get(identity: str, summary: str, responses: Document) -> Document:
    return {
        "operationId": identity,
        "tags": ["operations"],
        "summary": summary,
        "parameters": [{"$ref": "#/components/parameters/RequestId"}],
        "responses": {**responses, "default": _REFUSED},
    }


def _json(schema: Document, meaning: str) -> Document:
    return {"description": meaning, "content": {"application/json": {"schema": schema}}}


def live(_: Operation) -> Document:
    """`GET /livez`."""
    schema = {
        "type": "object", "required": ["status"], "properties": {"status": {"const": "live"}},
        "additionalProperties": False,
    }  # fmt: skip
    return _get("livez", "Whether the process is live", {"200": _json(schema, "The process is live.")})


def ready(_: Operation) -> Document:
    """`GET /readyz`."""
    schema = {"$ref": "#/components/schemas/Readiness"}
    answers = {
        "200": _json(schema, "Every model can."),
        "503": _json(schema, "A model cannot, or the service is stopping."),
    }
    return _get("readyz", "Whether every model can answer", answers)


def metrics(_: Operation) -> Document:
    """`GET /metrics`."""
    text = {"description": "Prometheus' text format, version 0.0.4.", "content": {"text/plain": {}}}
    return _get("metrics", "The metrics", {"200": text})


def models(_: Operation) -> Document:
    """`GET /models`."""
    return _get("models", "Every model, its versions and their states", {"200": _view("ModelList", "They.")})


def model(_: Operation) -> Document:
    """`GET /models/{model}`."""
    return _about_model("model", "A model in full", ("model",), {"200": _view("ModelDetail", "It.")})


def model_version(_: Operation) -> Document:
    """`GET /models/{model}/{version}`."""
    answers = {"200": _view("VersionDetail", "It.")}
    return _about_model("model_version", "A version of a model in full", ("model", "version"), answers)


def model_shadow(_: Operation) -> Document:
    """`GET /models/{model}/shadow`."""
    answers = {"200": _view("ShadowView", "It.")}
    return _about_model("shadow", "How a model's shadow compares with what answers", ("model",), answers)


def model_load(_: Operation) -> Document:
    """`POST /models/{model}/versions/{version}/load`."""
    return _about_model("load", "Load a version; the newest answers by default", ("model", "version"), _CHANGED)


def model_unload(_: Operation) -> Document:
    """`POST /models/{model}/versions/{version}/unload`."""
    return _about_model("unload", "Let go of a version, once it has answered", ("model", "version"), _CHANGED)


def model_change(_: Operation) -> Document:
    """`PUT /models/{model}`."""
    described = _about_model("set", "Set the default version and the aliases", ("model",), _CHANGED)
    change = {
        "type": "object",
        "properties": {
            "default_version": {"type": ["string", "null"]},
            "aliases": {"type": "object", "additionalProperties": {"type": "string"}},
            "traffic": {"type": ["object", "null"], "additionalProperties": {"type": "number", "minimum": 0}},
            "shadow": {"type": ["string", "null"]},
            "sticky_header": {"type": ["string", "null"]},
            "max_batch_size": {"type": ["integer", "null"], "minimum": 1},
            "max_queue_size": {"type": ["integer", "null"], "minimum": 1},
            "replicas": {"type": ["integer", "null"], "minimum": 1},
        },
        "additionalProperties": False,
    }
    described["requestBody"] = {"required": True, "content": {"application/json": {"schema": change}}}
    return described


def model_add(_: Operation) -> Document:
    """`POST /models`."""
    added = {"201": _view("ModelSummary", "Added"), "default": {"$ref": "#/components/responses/Error"}}
    described = _about_model("add", "Add a version to the repository", (), added)
    addition = {
        "type": "object",
        "properties": {name: {"type": "string"} for name in ("model", "version", "source")}
        | {"load": {"type": "boolean"}},
        "required": ["model", "version", "source"],
        "additionalProperties": False,
    }
    described["parameters"] += [
        {"name": name, "in": "query", "schema": {"type": kind}, "description": "With a bundle as the body."}
        for name, kind in (("model", "string"), ("version", "string"), ("load", "boolean"))
    ]
    archive = {"type": "string", "format": "binary"}
    described["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": addition}, "application/x-tar": {"schema": archive}},
    }
    return described


def _about_model(identity: str, summary: str, names: tuple[str, ...], responses: Document) -> Document:
    described = _get(identity, summary, responses)
    described["tags"] = ["models"]
    described["parameters"] += [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
    ]
    return described


def _view(name: str, meaning: str) -> Document:
    return _json({"$ref": f"#/components/schemas/{name}"}, meaning)


_CHANGED: Document = {"200": _view("ModelSummary", "The model, as it is then.")}
_, _VIEWS = msgspec.json.schema_components(
    [model_views.ModelList, model_views.ModelDetail, model_views.VersionDetail, model_views.ShadowView],
    ref_template="#/components/schemas/{name}",
)


def _this_document(_: Operation) -> Document:
    return _get("openapi", "This document", {"200": _json({"type": "object"}, "The document.")})


_READINESS: Document = {
    "type": "object",
    "required": ["status", "models"],
    "properties": {
        "status": {"enum": ["ready", "degraded", "not ready", "draining"]},
        "models": {"type": "object", "additionalProperties": {"enum": [*ModelState]}},
        "fronts": {
            "type": "object",
            "description": "Where there are several: how many are ready, and of how many.",
            "required": ["ready", "of"],
            "properties": {"ready": {"type": "integer"}, "of": {"type": "integer"}},
        },
    },
    "additionalProperties": False,
}

_REQUEST_ID: Document = {
    "name": "X-Request-ID",
    "in": "header",
    "description": "An id for this request in its answer, in errors and in the log. An invalid one is replaced.",
    "schema": {"type": "string"},
    "example": "shop-17",
}

_HEADERS: Document = {
    "X-Request-ID": {
        "description": "The id of the request.", "required": True,
        "schema": {"type": "string", "pattern": f"^{REQUEST_ID.pattern}$"},
    },
    "Server-Timing": {
        "description": "Milliseconds in each stage that was reached, and in total since receipt.",
        "schema": {"type": "string"},
    },
    "X-Nonfinite-Outputs": {
        "description": "How many numbers of the answer were NaN or infinite, if any.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 0}},
}  # fmt: skip
