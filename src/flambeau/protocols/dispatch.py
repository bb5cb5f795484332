"""The hot routes: predictions and health, answered on the loop under every front.

The lane calls `answer` directly, Flask's views through a thread; so both give the same answer, log the same line and
count in the same metrics.
"""

import re
import time
from collections.abc import Sequence

import msgspec

from flambeau.errors import RequestError
from flambeau.protocols import native
from flambeau.protocols.errors import error_answer
from flambeau.protocols.messages import SAFE_HEADERS, HttpAnswer, HttpRequest, sealed
from flambeau.serving.model import Model
from flambeau.serving.service import Service
from flambeau.telemetry import logs, tracing
from flambeau.telemetry.tracing import longest
from flambeau.types import Timings

_PREDICT = re.compile(r"/predict(?:/([^/]+)(?:/([^/]+))?)?/?")
_HEALTH = ("/livez", "/readyz")


def is_hot(method: str, path: str) -> bool:
    """Whether `answer` knows the route. All else, wrong methods included, is the Flask application's."""
    if method == "POST":
        return path.startswith("/predict") and _PREDICT.fullmatch(path) is not None
    return method in ("GET", "HEAD") and path in _HEALTH


async def answer(service: Service, request: HttpRequest) -> HttpAnswer:
    """Answer a request for which `is_hot` holds. Never raises for what a client or a model does."""
    identity = request.identity
    if request.path == "/livez":
        return sealed(HttpAnswer(200, b'{"status":"live"}'), identity)
    if request.path == "/readyz":
        return sealed(readiness(service), identity)
    return await _predict(service, request, identity)


async def _predict(service: Service, request: HttpRequest, identity: str) -> HttpAnswer:
    matched = _PREDICT.fullmatch(request.path)
    assert matched is not None  # by `is_hot`
    model = None
    try:
        model = service.get(*matched.groups())
        found = await native.answer(service, model, request, request_id=identity)
    except RequestError as error:
        if model is None:
            service.metrics.other.rejected(error.code)
        found = _refused(error, identity)
    except Exception as error:
        logs.failure("a request failed unexpectedly", error, id=identity)
        found = _refused(RequestError("the server failed on this request", code="internal"), identity)
    status = found.http.status
    seconds = time.monotonic() - request.received
    if model is None:
        service.metrics.other.answered(status)
    else:
        model.metrics.answered(status)
        if status == 200:
            model.metrics.took(seconds)
    trace = None
    if service.tracer is not None or "traceparent" in request.headers:
        trace = _trace(service, model, request, found, identity)
    logs.event(
        "POST /predict",
        id=identity,
        trace=trace,
        model=model.name if model else None,
        status=status,
        code=found.error.code if found.error else None,
        ms=1000 * seconds,
    )
    timing = ("Server-Timing", _server_timing(found.timings, seconds))
    headers = (("X-Request-ID", identity), *SAFE_HEADERS, timing, *found.http.headers)
    return HttpAnswer(status, found.http.body, found.http.content_type, headers)


def _refused(error: RequestError, identity: str) -> native.Answered:
    # Without its traceback, whose frames hold the body: what refers to the error is itself in one of them.
    return native.Answered(error_answer(error, identity), error.with_traceback(None), (), 0.0)


def _trace(
    service: Service, model: Model | None, request: HttpRequest, found: native.Answered, identity: str
) -> str | None:
    """The id of the trace that the request belongs to, where there is one; its spans are made now that it is over."""
    parent = tracing.parent_of(request.headers.get("traceparent"))
    if service.tracer is None:
        return parent.trace if parent else None
    status = found.http.status
    attributes: dict[str, str | int] = {
        "http.request.method": "POST",
        "http.route": "/predict",
        "http.response.status_code": status,
        "flambeau.request_id": identity,
    }
    if model is not None:
        attributes |= {"flambeau.serving.model": model.name, "flambeau.version": model.version}
    if found.error is not None:
        attributes["error.type"] = found.error.code
    return service.tracer.record(
        "POST /predict",
        parent,
        began=request.received,
        queued=found.queued,
        timings=found.timings,
        attributes=attributes,
        failed=status >= 500,
    )


def readiness(service: Service) -> HttpAnswer:
    """200 when every model can answer, 503 when one cannot or the service is stopping."""
    ready = service.ready()
    body = {
        "status": "ready" if ready else "draining" if service.draining else "not ready",
        "models": {model.name: model.state for model in service.models()},
    }
    return HttpAnswer(200 if ready else 503, msgspec.json.encode(body))


def _server_timing(timings: Sequence[Timings], seconds: float) -> str:
    """W3C Server-Timing in milliseconds: the stages that were come to, each item's longest, and the whole."""
    total = f"total;dur={1000 * seconds:.2f}"
    one = longest(timings)
    if not one.queue + one.preprocess + one.inference + one.postprocess:
        return total
    return (
        f"queue;dur={1000 * one.queue:.2f}, preprocess;dur={1000 * one.preprocess:.2f}, "
        f"inference;dur={1000 * one.inference:.2f}, postprocess;dur={1000 * one.postprocess:.2f}, {total}"
    )
