"""The native protocol: bodies to payloads, outcomes to the recipes' answers. Pure functions and one coroutine.

one part `file`, or a raw body     {"class_id": ..., "class_name": ...}
one part `image`                   {"class_index": ..., "probabilities": [...]}
JSON {"input": x}                  {"output": y}
several parts                      {"predictions": [...]} in the order sent; a bad one fails alone
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from flambeau.config import Settings
from flambeau.errors import RequestError
from flambeau.model import Model
from flambeau.service import Service
from flambeau.types import Classification, Options, Outcome, Payload, Timings, Value
from flambeau.web import json_body, multipart
from flambeau.web.errors import error_body
from flambeau.web.http import HttpAnswer, HttpRequest

Form = Literal["file", "image"]
"""The name of the part that carried an item, which decides the shape of its answer."""

_MAX_TOP_K = 1000


@dataclass(frozen=True, slots=True)
class Call:
    """A request understood: its items (or what was wrong with one of them) and what is wanted about them."""

    items: list[tuple[Form, Payload | RequestError]]
    options: Options
    ranked: bool


async def answer(service: Service, model: Model, request: HttpRequest, *, request_id: str) -> HttpAnswer:
    """Answer a prediction request to that model. Raises `RequestError` for a request that fails as a whole."""
    call = read(request, model.kind, service.settings)
    payloads = [payload for _, payload in call.items if isinstance(payload, Payload)]
    timeout = _timeout(request, service.settings.deadline)
    computed = iter(await service.predict(model, payloads, call.options, timeout=timeout) if payloads else [])
    outcomes = [
        (form, next(computed) if isinstance(payload, Payload) else Outcome(payload)) for form, payload in call.items
    ]
    return render(call, outcomes, request_id=request_id)


def read(request: HttpRequest, kind: str, settings: Settings) -> Call:
    """Understand a request to a model of that kind (`image`, `tensor` or `python`). Raises `RequestError`."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError("a compressed body is not read: send it as it is", code="unsupported_content_encoding")
    items = _read_items(request, kind, settings)
    if len(items) > settings.max_items:
        raise RequestError(
            f"the request has {len(items)} items: the most is {settings.max_items}", code="too_many_items"
        )
    top_k = _number(request, "top_k", int, 1, _MAX_TOP_K)
    return Call(
        items=items,
        options=Options(
            top_k=top_k or 1,
            threshold=_number(request, "threshold", float, 0, 1),
            probabilities=any(form == "image" for form, _ in items),
        ),
        ranked=top_k is not None,
    )


def _read_items(request: HttpRequest, kind: str, settings: Settings) -> list[tuple[Form, Payload | RequestError]]:
    media_type = request.media_type()
    if not request.body:
        raise _nothing_sent(kind, code="empty_body")
    if media_type == "multipart/form-data":
        parts = multipart.parse(request.body, request.headers["content-type"], max_parts=settings.max_items)
        items = [(_form(part.name), _file(part.data)) for part in parts if part.name in ("file", "image")]
        if not items:
            raise _nothing_sent(kind, code="missing_file")
        if len(items) == 1 and isinstance(items[0][1], RequestError):
            raise items[0][1]
        return items
    if media_type == "application/json" or media_type.endswith("+json"):
        return [("file", Payload("json", json_body.read_input(request.body, max_depth=settings.max_json_depth)))]
    if media_type.startswith("image/") or media_type in ("", "application/octet-stream"):
        return [("file", Payload("file", request.body))]
    if media_type == "application/x-www-form-urlencoded" and kind == "image":
        raise _nothing_sent(
            kind, code="missing_file"
        )  # a form without files: what the recipe's client sends by mistake
    wanted = (
        "multipart form data or an image" if kind == "image" else "JSON with the header Content-Type: application/json"
    )
    raise RequestError(f"a body of that Content-Type is not read: send {wanted}", code="unsupported_media_type")


def _form(name: str) -> Form:
    return "image" if name == "image" else "file"


def _file(data: memoryview) -> Payload | RequestError:
    return Payload("file", data) if data else RequestError("the file is empty", code="empty_body")


def _nothing_sent(kind: str, *, code: Literal["empty_body", "missing_file"]) -> RequestError:
    if kind == "image":  # the sentence of the second recipe, which its clients compare
        return RequestError("no image part", code=code, hint="send the image as multipart form field 'file' or 'image'")
    if code == "missing_file":
        return RequestError("no file part", code=code, hint="send the file as multipart form field 'file'")
    return RequestError('the body is empty: send JSON like {"input": ...}', code=code)


def _number(request: HttpRequest, name: str, convert: type, least: float, most: float) -> Any:
    """A query parameter as a number within bounds, or `None` where it is absent."""
    text = request.parameter(name)
    if text is None:
        return None
    try:
        value = convert(text)
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        kind = "a whole number" if convert is int else "a number"
        raise RequestError(f"?{name}= must be {kind} from {least} to {most}", code="bad_request")
    return value


def _timeout(request: HttpRequest, most: float) -> float:
    """The seconds this request may take: the server's deadline, which X-Request-Timeout-Ms can lower."""
    given = request.headers.get("x-request-timeout-ms")
    if given is None:
        return most
    if not (given.isascii() and given.isdigit() and 0 < int(given[:10]) <= 10**9):
        raise RequestError("X-Request-Timeout-Ms must be a whole number of milliseconds", code="bad_request")
    return min(most, int(given) / 1000)


def render(call: Call, outcomes: Sequence[tuple[Form, Outcome]], *, request_id: str) -> HttpAnswer:
    """The answer to a request: one item's own, or a list. Raises the error of an item that was sent alone."""
    headers = [("Server-Timing", _server_timing([outcome.timings for _, outcome in outcomes]))]
    nonfinite = sum(outcome.result.nonfinite for _, outcome in outcomes if isinstance(outcome.result, Value))
    if nonfinite:
        headers.append(("X-Nonfinite-Outputs", str(nonfinite)))
    body: dict[str, Any]
    if len(outcomes) == 1:
        [(form, outcome)] = outcomes
        if isinstance(outcome.result, RequestError):
            raise outcome.result
        body = _item_body(call, form, outcome, request_id)
    else:
        body = {"predictions": [_item_body(call, form, outcome, request_id) for form, outcome in outcomes]}
    return HttpAnswer(200, msgspec.json.encode(body), headers=tuple(headers))


def _item_body(call: Call, form: Form, outcome: Outcome, request_id: str) -> dict[str, Any]:
    result = outcome.result
    if isinstance(result, RequestError):
        return error_body(result, request_id)
    if isinstance(result, Value):
        return {"output": msgspec.Raw(result.json)}
    assert isinstance(result, Classification)  # a Plain answers payloads of kind `value`, which no request has
    best = result.top[0]
    body: dict[str, Any]
    if form == "image":
        body = {"class_index": best.index, "probabilities": result.probabilities}
    else:
        body = {"class_id": best.label.id, "class_name": best.label.name}
    if not result.recognised:
        named = [key for key in body if key.startswith("class_")]
        body |= dict.fromkeys(named) | {"reason": not_recognised(result)}
    if call.ranked:
        body["predictions"] = [
            {"class_id": each.label.id, "class_name": each.label.name, "probability": each.probability}
            for each in result.top
        ]
    return body


def not_recognised(result: Classification) -> str:
    """Why nothing was recognised, as a sentence."""
    return (
        f"nothing was recognised: the top probability {result.top[0].probability:.3f} "
        f"is below the threshold {result.threshold:g}"
    )


def _server_timing(timings: Sequence[Timings]) -> str:
    """W3C Server-Timing in milliseconds: of several items, each stage's longest."""
    if len(timings) == 1:
        [one] = timings
        return (
            f"queue;dur={1000 * one.queue:.2f}, prepare;dur={1000 * one.prepare:.2f}, "
            f"compute;dur={1000 * one.compute:.2f}, finish;dur={1000 * one.finish:.2f}"
        )
    return ", ".join(
        f"{stage};dur={1000 * max(getattr(timing, stage) for timing in timings):.2f}"
        for stage in ("queue", "prepare", "compute", "finish")
    )
