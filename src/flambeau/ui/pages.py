"""The page and the dashboard: what a browser is shown. Without JavaScript the page's form still works.

It makes the same calls as the API, and sends nothing back of what was uploaded.
"""

from collections.abc import Callable, Sequence

from flask import Blueprint, Response, current_app, make_response, render_template, request

from flambeau.errors import RequestError
from flambeau.protocols.errors import STATUS
from flambeau.protocols.messages import HttpRequest
from flambeau.protocols.model_sentences import about
from flambeau.protocols.multipart import Part
from flambeau.serving.model import Model
from flambeau.serving.service import AttachedService, BlockingService
from flambeau.ui import form
from flambeau.ui.cards import TOP_K, Card, cards_of, refused, teach
from flambeau.ui.form import SUBMITTED, Submitted, filled, form_of, written
from flambeau.version import VERSION

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
_SAMPLES = {"chelsea.jpg": "A cat", "coffee.jpg": "A cup of coffee", "rocket.jpg": "A rocket"}
"""Pictures to try, in `static/samples`, with what is on them."""


def make_blueprint(handle: AttachedService | BlockingService, incoming: Callable[[], HttpRequest]) -> Blueprint:
    """`incoming` is Flask's request as a plain value, for a form that nobody has read yet.

    `GET /` the page, `POST /` the page with its answers, `GET /dashboard`. `?model=NAME[/VERSION]` takes a model."""
    blueprint = Blueprint("ui", __name__)
    teach(blueprint)

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
            top_k=TOP_K if "top_k" in model.does.parameters else None,
            about=about(model),
        )
        return make_response(text, status)

    @blueprint.get("/")
    def show() -> Response:
        try:
            return page(form.chosen(handle.service, request.args.get("model", "")))
        except RequestError as error:
            return page(handle.service.get(), [refused(error)], status=STATUS[error.code])

    @blueprint.post("/")
    def submit() -> Response:
        found: Submitted | None = request.environ.get(SUBMITTED)
        if found is None:  # under plain WSGI
            sent = incoming()
            found = handle.call(lambda service: form.submit(service, sent))
        cards = cards_of(found.outcomes) if found.error is None else [refused(found.error)]
        return page(found.model, cards, found.parts, status=found.status)

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
