"""Routes, and the table that finds the route of a request. The routes themselves are defined elsewhere.

`flambeau.protocols.dispatch` has those of the native protocol, `flambeau.ui` those of the pages; `flambeau.http.access`
puts them into the one table that dispatch, access control, Flask and the OpenAPI document read.
"""

import inspect
import re
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, NamedTuple

from flambeau.protocols.messages import HttpAnswer
from flambeau.serving.model import Model
from flambeau.settings.service import Settings

RequiredScope = Literal["health", "public", "infer", "admin"]
"""Who may use a route: everybody, by whatever name of the host; everybody; holders of a token, of an admin token."""

OPEN: frozenset[RequiredScope] = frozenset({"health", "public"})
"""The scopes that need no token."""

_LEAST_FIRST: tuple[RequiredScope, ...] = ("health", "public", "infer", "admin")

ProtocolFunction = Callable[..., HttpAnswer] | Callable[..., Coroutine[Any, Any, HttpAnswer]]
"""Called with the service, the `HttpRequest`, and the path parameters by name.

A coroutine function is called on the loop, a plain one in a thread. Both may raise `RequestError`.
"""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of the OpenAPI document: a path, the model that answers there, and that model in words."""

    path: str
    model: Model | None
    which: str
    settings: Settings


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the table.

    In `path`, `{name}` is a parameter: one segment of the path, or part of one (`/v1/models/{name}:predict`);
    `{name:path}` is the rest of the path. `answer` is `None` for files, which Flask serves.
    `describe` makes the operation for the OpenAPI document; `None` for pages.
    `vital`: the route reports the server's health, and is answered however full the server is.
    `quiet`: dispatch logs no line for it; the route may log its own.
    `slash`: the path may also end in a slash.
    `upload`: its body may be as large as a bundle.
    `by_model`: the OpenAPI document has one operation for each model, with that model's own schema.
    """

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    scope: RequiredScope
    answer: ProtocolFunction | None
    _: KW_ONLY
    describe: Callable[[Operation], dict[str, Any]] | None = None
    vital: bool = False
    quiet: bool = False
    slash: bool = False
    upload: bool = False
    by_model: bool = False
    waits: bool = field(init=False)
    """Whether `answer` is a coroutine function."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "waits", inspect.iscoroutinefunction(self.answer))


class Match(NamedTuple):
    """The route of a request, and its path parameters."""

    route: Route
    parameters: dict[str, str]


class RouteTable:
    """All routes of a server, in order. HEAD matches as GET."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes = tuple(routes)
        self._plain: dict[str, dict[str, Match]] = {}
        templates: dict[str, list[Route]] = {}
        for route in self._routes:
            if "{" in route.path:
                templates.setdefault(route.method, []).append(route)
            else:
                plain = self._plain.setdefault(route.method, {})
                plain[route.path] = Match(route, {})
                if route.slash:
                    plain[route.path + "/"] = plain[route.path]
        self._templates = {method: _Templates(several) for method, several in templates.items()}
        self._methods = self._plain.keys() | templates.keys()

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes)

    def find(self, method: str, path: str) -> Match | None:
        """The route of a request, or `None`. `path` is unquoted."""
        if method == "HEAD":
            method = "GET"
        plain = self._plain.get(method)
        if plain is not None and path in plain:
            return plain[path]
        if path and (path[0] != "/" or path.startswith("//")):  # one slash, as in werkzeug
            return self.find(method, "/" + path.lstrip("/"))
        templates = self._templates.get(method)
        return None if templates is None else templates.find(path)

    def scope_elsewhere(self, method: str, path: str) -> RequiredScope:
        """The scope required of a request that has no route.

        OPTIONS, which only lists the methods, requires the least scope of the routes at that path. A path without
        routes requires a token, so that a stranger cannot find out which paths exist.
        """
        if method != "OPTIONS":
            return "infer"
        return least(match.route.scope for each in self._methods if (match := self.find(each, path))) or "infer"


def least(scopes: Iterable[RequiredScope]) -> RequiredScope | None:
    """The scope that admits the most clients; `None` if there are no scopes."""
    return min(scopes, key=_LEAST_FIRST.index, default=None)


class _Templates:
    """The path templates of one method as one pattern. The first one that matches wins."""

    def __init__(self, routes: list[Route]) -> None:
        self._routes: dict[int, tuple[Route, tuple[str, ...]]] = {}  # by the group around the route's whole path
        patterns = []
        group = 1
        for route in routes:
            names = tuple(name for name, _ in _PARAMETER.findall(route.path))
            self._routes[group] = route, names
            patterns.append(f"({_pattern(route)})")
            group += 1 + len(names)
        self._pattern = re.compile("|".join(patterns))

    def find(self, path: str) -> Match | None:
        found = self._pattern.fullmatch(path)
        if found is None or found.lastindex is None:
            return None
        group = found.lastindex  # the group that closed last: the outermost
        route, names = self._routes[group]
        return Match(route, dict(zip(names, found.groups()[group:], strict=False)))


_PARAMETER = re.compile(r"\{(\w+)(:path)?\}")


def _pattern(route: Route) -> str:
    literal = (re.escape(text) for text in _PARAMETER.sub("\0", route.path).split("\0"))
    values = (r"([^/].*?)" if rest else r"([^/]+)" for _, rest in _PARAMETER.findall(route.path))
    pattern = next(literal) + "".join(value + text for value, text in zip(values, literal, strict=True))
    return pattern + ("/?" if route.slash else "")
