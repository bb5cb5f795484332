"""The page: a form that works without JavaScript, over the same calls that the API makes."""

from dataclasses import dataclass

import msgspec
from flask import Blueprint, Response, make_response, render_template, request

from flambeau.errors import RequestError
from flambeau.service import AttachedService, BlockingService
from flambeau.types import Classification, Options, Outcome, Payload, Value
from flambeau.web import json_body, multipart
from flambeau.web.errors import STATUS

_TOP_K = 5
_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True)
class Bar:
    """One class on the page: its name for people, and its probability in percent."""

    name: str
    percent: float


@dataclass(frozen=True, slots=True)
class Shown:
    """What the page shows below its form."""

    bars: tuple[Bar, ...] = ()
    verdict: str = ""
    text: str = ""
    error: str = ""
    milliseconds: float = 0.0


def make_blueprint(handle: AttachedService | BlockingService) -> Blueprint:
    """`GET /` the form, `POST /` the form with its answer, `GET /static/...` the stylesheet."""
    blueprint = Blueprint("ui", __name__, template_folder="templates")

    def page(shown: Shown | None, status: int = 200) -> Response:
        model = handle.service.get()
        response = make_response(render_template("index.html", model=model, shown=shown), status)
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["X-Frame-Options"] = "DENY"
        return response

    @blueprint.get("/")
    def form() -> Response:
        return page(None)

    @blueprint.post("/")
    def submit() -> Response:
        model = handle.service.get()
        try:
            settings = handle.service.settings
            content_type = request.headers.get("Content-Type", "")
            payload = _payload(
                model.kind, content_type, request.get_data(cache=False), max_depth=settings.max_json_depth
            )
            [outcome] = handle.call(
                lambda service: service.predict(model, [payload], Options(top_k=_TOP_K), timeout=settings.deadline)
            )
            if isinstance(outcome.result, RequestError):
                raise outcome.result
        except RequestError as error:
            model.metrics.answered(STATUS[error.code], "page")
            return page(Shown(error=error.message), STATUS[error.code])
        model.metrics.answered(200, "page")
        return page(_shown(outcome))

    return blueprint


def _payload(kind: str, content_type: str, body: bytes, *, max_depth: int) -> Payload:
    """What was put into the form's one field: a file, or JSON text for a model over numbers."""
    parts = {part.name: part.data for part in multipart.parse(body, content_type, max_parts=4)}
    if kind == "image" or parts.get("file"):
        if not parts.get("file"):
            raise RequestError("no image was chosen", code="missing_file")
        return Payload("file", parts["file"])
    text = bytes(parts.get("input", b"")).strip()
    if not text:
        raise RequestError("no input was written", code="empty_body")
    return Payload("json", json_body.read_input(b'{"input":' + text + b"}", max_depth=max_depth))


def _shown(outcome: Outcome) -> Shown:
    result = outcome.result
    timings = outcome.timings
    milliseconds = 1000 * (timings.queue + timings.prepare + timings.compute + timings.finish)
    if isinstance(result, Classification):
        bars = tuple(Bar(each.label.name.replace("_", " "), 100 * each.probability) for each in result.top)
        verdict = bars[0].name if result.recognised else "Nothing recognised"
        return Shown(bars=bars, verdict=verdict, milliseconds=milliseconds)
    assert isinstance(result, Value)  # errors were raised by the caller, and no form sends a payload of kind `value`
    return Shown(text=msgspec.json.format(result.json, indent=2).decode(), milliseconds=milliseconds)
