"""`GET /docs`: the OpenAPI document as a page, with Swagger UI, whose files are part of this package.

The files are a closed set, each read once; a request's path never reaches the disk.
"""

from functools import cache
from importlib.resources import files

from flambeau.errors import RequestError
from flambeau.protocols.messages import HttpAnswer, HttpRequest
from flambeau.protocols.routes import Route
from flambeau.serving.service import Service
from flambeau.ui.pages import rendered

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The content security policy of /docs. Swagger UI needs no inline scripts or styles and no `eval`; its stylesheet has
`data:` icons."""

_TYPES = {
    "swagger-ui.css": "text/css; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
}


_FOLDER = files("flambeau.ui") / "vendor" / "swagger-ui"


def page(service: Service, request: HttpRequest) -> HttpAnswer:
    """`GET /docs`."""
    return rendered("docs.html", policy=POLICY)


@cache
def _contents(name: str) -> bytes:
    return (_FOLDER / name).read_bytes()


def file(service: Service, request: HttpRequest, name: str) -> HttpAnswer:
    """`GET /docs/NAME`: one of the page's files. Raises `RequestError` for any other name."""
    if name not in _TYPES:
        raise RequestError("there is nothing at this address", code="not_found")
    return HttpAnswer(200, _contents(name), _TYPES[name], (("Cache-Control", "public, max-age=3600"),))


ROUTES = (Route("GET", "/docs", "public", page), Route("GET", "/docs/{name}", "public", file))
