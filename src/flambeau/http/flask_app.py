"""The Flask application: every route, for `flask run`, gunicorn, waitress, and for mounting in another application.

Behind `flambeau serve` the lane answers the hot routes before Flask is reached, with the same functions.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Blueprint, Flask, Response, g, request
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from werkzeug.exceptions import HTTPException

from flambeau.errors import Code, RequestError
from flambeau.http import framing
from flambeau.http.access import PASSED, Gate, open_gate
from flambeau.http.request_body import FULL, InflightBudget
from flambeau.protocols import dispatch
from flambeau.protocols.errors import STATUS, error_answer
from flambeau.protocols.messages import SAFE_HEADERS, HttpAnswer, HttpRequest, request_id
from flambeau.serving.service import AttachedService, BlockingService, Service, split_options
from flambeau.sources import build_cache
from flambeau.telemetry import logs
from flambeau.ui import openapi_page, pages

# Flask's current request as a plain value, its body counted and read.


def http_request(gate: Gate, budget: InflightBudget) -> HttpRequest:
    """The request. Raises `RequestError` where its body is too large, or does not fit beside the others.

    The server in front has read none of it, or has spooled it to a file; what is read here is held until the answer.
    """
    length = request.content_length
    share = g.share = budget.open(time.monotonic, None)
    if not share.take(request.max_content_length or 0 if length is None else length):
        raise FULL
    headers = {name.lower(): value for name, value in request.headers}
    return HttpRequest(
        method=request.method,
        path=request.path,
        query=request.query_string.decode("latin-1"),
        headers=headers,
        body=request.get_data(cache=False),
        received=g.received,
        identity=g.request_id,
        charge=gate.charge(headers, request.remote_addr or "") if request.method == "POST" else None,
    )


# Routes for operators.


_STATUSES = sorted({200, *STATUS.values()})


def make_blueprint(handle: AttachedService | BlockingService) -> Blueprint:
    """`GET /metrics`."""
    blueprint = Blueprint("ops", __name__)

    @blueprint.get("/metrics")
    def metrics() -> Response:
        for counted in (handle.service.metrics.other, *(model.metrics for model in handle.service.models())):
            counted.expect(_STATUSES)
        return Response(handle.service.metrics.render(), content_type=CONTENT_TYPE_PLAIN_0_0_4)

    return blueprint


ServiceHandle = AttachedService | BlockingService


def create_app(source: str | Path | None = None, **options: Any) -> Flask:
    """Build the source if need be, load it, and make the application that serves it. Raises `SetupError`.

    `options` are the settings of `flambeau.settings.service.Settings` and the source options of
    `flambeau.settings.source.SourceOptions`, by name.
    """
    make, gate = open_for_others(source, options)
    return make_app(BlockingService(make), gate)


def open_for_others(source: str | Path | None, options: dict[str, Any]) -> tuple[Callable[[], Service], Gate]:
    """What an application under the server of others is made of: its service, not started, and its gate."""
    # Threads unless asked otherwise: the server in front may have workers of its own, and forks them as it likes.
    options = {"runner": "threads", "source": str(source) if isinstance(source, Path) else source, **options}
    source_options, settings = split_options(options)
    gate = open_gate(settings, ours=False)
    opened = build_cache.open_source(source_options, progress=lambda event: logs.event(str(event)))
    return lambda: Service([opened], settings), gate


def make_app(handle: ServiceHandle, gate: Gate, shared: InflightBudget | None = None) -> Flask:
    """The application over a running service, behind its gate.

    `shared`: the budget for bodies, where others count in it too; else it has its own.
    """
    budget = shared or InflightBudget(handle.service.settings)
    app = Flask("flambeau.ui")  # whose folder holds the static files and the templates
    app.config["MAX_CONTENT_LENGTH"] = handle.service.settings.max_body_bytes
    app.extensions["flambeau"] = handle

    def admit() -> Response | None:
        """The gate, for a request that has not passed it on its way here."""
        if request.environ.get(PASSED) is gate:
            return None
        headers = {name.lower(): value for name, value in request.headers}
        if framing.length_of(headers.get("content-length") or "0") is None:
            raise RequestError("the header Content-Length is not a plain decimal number", code="bad_http")
        preflight = gate.origins.preflight(request.method, headers)
        if preflight is not None:
            return respond(preflight)
        refusal = gate.check(request.method, request.path, headers, request.remote_addr or "")
        if refusal is None:
            return None
        handle.service.metrics.refused(refusal.error.code, STATUS[refusal.error.code])
        return respond(refusal.answer(g.request_id))

    def let_pages_read(response: Response) -> Response:
        if request.environ.get(PASSED) is not gate:
            headers = {name.lower(): value for name, value in request.headers}
            response.headers.extend(gate.origins.headers(headers))
        return response

    app.before_request(_identify)
    app.before_request(admit)
    app.after_request(_finish)
    app.after_request(let_pages_read)
    app.teardown_request(_let_go)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(RequestError, _request_error)
    app.register_error_handler(Exception, _unexpected)

    def answer_hot(**_: str) -> Response:
        """A hot route under plain WSGI: the same coroutine as the lane's, run on the service's own loop."""
        incoming = http_request(gate, budget)
        return respond(handle.call(lambda service: dispatch.answer(service, incoming)))

    for rule in ("/predict", "/predict/<name>", "/predict/<name>/<version>"):
        app.add_url_rule(rule, "predict", answer_hot, methods=["POST"], strict_slashes=False)
    for rule in ("/livez", "/readyz"):
        app.add_url_rule(rule, "health", answer_hot, methods=["GET"])
    app.register_blueprint(make_blueprint(handle))
    app.register_blueprint(openapi_page.make_blueprint(handle, gate.tokens_for))
    app.register_blueprint(pages.make_blueprint(handle, lambda: http_request(gate, budget)))
    gate.guard(app)
    return app


def _let_go(error: BaseException | None) -> None:
    """Of the body's share, once the request is answered."""
    share = g.pop("share", None)
    if share is not None:
        share.close()


def respond(answer: HttpAnswer) -> Response:
    """A plain answer as Flask's response."""
    response = Response(answer.body, status=answer.status, content_type=answer.content_type)
    response.headers.extend(answer.headers)
    return response


def _identify() -> None:
    g.received = time.monotonic()
    g.request_id = request_id({name.lower(): value for name, value in request.headers})


def _finish(response: Response) -> Response:
    """Headers and log line of what the hot routes did not answer themselves."""
    if "X-Request-ID" not in response.headers:  # the hot routes have put it there, and logged
        response.headers["X-Request-ID"] = g.request_id
        for name, value in SAFE_HEADERS:
            response.headers.setdefault(name, value)
        milliseconds = 1000 * (time.monotonic() - g.received)
        route = str(request.url_rule or "(no route)")
        logs.event(f"{request.method} {route}", id=g.request_id, status=response.status_code, ms=milliseconds)
    return response


_NEARLY_PREDICT = ("/predict", "/predictions", "/invocations", "/infer", "/v1/models", "/v2/models", "/api/predict")
_PREDICT_HINT = "predictions are made with POST /predict, /predict/NAME or /predict/NAME/VERSION"
_CODES: dict[int, Code] = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


def _http_error(error: HTTPException) -> Response:
    """Werkzeug's own errors in our shape. Redirects pass as they are."""
    status = error.code or 500
    if status < 400:
        return error.get_response()  # type: ignore[return-value]
    code = _CODES.get(status, "bad_request" if status < 500 else "internal")
    message = {
        "not_found": "there is nothing at this address",
        "method_not_allowed": f"{request.method} is not answered at this address",
        "body_too_large": body_too_large(request.max_content_length or 0),
        "bad_request": "the request cannot be understood",
        "internal": "the server failed on this request",
    }[code]
    headers = error.get_response().headers
    kept = tuple((name, headers[name]) for name in ("Allow",) if name in headers)
    hint = _PREDICT_HINT if status in (404, 405) and request.path.startswith(_NEARLY_PREDICT) else None
    answer = error_answer(RequestError(message, code=code, hint=hint), g.request_id, headers=kept)
    return respond(dataclasses.replace(answer, status=status))


def body_too_large(limit: int) -> str:
    """The sentence about a body over the limit."""
    return f"the body is larger than the {_size(limit)} that this server takes (--max-body-bytes)"


def _size(count: int) -> str:
    """Bytes as people read them, without rounding a limit up."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count // size} {unit}" if count % size == 0 else f"{math.floor(10 * count / size) / 10:g} {unit}"
    return f"{count} {'byte' if count == 1 else 'bytes'}"


def _request_error(error: RequestError) -> Response:
    return respond(error_answer(error, g.request_id))


def _unexpected(error: Exception) -> Response:
    logs.failure("a request failed unexpectedly", error, id=g.request_id)
    return _request_error(RequestError("the server failed on this request", code="internal"))
