"""The model's page and the dashboard. Without JavaScript the page's form still works.

The page makes the same calls as the API. Pictures come back only within the page of their answers (`flambeau.ui.sent`).
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader

from flambeau.errors import RequestError
from flambeau.protocols.errors import STATUS
from flambeau.protocols.messages import HttpAnswer, HttpRequest
from flambeau.protocols.model_sentences import about
from flambeau.protocols.multipart import Part
from flambeau.protocols.routes import Route
from flambeau.serving.model import Model
from flambeau.serving.service import Service
from flambeau.ui import form
from flambeau.ui.cards import FILTERS, LIMITS, Card, cards_of, refused, sentence
from flambeau.ui.form import TOP_K, filled, form_of, written
from flambeau.ui.sent import sent
from flambeau.version import VERSION

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",  # chosen images are shown from the browser's own memory
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
_POLICY_OF_PICTURES = _POLICY.replace("blob:", "blob: data:")
"""That of an answer to a form, which has the pictures in itself: see `flambeau.ui.sent`."""

_NO_CAMERA = "camera=(), microphone=(), geolocation=()"
_OWN_CAMERA = _NO_CAMERA.replace("camera=()", "camera=(self)")
_LONGEST_PATH = 200  # characters of an address that are shown
_SAMPLES = {"chelsea.jpg": "A cat", "coffee.jpg": "A cup of coffee", "rocket.jpg": "A rocket"}
"""Pictures to try, in `static/samples`, with their descriptions."""


_TEMPLATES = Environment(loader=PackageLoader("flambeau.ui"), autoescape=True)
_TEMPLATES.globals.update(version=VERSION, up="")
_TEMPLATES.globals.update(LIMITS | {"MOST_CHOICES": 20})
_TEMPLATES.filters.update(FILTERS)


def rendered(
    template: str, *, status: int = 200, policy: str = _POLICY, camera: bool = False, **values: object
) -> HttpAnswer:
    """A page from a template, with that content security policy. `camera`: whether it may use the browser's camera.

    Call it in a thread: it takes milliseconds.
    """
    text = _TEMPLATES.get_template(template).render(**values)
    headers = (
        ("Content-Security-Policy", policy), ("Permissions-Policy", _OWN_CAMERA if camera else _NO_CAMERA),
        ("Referrer-Policy", "no-referrer"), ("X-Frame-Options", "DENY"),
    )  # fmt: skip
    return HttpAnswer(status, text.encode(), "text/html; charset=utf-8", headers)


def show(service: Service, request: HttpRequest) -> HttpAnswer:
    """`GET /`: the page. `?model=NAME[/VERSION]` selects the model."""
    text = next(iter(request.parameters("model")), "")
    if not text:
        model = service.shown()
        return _page(service, request, model, status=200 if model is not None or service.ready() else 503)
    try:
        return _page(service, request, form.chosen(service, text))
    except RequestError as error:
        return _page(service, request, service.shown(), [refused(error)], status=STATUS[error.code])


@dataclass(frozen=True, slots=True)
class Choice:
    """A version in the page's list of models: what stands in the URL, and what is read."""

    value: str
    text: str
    loaded: bool


def _choices(service: Service) -> list[Choice]:
    """Every version of every model; those that are not loaded with their state."""
    return [
        Choice(
            f"{served.name}/{number}",
            f"{served.name}, version {number}" + ("" if each.usable() else f": {each.state}"),
            each.usable(),
        )
        for served in service.table.served()
        for number, each in list(served.versions.items())
    ]


def _nothing(service: Service, cards: Sequence[Card], status: int) -> HttpAnswer:
    """The page where no model is loaded: which there are, and what loads one."""
    return rendered("nothing.html", status=status, served=service.table.served(), cards=cards)


async def submit(service: Service, request: HttpRequest) -> HttpAnswer:
    """`POST /`: the page with the answers. A thread renders the page, but none waits for the model."""
    found = await form.submit(service, request)
    return await asyncio.to_thread(_answered, service, request, found)


def _answered(service: Service, request: HttpRequest, found: form.Submitted) -> HttpAnswer:
    """The page with the answers. A script, which asks with `?pictures=no`, shows its own copies of the pictures."""
    reflects = request.parameters("pictures") != ["no"]
    given = sent(form_of(found.model), found.parts, pictures=reflects) if found.model is not None else []
    if found.error is not None:
        cards = [refused(found.error, *(given if len(given) == 1 else ()))]
    else:
        cards = cards_of(found.outcomes, given)
    return _page(service, request, found.model, cards, found.parts, status=found.status)


def missing(path: str, hint: str | None) -> HttpAnswer:
    """The page for a browser that asks for an address without one. Its links lead up from there, below any prefix."""
    up = "../" * (path.count("/") - 1)
    return rendered("missing.html", status=404, path=path[:_LONGEST_PATH], hint=hint and sentence(hint), up=up)


def dashboard(service: Service, request: HttpRequest) -> HttpAnswer:
    """`GET /dashboard`."""
    return rendered(
        "dashboard.html",
        models=service.models(),
        faults=[each[:2] for each in service.faults()],
        about=about,
        form_of=form_of,
        root=request.root,
    )


def _page(
    service: Service,
    request: HttpRequest,
    model: Model | None,
    cards: Sequence[Card] = (),
    parts: Sequence[Part] = (),
    *,
    status: int = 200,
) -> HttpAnswer:
    if model is None:
        return _nothing(service, cards, status)
    chosen = bool(request.parameters("model")) or not service.is_default(model)
    return rendered(
        "index.html",
        status=status,
        model=model,
        form=form_of(model),
        choices=_choices(service),
        cards=cards,
        written=written(parts),
        filled=filled(parts),
        samples=_SAMPLES,
        chosen=chosen,
        root=request.root,
        # relative to the page, so that it works below any prefix
        address=f"predict/{model.name}/{model.version}" if chosen else "predict",
        most_bytes=service.settings.max_body_bytes,
        policy=_POLICY_OF_PICTURES if any(each.sent.picture for each in cards) else _POLICY,
        camera=model.kind == "image",
        top_k=TOP_K if "top_k" in model.does.parameters else None,
        about=about(model),
    )


ROUTES = (
    Route("GET", "/", "public", show),
    Route("POST", "/", "infer", submit),
    Route("GET", "/dashboard", "public", dashboard, vital=True),
    Route("GET", "/static/{filename:path}", "public", None, vital=True),
)
"""The dashboard is public, like every page; its figures come from `/metrics`, which has a scope of its own."""
