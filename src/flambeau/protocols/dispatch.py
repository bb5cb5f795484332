"""The native routes, and what every answer has in common: its headers, its log line and its metrics.

A front finds a request's route in a table (`flambeau.protocols.routes`) and calls this module to answer it. So every
front gives the same answer, logs the same line and counts in the same metrics.
"""

import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, cast

from flambeau.errors import RequestError
from flambeau.protocols import native, openapi, operations
from flambeau.protocols.accounting import Ended, account, told
from flambeau.protocols.errors import error_answer
from flambeau.protocols.messages import HttpAnswer, HttpRequest, sealed
from flambeau.protocols.native import Answered
from flambeau.protocols.parameters import TIMEOUT
from flambeau.protocols.refusals import refusal_at
from flambeau.protocols.routes import Match, ProtocolFunction, Route
from flambeau.serving.model import Model
from flambeau.serving.service import Service
from flambeau.telemetry import logs
from flambeau.telemetry.metrics import Protocol
from flambeau.telemetry.tracing import longest
from flambeau.types import Timings


async def answer(service: Service, match: Match, request: HttpRequest) -> HttpAnswer:
    """Answer a request whose route is a coroutine function. Never raises for what a client or a model does."""
    route = match.route
    try:
        function = cast("Callable[..., Awaitable[HttpAnswer]]", route.answer)
        found = await function(service, request, **match.parameters)
    except Exception as error:
        found = _failed(error, request)
    return sealed(found, request.identity) if route.quiet else _finished(found, route, request)


def answer_in_thread(service: Service, match: Match, request: HttpRequest) -> HttpAnswer:
    """The same for a route with a plain function, in the calling thread."""
    try:
        function = cast("Callable[..., HttpAnswer]", match.route.answer)
        found = function(service, request, **match.parameters)
    except Exception as error:
        found = _failed(error, request)
    return _finished(found, match.route, request)


def _finished(found: HttpAnswer, route: Route, request: HttpRequest) -> HttpAnswer:
    if not route.quiet:
        milliseconds = 1000 * (time.monotonic() - request.received)
        logs.event(f"{request.method} {route.path}", id=request.identity, status=found.status, ms=milliseconds)
    return sealed(found, request.identity)


def _failed(error: Exception, request: HttpRequest) -> HttpAnswer:
    return refusal_at(request.path, told(error, request.identity), request.identity)


# Predictions


def prediction(
    path: str,
    infer: Callable[[Service, Model, HttpRequest], Coroutine[Any, Any, Answered]],
    refuse: Callable[[RequestError, str], HttpAnswer],
    *,
    protocol: Protocol = "native",
) -> ProtocolFunction:
    """The function of a prediction route: it measures, logs and traces every request under `path`.

    `infer` answers for one model. `refuse` makes the protocol's error answer to a request that fails as a whole, from
    the error and the request id. The route may have the path parameters `model` and `version`.
    """

    async def predict(
        service: Service, request: HttpRequest, model: str | None = None, version: str | None = None
    ) -> HttpAnswer:
        entry = taken = None
        table = service.table
        try:
            entry = table.hold(model, version, request.key) or await table.hold_loaded(
                model, version, request.key, _allowed(request)
            )
            taken = entry.model
            assert taken is not None
            found = await infer(service, taken, request)
        except Exception as error:
            refusal = told(error, request.identity)
            # Drop the traceback: its frames hold the body, and this frame refers to the error: a reference cycle.
            found = Answered(refuse(refusal, request.identity), refusal.with_traceback(None), (), 0.0)
        finally:
            if entry is not None:
                table.release(entry)
        status = found.http.status
        attributes = _NOTHING
        if service.tracer is not None:
            attributes = {
                "http.request.method": request.method, "http.route": path, "http.response.status_code": status
            }  # fmt: skip
        ended = Ended(
            f"{request.method} {path}", protocol, request.identity, request.received, status, found.error,
            found.timings, found.queued, request.headers.get("traceparent"), attributes,
        )  # fmt: skip
        seconds = account(service, taken, ended)
        timing = ("Server-Timing", _server_timing(found.timings, seconds))
        return HttpAnswer(status, found.http.body, found.http.content_type, (timing, *found.http.headers))

    return predict


_NOTHING: dict[str, str | int] = {}


def _allowed(request: HttpRequest) -> float | None:
    """The seconds that loading a model may take, where the request says so."""
    milliseconds = TIMEOUT.read(request)
    return None if milliseconds is None else milliseconds / 1000


def _server_timing(timings: Sequence[Timings], seconds: float) -> str:
    """W3C Server-Timing in milliseconds: each stage that was reached, as its longest time over all items; the total."""
    total = f"total;dur={1000 * seconds:.2f}"
    one = timings[0] if len(timings) == 1 else longest(timings)
    if not one.queue + one.preprocess + one.inference + one.postprocess:
        return total
    return (
        f"queue;dur={1000 * one.queue:.2f}, preprocess;dur={1000 * one.preprocess:.2f}, "
        f"inference;dur={1000 * one.inference:.2f}, postprocess;dur={1000 * one.postprocess:.2f}, {total}"
    )


_predict = prediction("/predict", native.answer, error_answer)

NATIVE = (
    *(
        Route(
            "POST",
            path,
            "infer",
            _predict,
            describe=openapi.prediction,
            quiet=True,
            slash=True,
            by_model="{model}" in path,
        )
        for path in ("/predict", "/predict/{model}", "/predict/{model}/{version}")
    ),
    Route("GET", "/livez", "public", operations.live, describe=openapi.live, vital=True, quiet=True),
    Route("GET", "/readyz", "public", operations.ready, describe=openapi.ready, vital=True, quiet=True),
    Route("GET", "/metrics", "admin", operations.metrics, describe=openapi.metrics, vital=True),
)
"""The routes of the native protocol and those for operators. `GET /openapi.json` is added to the complete table."""
