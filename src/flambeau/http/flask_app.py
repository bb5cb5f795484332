"""The Flask application: every route, for `flask run`, gunicorn, waitress, and for mounting in another application.

Its views are made from the table of routes. Behind the ASGI front it serves only files and paths without a route.
"""

import math
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from flambeau.errors import Code, RequestError
from flambeau.http import framing
from flambeau.http.access import PASSED, AccessControl, open_access
from flambeau.http.request_body import InflightBudget, Share, full
from flambeau.protocols import dispatch
from flambeau.protocols.errors import STATUS
from flambeau.protocols.messages import SAFE_HEADERS, HttpAnswer, HttpRequest, request_id
from flambeau.protocols.refusals import hint_at, refusal_at
from flambeau.protocols.routes import Match, RequiredScope, Route, least
from flambeau.serving.opening import open_models
from flambeau.serving.service import AttachedService, BlockingService, Service, split_options
from flambeau.telemetry import logs
from flambeau.ui import pages

ServiceHandle = AttachedService | BlockingService


def create_app(source: str | Path | None = None, **options: Any) -> Flask:
    """Build the source if need be, load it, and make the application that serves it. Raises `SetupError`.

    `options` are the settings of `flambeau.settings.service.Settings` and the source options of
    `flambeau.settings.source.SourceOptions`, by name.
    """
    make, access = open_for_others(source, options)
    return make_app(BlockingService(make), access)


def open_for_others(source: str | Path | None, options: dict[str, Any]) -> tuple[Callable[[], Service], AccessControl]:
    """For an application under another server: what makes its service, not started, and its access control."""
    # Threads unless asked otherwise: the server in front may have workers of its own, and fork them at any time.
    options = {"runner": "threads", "source": str(source) if isinstance(source, Path) else source, **options}
    source_options, settings = split_options(options)
    access = open_access(settings, ours=False)
    opened = open_models(source_options, settings, progress=lambda event: logs.event(str(event)))
    return lambda: Service(opened, settings), access


def make_app(handle: ServiceHandle, access: AccessControl, shared: InflightBudget | None = None) -> Flask:
    """The application over a running service, behind its access control.

    `shared`: the budget for bodies, if another front counts in it too; by default the application has its own.
    `app.extensions["flambeau.routes"]` maps method and rule to the required scope. Add routes of your own to it, such
    as "GET /mine": without a scope they are closed.
    """
    budget = shared or InflightBudget(handle.service.settings)
    app = Flask("flambeau.ui")  # this package has the static files
    app.config["MAX_CONTENT_LENGTH"] = handle.service.settings.max_body_bytes
    app.extensions["flambeau"] = handle
    scopes: dict[str, RequiredScope] = {f"{route.method} {_rule(route)}": route.scope for route in access.table}
    app.extensions["flambeau.routes"] = scopes

    def admit() -> Response | None:
        """Access control, unless the request has passed it already with the scope of the rule that matched here."""
        required = _required(scopes)
        if request.environ.get(PASSED) == (access, required):
            return None
        headers = _headers()
        if framing.length_of(headers.get("content-length") or "0") is None:
            raise RequestError("the header Content-Length is not a plain decimal number", code="bad_http")
        preflight = access.origins.preflight(request.method, headers)
        if preflight is not None:
            return respond(preflight)
        refusal = access.check(required, request.method, headers, request.remote_addr or "")
        if refusal is None:
            return None
        handle.service.metrics.refused(refusal.error.code, STATUS[refusal.error.code])
        return respond(refusal.answer(g.request_id, request.path))

    def let_pages_read(response: Response) -> Response:
        if PASSED not in request.environ:
            response.headers.extend(access.origins.headers(_headers()))
        return response

    app.before_request(_identify)
    app.before_request(admit)
    app.after_request(_finish)
    app.after_request(let_pages_read)
    app.teardown_request(_let_go)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(RequestError, _request_error)
    app.register_error_handler(Exception, _unexpected)

    def add(route: Route) -> None:
        def view(**parameters: str) -> Response:
            incoming, match = http_request(access, budget), Match(route, parameters)
            if route.waits:
                return respond(handle.call(lambda service: dispatch.answer(service, match, incoming)))
            return respond(dispatch.answer_in_thread(handle.service, match, incoming))

        name = f"{route.method} {route.path}".replace(".", " ")  # a dot would name a blueprint
        app.add_url_rule(_rule(route), name, view, methods=[route.method], strict_slashes=not route.slash)

    for each in access.table:
        if each.answer is not None:
            add(each)
    return app


def _rule(route: Route) -> str:
    """The path of a route in Flask's syntax."""
    return re.sub(r"\{(\w+):path\}", r"<path:\1>", route.path).replace("{", "<").replace("}", ">")


def _required(scopes: Mapping[str, RequiredScope]) -> RequiredScope | None:
    """The scope the current request requires; `None` if its rule declares none. As `RouteTable.scope_elsewhere`."""
    rule = request.url_rule
    if rule is None:  # no such path, no such method, or a redirect
        return "infer"
    if request.method != "OPTIONS":
        return scopes.get(f"{'GET' if request.method == 'HEAD' else request.method} {rule.rule}")
    declared = (scopes.get(f"{method} {rule.rule}") for method in (rule.methods or set()) - {"HEAD", "OPTIONS"})
    return least(scope for scope in declared if scope is not None)


# Flask's current request as a plain value, with its body counted and read.


def http_request(access: AccessControl, budget: InflightBudget) -> HttpRequest:
    """The current request. Raises `RequestError` if its body is too large, or does not fit into the budget.

    The server in front has not read the body, or has spooled it to a file; here it is held until the answer.
    """
    headers = _headers()
    return HttpRequest(
        method=request.method,
        path=request.path,
        query=request.query_string.decode("latin-1"),
        headers=headers,
        body=b"" if request.method in ("GET", "HEAD") else _body(budget),
        received=g.received,
        identity=g.request_id,
        charge=access.charge(headers, request.remote_addr or "") if request.method == "POST" else None,
        root=request.root_url,
        client=request.remote_addr or "",
    )


def _headers() -> dict[str, str]:
    return {name.lower(): value for name, value in request.headers}


def _body(budget: InflightBudget) -> bytes:
    length = request.content_length
    share = g.share = Share(budget, time.monotonic, None)
    if not share.take(request.max_content_length or 0 if length is None else length):
        raise full()
    return request.get_data(cache=False)


def _let_go(error: BaseException | None) -> None:
    """Release the body's share once the request is answered."""
    share = g.pop("share", None)
    if share is not None:
        share.close()


def respond(answer: HttpAnswer) -> Response:
    """An answer as Flask's response."""
    response = Response(answer.body, status=answer.status, content_type=answer.content_type)
    response.headers.extend(answer.headers)
    return response


def _identify() -> None:
    g.received = time.monotonic()
    g.request_id = request_id(_headers())


def _finish(response: Response) -> Response:
    """Add the headers and the log line of an answer that did not come from dispatch."""
    if "X-Request-ID" not in response.headers:  # else dispatch has added and logged them
        response.headers["X-Request-ID"] = g.request_id
        for name, value in SAFE_HEADERS:
            response.headers.setdefault(name, value)
        milliseconds = 1000 * (time.monotonic() - g.received)
        route = str(request.url_rule or "(no route)")
        logs.event(f"{request.method} {route}", id=g.request_id, status=response.status_code, ms=milliseconds)
    return response


_NEARLY_PREDICT = ("/predict", "/predictions", "/invocations", "/infer", "/api/predict")
_PREDICT_HINT = "predictions are made with POST /predict, /predict/NAME or /predict/NAME/VERSION"
_CODES: dict[int, Code] = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


def _http_error(error: HTTPException) -> Response:
    """Werkzeug's errors in the shape of ours. Redirects stay as they are."""
    status = error.code or 500
    if status < 400:
        return error.get_response()  # type: ignore[return-value]
    code = _CODES.get(status, "bad_request" if status < 500 else "internal")
    message = {
        "not_found": "there is nothing at this address",
        "method_not_allowed": f"{request.method} is not answered at this address",
        "body_too_large": body_too_large(request.max_content_length or 0),
        "bad_request": "the request is malformed",
        "internal": "the server failed on this request",
    }[code]
    headers = error.get_response().headers
    kept = tuple((name, headers[name]) for name in ("Allow",) if name in headers)
    hint = _PREDICT_HINT if request.path.startswith(_NEARLY_PREDICT) else hint_at(request.path)
    if status == 404 and request.method == "GET" and "text/html" in request.headers.get("Accept", ""):
        return respond(pages.missing(request.path, hint))
    refused = RequestError(message, code=code, hint=hint if status in (404, 405) else None)
    answer = refusal_at(request.path, refused, g.request_id, headers=kept)
    return respond(msgspec.structs.replace(answer, status=status))


def body_too_large(limit: int, *, upload: bool = False) -> str:
    """The message about a body over the limit; `upload`: over that for bundles."""
    setting = "--max-upload-bytes" if upload else "--max-body-bytes"
    return f"the body is larger than the {_size(limit)} that this server takes ({setting})"


def _size(count: int) -> str:
    """A number of bytes for people, never rounded up."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count // size} {unit}" if count % size == 0 else f"{math.floor(10 * count / size) / 10:g} {unit}"
    return f"{count} {'byte' if count == 1 else 'bytes'}"


def _request_error(error: RequestError) -> Response:
    return respond(refusal_at(request.path, error, g.request_id))


def _unexpected(error: Exception) -> Response:
    logs.failure("a request failed unexpectedly", error, id=g.request_id)
    return _request_error(RequestError("the server failed on this request", code="internal"))
