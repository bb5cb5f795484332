"""The table of routes: what each needs. A route that does not stand here is refused, whoever asks."""

from collections.abc import Mapping, MutableMapping
from typing import Literal

from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, RequestRedirect

from flambeau.protocols import dispatch

Need = Literal["public", "infer", "admin"]
"""Who may: everybody, whoever has a token, whoever has an admin token."""

ROUTES: Mapping[str, Need] = {
    "GET /": "public",
    "POST /": "infer",
    "GET /static/<path:filename>": "public",
    "GET /livez": "public",
    "GET /readyz": "public",
    "GET /docs": "public",
    "GET /docs/<name>": "public",
    "GET /openapi.json": "public",
    "POST /predict": "infer",
    "POST /predict/<name>": "infer",
    "POST /predict/<name>/<version>": "infer",
    "GET /metrics": "admin",
    "GET /dashboard": "public",
}
"""Method and rule of every route. HEAD is GET; OPTIONS, which only tells the methods, needs the least of them.

The dashboard's page is public, as pages are; its figures come from `/metrics`.
"""

_VITAL = ("/livez", "/readyz", "/metrics", "/dashboard")
"""What tells how the server is. It is answered whatever else is full."""


def is_vital_path(path: str) -> bool:
    """Whether it is one of these, or a part of the dashboard's page."""
    return path in _VITAL or path.startswith("/static/")


def is_vital(method: bytes, url: bytes, headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether a request, as it came, asks for such a path, without a body."""
    return (
        method in (b"GET", b"HEAD")
        and is_vital_path(url.partition(b"?")[0].decode("latin-1"))
        and not any(name in (b"content-length", b"transfer-encoding") for name, _ in headers)
    )


_LEAST_FIRST: tuple[Need, ...] = ("public", "infer", "admin")


class Routes:
    """What a request needs, told from the application's own map of routes."""

    def __init__(self, url_map: Map, needs: MutableMapping[str, Need]) -> None:
        self._adapter = url_map.bind("localhost")
        self._needs = needs

    def need(self, method: str, path: str) -> Need | None:
        """What the request needs; `None` when its route declares nothing.

        What is no route at all needs a token, so that a stranger does not learn which are.
        """
        if method == "HEAD":
            method = "GET"
        if dispatch.is_hot(method, path):
            return self._needs.get("POST /predict" if method == "POST" else f"GET {path}")
        try:
            rule, _ = self._adapter.match(path, method, return_rule=True)
        except (HTTPException, RequestRedirect):  # there is nothing, not by this method, or elsewhere
            return "infer"
        if method != "OPTIONS":
            return self._needs.get(f"{method} {rule.rule}")
        declared = {self._needs.get(f"{each} {rule.rule}") for each in (rule.methods or set()) - {"HEAD", "OPTIONS"}}
        return next((need for need in _LEAST_FIRST if need in declared), None)
