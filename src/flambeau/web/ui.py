"""The page and the dashboard: what a browser is shown. Without JavaScript the page's form still works.

It makes the same calls as the API, and sends nothing back of what was uploaded.
"""

from collections.abc import Sequence

from flask import Blueprint, Response, current_app, make_response, render_template, request

from flambeau.errors import RequestError
from flambeau.model import Model
from flambeau.service import AttachedService, BlockingService
from flambeau.types import Options
from flambeau.version import VERSION
from flambeau.web import multipart
from flambeau.web.about import about
from flambeau.web.errors import STATUS
from flambeau.web.multipart import Part
from flambeau.web.page_answer import TOP_K, Card, cards_of, refused
from flambeau.web.page_form import filled, form_of, read_form, written

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",  # what was chosen is shown from the browser's own memory
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {"Content-Security-Policy": _POLICY, "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}
RANKED = frozenset({"classification", "multi-label"})
"""The tasks whose classes the page ranks."""

_SAMPLES = {"chelsea.jpg": "A cat", "coffee.jpg": "A cup of coffee", "rocket.jpg": "A rocket"}
"""Pictures to try, in `static/samples`, with what is on them."""


def make_blueprint(handle: AttachedService | BlockingService) -> Blueprint:
    """`GET /` the page, `POST /` the page with its answers, `GET /dashboard`. `?model=NAME[/VERSION]` takes a model."""
    blueprint = Blueprint("ui", __name__, template_folder="templates")

    def page(model: Model, cards: Sequence[Card] = (), parts: Sequence[Part] = (), *, status: int = 200) -> Response:
        text = render_template(
            "index.html",
            model=model,
            form=form_of(model),
            models=handle.service.models(),
            cards=cards,
            written=written(parts),
            filled=filled(parts),
            samples=_SAMPLES,
            address=_address(model),
            top_k=TOP_K if model.task in RANKED else None,
            about=about(model),
        )
        return make_response(text, status)

    def chosen() -> Model:
        name, _, version = request.args.get("model", "").partition("/")
        return handle.service.get(name or None, version or None)

    @blueprint.get("/")
    def show() -> Response:
        try:
            return page(chosen())
        except RequestError as error:
            return page(handle.service.get(), [refused(error)], status=STATUS[error.code])

    @blueprint.post("/")
    def submit() -> Response:
        settings = handle.service.settings
        parts: list[Part] = []
        model = handle.service.get()
        try:
            model = chosen()
            parts = multipart.parse(
                request.get_data(cache=False), request.headers.get("Content-Type", ""), max_parts=settings.max_items
            )
            payloads = read_form(form_of(model), parts, max_depth=settings.max_json_depth)
            outcomes = handle.call(
                lambda service: service.predict(model, payloads, Options(top_k=TOP_K), timeout=settings.deadline)
            )
            if len(outcomes) == 1 and isinstance(outcomes[0].result, RequestError):
                raise outcomes[0].result
        except RequestError as error:
            model.metrics.answered(STATUS[error.code], "page")
            return page(model, [refused(error)], parts, status=STATUS[error.code])
        model.metrics.answered(200, "page")
        return page(model, cards_of(outcomes), parts)

    @blueprint.get("/dashboard")
    def dashboard() -> Response:
        models = handle.service.models()
        return make_response(render_template("dashboard.html", models=models, about=about))

    @blueprint.after_request
    def lock_down(response: Response) -> Response:
        response.headers.update(_HEADERS)
        return response

    @blueprint.context_processor
    def everywhere() -> dict[str, object]:
        return {"version": VERSION, "documented": _has_documentation()}

    return blueprint


def _address(model: Model) -> str:
    """Where its predictions are made, relative to the page: so the page works below any prefix."""
    return f"predict/{model.name}/{model.version}" if "model" in request.args else "predict"


def _has_documentation() -> bool:
    return any(rule.rule == "/docs" for rule in current_app.url_map.iter_rules())
