"""The hot routes: predictions and health, answered on the loop under every front.

The lane calls `answer` directly, Flask's views through a thread; so both give the same answer, log the same line and
count in the same metrics.
"""

import re
import time

import msgspec

from flambeau import logs
from flambeau.errors import RequestError
from flambeau.service import Service
from flambeau.web import predict
from flambeau.web.errors import error_answer
from flambeau.web.http import SAFE_HEADERS, HttpAnswer, HttpRequest, request_id

_PREDICT = re.compile(r"/predict(?:/([^/]+)(?:/([^/]+))?)?")
_HEALTH = ("/livez", "/readyz")


def is_hot(method: str, path: str) -> bool:
    """Whether `answer` knows the route. All else, wrong methods included, is the Flask application's."""
    if method == "POST":
        return path.startswith("/predict") and _PREDICT.fullmatch(path) is not None
    return method in ("GET", "HEAD") and path in _HEALTH


async def answer(service: Service, request: HttpRequest) -> HttpAnswer:
    """Answer a request for which `is_hot` holds. Never raises for what a client or a model does."""
    identity = request_id(request.headers)
    if request.path == "/livez":
        return _finish(request, HttpAnswer(200, b'{"status":"live"}'), identity)
    if request.path == "/readyz":
        return _finish(request, readiness(service), identity)
    return _finish(request, await _predict(service, request, identity), identity)


async def _predict(service: Service, request: HttpRequest, identity: str) -> HttpAnswer:
    matched = _PREDICT.fullmatch(request.path)
    assert matched is not None  # by `is_hot`
    model, failure = None, None
    try:
        model = service.get(*matched.groups())
        found = await predict.answer(service, model, request, request_id=identity)
    except RequestError as error:
        failure = error
    except Exception as error:
        logs.failure("a request failed unexpectedly", error, id=identity)
        failure = RequestError("the server failed on this request", code="internal")
    if failure is not None:
        found = error_answer(failure, identity)
    if model is not None:
        model.metrics.answered(found.status)
    logs.event(
        "POST /predict",
        id=identity,
        model=model.name if model else None,
        status=found.status,
        code=failure.code if failure else None,
        ms=1000 * (time.monotonic() - request.received),
    )
    return found


def readiness(service: Service) -> HttpAnswer:
    """200 when every model can answer, 503 when one cannot or the service is stopping."""
    ready = service.ready()
    body = {
        "status": "ready" if ready else "draining" if service.draining else "not ready",
        "models": {model.name: model.state for model in service.models()},
    }
    return HttpAnswer(200 if ready else 503, msgspec.json.encode(body))


def _finish(request: HttpRequest, found: HttpAnswer, identity: str) -> HttpAnswer:
    """The answer with the headers that every answer carries, and the whole time beside that of the stages."""
    total = f", total;dur={1000 * (time.monotonic() - request.received):.2f}"
    own = [(name, value + total if name == "Server-Timing" else value) for name, value in found.headers]
    headers = (("X-Request-ID", identity), *SAFE_HEADERS, *own)
    return HttpAnswer(found.status, found.body, found.content_type, headers)
