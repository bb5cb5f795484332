"""Requests to a handler, and its answers as they are: body, media type, status and headers of its own choice.

The handler gets the whole request: every part of a form, or the body, with the headers. The header Authorization is
for Flambeau, and is left out.
"""

import time
from typing import Any

import msgspec

from flambeau.errors import RequestError
from flambeau.items import HandlerCall, HandlerPart
from flambeau.protocols import multipart
from flambeau.protocols.messages import HttpAnswer, HttpRequest
from flambeau.protocols.native import Answered
from flambeau.serving.model import Model
from flambeau.serving.service import Service
from flambeau.settings.service import Settings
from flambeau.tasks.handler import Handled
from flambeau.types import Options, Payload

TASK = "handler"

_LEFT_OUT = frozenset({"authorization", "proxy-authorization", "cookie", "content-length", "connection"})
_WITHOUT_BODY = frozenset({204, 205, 304})  # a client takes what follows their heads for the next answer
_TOLD_BY_FORM = "multipart/form-data"


async def answer(service: Service, model: Model, request: HttpRequest, **extra: str) -> Answered:
    """Answer a request to a model of the task `handler`. `extra` are headers more. Raises `RequestError`."""
    try:
        call = await _call(request, service.settings, extra)
    except RequestError as error:
        model.metrics.rejected(error.code)
        raise
    return await answer_call(service, model, call)


async def answer_call(service: Service, model: Model, call: HandlerCall, *, most: float | None = None) -> Answered:
    """The same for a request that is read already, within `most` seconds. Raises `RequestError`."""
    queued, seconds = time.monotonic(), service.settings.deadline if most is None else most
    payload = Payload("request", msgspec.msgpack.encode(call))
    [outcome] = await service.predict(model, [payload], Options(), timeout=seconds)
    result: Any = outcome.result
    if isinstance(result, RequestError):
        raise RequestError(result.message, code=result.code, hint=result.hint)
    assert isinstance(result, Handled)
    data = b"" if result.status in _WITHOUT_BODY else result.data
    found = HttpAnswer(result.status, data, result.media_type, result.headers)
    return Answered(found, None, [outcome.timings], queued)


async def _call(request: HttpRequest, settings: Settings, extra: dict[str, str]) -> HandlerCall:
    headers = {name: value for name, value in request.headers.items() if name not in _LEFT_OUT} | extra
    media_type = request.media_type()
    if media_type != _TOLD_BY_FORM:
        return HandlerCall(request.identity, headers, (HandlerPart("body", media_type, bytes(request.body)),))
    content_type = request.headers["content-type"]
    parts = await multipart.parse(request.body, content_type, max_parts=settings.max_items)
    # a field without a file name has no type there, whatever its header says: TorchServe passes its bytes on
    given = ((each, each.media_type if each.is_file else "") for each in parts)
    return HandlerCall(
        request.identity, headers, tuple(HandlerPart(each.name, kind, bytes(each.data)) for each, kind in given)
    )
