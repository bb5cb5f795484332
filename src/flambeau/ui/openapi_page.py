"""`GET /openapi.json`, and `GET /docs`: the document as a page, by Swagger UI, which lies beside it.

The files of the page are a closed set that is read once; no path of a request ever reaches the disk.
"""

from collections.abc import Mapping
from importlib.resources import files

import msgspec
from flask import Blueprint, Response, abort, render_template

from flambeau.protocols import openapi
from flambeau.protocols.routes import Need
from flambeau.serving.service import AttachedService, BlockingService

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Of the page /docs: Swagger UI needs no inline script or style and no `eval`; its stylesheet has icons in it."""

_TYPES = {
    "swagger-ui.css": "text/css; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "start.js": "text/javascript; charset=utf-8",
}


def make_blueprint(handle: AttachedService | BlockingService, needs: Mapping[str, Need]) -> Blueprint:
    """The document, its page, and the files of that page. `needs` says which routes take a token."""
    blueprint = Blueprint("openapi", __name__)
    folder = files("flambeau.ui") / "vendor" / "swagger-ui"
    known: dict[str, bytes] = {}

    @blueprint.get("/openapi.json")
    def document() -> Response:
        return Response(msgspec.json.encode(openapi.document(handle.service, needs)), content_type="application/json")

    @blueprint.get("/docs")
    def page() -> Response:
        response = Response(render_template("docs.html"))
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["X-Frame-Options"] = "DENY"
        return response

    @blueprint.get("/docs/<name>")
    def asset(name: str) -> Response:
        if name not in _TYPES:
            abort(404)
        if name not in known:
            known[name] = (folder / name).read_bytes()
        response = Response(known[name], content_type=_TYPES[name])
        response.headers["Cache-Control"] = "public, max-age=3600"
        return response

    return blueprint
