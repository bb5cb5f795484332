"""TorchServe's inference API: predictions for every model, and its health check.

    PUT or POST /predictions/{model}[/{version}]   a body, a form with the field `data`, or JSON
    GET  /ping                                     {"status": "Healthy"}
    GET  /api-description, OPTIONS /               the OpenAPI document

A model is answered in the form of the handler that served it there: a classifier with the best five classes,
`{"tabby": 0.46, ...}`; a detector with `[{"cat": [xmin, ymin, xmax, ymax], "score": 0.9}, ...]`. A handler answers for
itself. Statuses are honest: TorchServe answers 503 to whatever went wrong in a handler.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from flambeau.answers import Asked
from flambeau.errors import Code, RequestError
from flambeau.items import HandlerCall, HandlerPart
from flambeau.pipelines import json_document
from flambeau.pipelines.text import LONGEST
from flambeau.protocols import dispatch, handler_calls, multipart, native, torchserve_openapi
from flambeau.protocols.errors import STATUS, answers_of, error_answer
from flambeau.protocols.messages import HttpAnswer, HttpRequest
from flambeau.protocols.multipart import Part
from flambeau.protocols.native import Answered
from flambeau.protocols.parameters import reading_of
from flambeau.protocols.routes import Route
from flambeau.serving.model import Model
from flambeau.serving.service import Service
from flambeau.tasks.classification import Classification
from flambeau.tasks.multi_label import MultiLabel
from flambeau.tasks.object_detection import ObjectDetection
from flambeau.types import Answer, Options, Payload

_TOP_K = 5
_FIELDS = ("data", "body")
_Field = TypeVar("_Field", HandlerPart, Part)
_FORM = 'send the file itself, or a form with it as the field "data"'

_TYPES: dict[Code, str] = {
    "bad_request": "BadRequestException",
    "model_not_found": "ModelNotFoundException",
    "version_not_found": "ModelVersionNotFoundException",
    "not_found": "ResourceNotFoundException",
    "method_not_allowed": "MethodNotAllowedException",
    "version_exists": "ConflictStatusException",
    "unauthorized": "InvalidKeyException",
    "forbidden": "InvalidModelVersionException",
    "out_of_memory": "OutOfMemoryError",
}


async def answer(service: Service, model: Model, request: HttpRequest) -> Answered:
    """Answer a request to `model`, as `dispatch.prediction` takes it. Raises `RequestError`."""
    if model.task == handler_calls.TASK:
        return await handler_calls.answer(service, model, request)
    try:
        payload = await _read(request, model, service)
    except RequestError as error:
        model.metrics.rejected(error.code)
        raise
    return await _predicted(service, model, payload)


async def answer_fields(service: Service, model: Model, call: HandlerCall, *, most: float) -> Answered:
    """Answer the fields of a request that is read already, within `most` seconds. Raises `RequestError`."""
    if model.task == handler_calls.TASK:
        return await handler_calls.answer_call(service, model, call, most=most)
    try:
        part = _chosen(call.parts)
        if part is None:
            raise RequestError('the request has no field data: send what is asked about as "data"', code="missing_file")
        if not part.data:
            raise RequestError(f"the field {part.name} is empty", code="empty_body")
        payload = await _payload(part.data, model, service, is_json=False)
    except RequestError as error:
        model.metrics.rejected(error.code)
        raise
    return await _predicted(service, model, payload, most=most)


async def _predicted(service: Service, model: Model, payload: Payload, *, most: float | None = None) -> Answered:
    queued, seconds = time.monotonic(), service.settings.deadline if most is None else most
    outcomes = await service.predict(model, [payload], Options(top_k=_TOP_K), timeout=seconds)
    [found] = answers_of(outcomes, noun="input")
    headers = (("X-Nonfinite-Outputs", str(found.nonfinite)),) if found.nonfinite else ()
    http = HttpAnswer(200, pretty(_shape(found)), headers=headers)
    return Answered(http, None, [each.timings for each in outcomes], queued)


async def _read(request: HttpRequest, model: Model, service: Service) -> Payload:
    """The payload of a request. Raises `RequestError`."""
    native.refuse_compressed(request)
    if not request.body:
        raise RequestError(f"the body is empty: {_FORM}", code="empty_body")
    settings, media_type, body = service.settings, request.media_type(), request.body
    is_json = reading_of(media_type) == "json"
    if media_type == "multipart/form-data":
        content_type = request.headers["content-type"]
        parts = await multipart.parse(request.body, content_type, max_parts=settings.max_items)
        part = _chosen(parts)
        if part is None:
            raise RequestError(f"the form has no field data: {_FORM}", code="missing_file")
        if not part.data:
            raise RequestError(f"the field {part.name} is empty: {_FORM}", code="empty_body")
        if model.kind in _OF_FILES and part.media_type.startswith("text"):  # base64, as TorchServe takes it
            text = bytes(part.data).decode("utf-8", "replace")
            return Payload("document", b'{"input":%b}' % msgspec.json.encode(text))
        is_json, body = reading_of(part.media_type) == "json", part.data
    return await _payload(body, model, service, is_json=is_json)


def _chosen(parts: Sequence[_Field]) -> _Field | None:
    """The field that is asked about: `data` before `body`, as TorchServe's handlers look; of one name the last.

    The fields of a gRPC message come in any order.
    """
    found = {each.name: each for each in parts}
    return next((found[name] for name in _FIELDS if name in found), None)


_OF_FILES = ("image", "audio")


async def _payload(body: bytes | memoryview, model: Model, service: Service, *, is_json: bool) -> Payload:
    """The payload of what was sent. `is_json`: its sender says so.

    Who names no type, as `curl -d` and `curl -T` do, is understood by what the model takes and by the first byte: a
    network over numbers takes nothing but JSON, a text may begin with anything, and no file of a picture or a sound
    begins as JSON does. Long JSON is looked at in a thread: other requests go on meanwhile.
    """
    if model.kind == "text" and not is_json:
        return _text(bytes(body), service.settings.max_json_depth)
    if not is_json and model.kind != "tensor" and bytes(body[:1]) not in (b"{", b"["):
        return Payload("file", body)
    names = (*_NAMES, "image") if model.kind in _OF_FILES else _NAMES
    if len(body) > json_document.SHORT:
        value = await asyncio.to_thread(_value_in, bytes(body), service.settings.max_json_depth, names)
    else:
        value = _value_in(bytes(body), service.settings.max_json_depth, names)
    return Payload("document", b'{"input":%b}' % value)


def _text(body: bytes, max_depth: int) -> Payload:
    """A plain text; or the one in `{"data": "a text"}`, which is hardly meant to be read with its braces."""
    if len(body) > LONGEST:
        raise RequestError(
            f"the text has {len(body):,} bytes, and the most is {LONGEST:,}: send it in parts", code="body_too_large"
        )
    if body[:1] == b"{":
        try:
            if (value := _value_in(body, max_depth)) is not body:
                return Payload("json", value)
        except RequestError:
            pass  # no JSON, and so a text
    try:
        return Payload("json", msgspec.json.encode(body.decode()))
    except UnicodeDecodeError:
        raise RequestError("this is not a text in UTF-8, which this model takes", code="input_rejected") from None


_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_RAW = msgspec.json.Decoder(msgspec.Raw)


_NAMES = ("data", "body", "input")


def _value_in(body: bytes, max_depth: int, names: tuple[str, ...] = _NAMES) -> bytes:
    """The JSON value that is meant: the only member of an object, if it has one of these names, or all of it."""
    if json_document.deeper_than(body, max_depth):
        raise RequestError(f"the JSON is nested more than {max_depth} levels deep", code="json_too_deep")
    try:
        if body.lstrip()[:1] != b"{":
            _RAW.decode(body)
            return body
        members = _MEMBERS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the body is not JSON: {error}", code="invalid_json") from None
    if len(members) != 1 or (name := next(iter(members))) not in names:
        return body
    value = memoryview(members[name])
    json_document.refuse_another(body, value, name, lambda rest: name in _MEMBERS.decode(rest))
    return bytes(value)


def _shape(found: Answer) -> Any:
    """The answer as the handler of its task gives it there; of a task that has none there, in ours."""
    if isinstance(found, Classification | MultiLabel):
        named: dict[str, float | None] = {}
        for each in found.top[:_TOP_K]:
            named.setdefault(each.label.name, each.probability)  # two classes of one name: the better one
        return named
    if isinstance(found, ObjectDetection):
        return [{each.label: list(each.box), "score": each.score} for each in found.found]
    body = found.body(Asked())
    return body.get("output", body)


def refuse(error: RequestError, request_id: str) -> HttpAnswer:
    """The answer to a request that failed: `{"code": 404, "type": "ModelNotFoundException", "message": "..."}`."""
    plain = error_answer(error, request_id)
    status = STATUS[error.code]
    kind = _TYPES.get(error.code)
    if kind is None:
        kind = "ServiceUnavailableException" if status == 503 else (
            "BadRequestException" if status < 500 else "InternalServerException"
        )  # fmt: skip
    message = error.message if not error.hint else f"{error.message}: {error.hint}"
    return HttpAnswer(status, pretty({"code": status, "type": kind, "message": message}), headers=plain.headers)


def pretty(value: Any) -> bytes:
    """JSON as TorchServe writes it."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


async def ping(service: Service, request: HttpRequest) -> HttpAnswer:
    """`GET /ping`."""
    return HttpAnswer(200 if service.ready() else 500, health(service))


def health(service: Service) -> bytes:
    """Whether the service can answer, in TorchServe's words."""
    return pretty({"status": "Healthy" if service.ready() else "Unhealthy"})


def _explain(service: Service, request: HttpRequest, **_: str) -> HttpAnswer:
    error = RequestError("explanations are not made here", code="not_implemented")
    return refuse(error, request.identity)


_ONE, _VERSION = "/predictions/{model}", "/predictions/{model}/{version}"


def routes(describe: Any) -> tuple[Route, ...]:
    """The routes. `describe` answers with the OpenAPI document."""
    one = dispatch.prediction(_ONE, answer, refuse, protocol="torchserve")
    version = dispatch.prediction(_VERSION, answer, refuse, protocol="torchserve")
    return (
        Route("POST", _ONE, "infer", one, quiet=True, by_model=True, describe=torchserve_openapi.prediction),
        Route("PUT", _ONE, "infer", one, quiet=True, by_model=True, describe=torchserve_openapi.prediction),
        Route("POST", _VERSION, "infer", version, quiet=True),
        Route("PUT", _VERSION, "infer", version, quiet=True),
        Route("POST", "/explanations/{model}", "infer", _explain),
        Route("GET", "/ping", "public", ping, vital=True, quiet=True),
        Route("GET", "/api-description", "public", describe),
    )
