"""What a front's routes do for the whole service: each route is answered here alone, or by all fronts together.

    GET  /metrics                                    all, added up
    GET  /v2/models/stats, /v2/models/{model}/stats  all, added up
    GET  /models/{model}, …/{version}, …/shadow      this one's, with the numbers of all
    GET  /v2/models/{model}/config                   the same
    GET  /readyz                                     this one's, with how many fronts there are
    what needs an admin token and changes something  first here, and if it succeeds at all others, one after another
    everything else                                  here: it is the same at every front, or about this request alone

It knows the routes only by method, path and scope, so a route that is added falls under one of these rules.
"""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from flambeau.errors import RequestError
from flambeau.fronts import totals
from flambeau.fronts.messages import PlainAnswer, PlainRequest, Rule
from flambeau.http.origins import SAFE_METHODS
from flambeau.protocols.errors import error_answer
from flambeau.protocols.messages import HttpAnswer, HttpRequest
from flambeau.protocols.routes import Route, RouteTable
from flambeau.serving.service import Service
from flambeau.settings.service import Settings

RULES: dict[str, Rule] = {
    "/metrics": "metrics",
    "/v2/models/stats": "statistics",
    "/v2/models/{model}/stats": "statistics",
    "/v2/models/{model}/versions/{version}/stats": "statistics",
    "/models/{model}": "details",
    "/models/{model}/{version}": "details",
    "/models/{model}/shadow": "details",
    "/v2/models/{model}/config": "details",
    "/v2/models/{model}/versions/{version}/config": "details",
}
"""The routes that only show something, and show it of all fronts."""

_READY = "/readyz"
_UPLOAD = ("POST", "/models")
_KEPT_HEADERS = ("content-type", "content-encoding", "accept")

AskSupervisor = Callable[[Rule, PlainRequest | None], Awaitable[HttpAnswer]]
"""Asks the supervisor. Raises `RequestError` if it does not answer."""


class WholeRoutes:
    """The routes of one front, of which some answer for all."""

    def __init__(
        self, ask: AskSupervisor, settings: Settings, *, number: int, presence: Callable[[], tuple[int, int]]
    ) -> None:
        """`settings` are this front's part. `presence`: how many fronts there are, and of how many."""
        self._ask = ask
        self._settings = settings
        self._number = number
        self._presence = presence
        self._changes: set[asyncio.Future[HttpAnswer]] = set()
        self._own: dict[tuple[str, str], Route] = {}

    def route(self, route: Route) -> Route:
        """The route as this front answers it."""
        self._own[route.method, route.path] = route
        if route.answer is None:
            return route
        if route.method == "GET" and route.path == _READY:
            return self._changed(route, self._with_presence(route))
        if route.method == "GET" and (rule := RULES.get(route.path)) is not None:
            return self._changed(route, self._asking(route, rule))
        if route.scope == "admin" and route.method not in SAFE_METHODS:
            return self._changed(route, self._spreading(route))
        return route

    def _changed(self, route: Route, answer: Callable[..., Any]) -> Route:
        return dataclasses.replace(route, answer=answer)

    def _with_presence(self, route: Route) -> Callable[..., Any]:
        async def answer(service: Service, request: HttpRequest, **parameters: str) -> HttpAnswer:
            found = await call(route, service, request, parameters)
            present, of = self._presence()
            body = msgspec.json.decode(found.body)
            if body.get("status") == "ready" and present < of:
                body["status"] = "degraded"
            body["fronts"] = {"ready": present, "of": of}
            return replace(found, body=msgspec.json.encode(body))

        return answer

    def _asking(self, route: Route, rule: Rule) -> Callable[..., Any]:
        async def answer(service: Service, request: HttpRequest, **parameters: str) -> HttpAnswer:
            if rule == "details":  # loads on demand, and refuses, as it would alone
                found = await call(route, service, request, parameters)
                if found.status != 200:
                    return found
                others = msgspec.json.decode((await self._ask(rule, plain(request))).body, type=list[msgspec.Raw])
                return replace(found, body=totals.add_details(found.body, others))
            return await self._ask(rule, plain(request))

        return answer

    def _spreading(self, route: Route) -> Callable[..., Any]:
        """Change something here, and then elsewhere. Changes take turns over all fronts."""

        async def change(service: Service, request: HttpRequest, parameters: dict[str, str]) -> HttpAnswer:
            turn = await self._ask("turn", None)
            if turn.status != 200:
                return turn
            elsewhere = None
            try:
                found = await call(route, service, self._own_part(request, route), parameters)
                if found.status < 400:
                    elsewhere = _elsewhere(request, route)
            finally:
                spread = await self._ask("spread", elsewhere)
            return found if spread.status < 400 else spread

        async def answer(service: Service, request: HttpRequest, **parameters: str) -> HttpAnswer:
            # in a task of its own: a client that leaves must not keep the turn
            task = asyncio.ensure_future(change(service, request, parameters))
            self._changes.add(task)
            task.add_done_callback(self._changes.discard)
            return await asyncio.shield(task)

        return answer

    def _own_part(self, request: HttpRequest, route: Route) -> HttpRequest:
        """A change with this front's part of the numbers that are meant for the whole service."""
        if (route.method, route.path) != ("PUT", "/models/{model}"):
            return request
        try:
            body = msgspec.json.decode(request.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return request  # refused as it is
        if not isinstance(body, dict):
            return request
        of = self._settings.fronts or 1
        for name in ("replicas", "max_queue_size"):
            whole = body.get(name)
            if isinstance(whole, int) and not isinstance(whole, bool) and whole > 0:
                if whole < of:
                    raise RequestError(
                        f"{name} {whole} is less than the {of} fronts of this service (--fronts)", code="bad_request"
                    )
                body[name] = whole // of + (self._number <= whole % of)
        return replace(request, body=msgspec.json.encode(body))

    async def answer_alone(self, table: RouteTable, service: Service, asked: PlainRequest) -> PlainAnswer:
        """Answer a request that the supervisor makes, for this front alone."""
        request = HttpRequest(asked.method, asked.path, asked.query, asked.headers, asked.body, client="another front")
        match = table.find(asked.method, asked.path)
        if match is None:
            return PlainAnswer(404, b"")
        route = self._own[match.route.method, match.route.path]
        try:
            if route.scope == "admin":
                request = self._own_part(request, route)
            found = await call(route, service, request, match.parameters)
        except RequestError as error:
            found = error_answer(error, request.identity)
        return PlainAnswer(found.status, found.body, found.content_type)


async def call(route: Route, service: Service, request: HttpRequest, parameters: dict[str, str]) -> HttpAnswer:
    """Call a route's own function, on the loop or in a thread as it needs."""
    assert route.answer is not None
    if route.waits:
        answered: HttpAnswer = await route.answer(service, request, **parameters)  # type: ignore[misc]
        return answered
    return await asyncio.to_thread(route.answer, service, request, **parameters)  # type: ignore[arg-type]


def plain(request: HttpRequest, *, body: bytes | None = None) -> PlainRequest:
    """A request as it travels: without its token, and without what names its client."""
    headers = {name: request.headers[name] for name in _KEPT_HEADERS if name in request.headers}
    return PlainRequest(
        request.method, request.path, request.query, headers, bytes(request.body) if body is None else body
    )


def _elsewhere(request: HttpRequest, route: Route) -> PlainRequest | None:
    """The same change at another front. What was added to the repository is there for all; it is only to be loaded."""
    if (route.method, route.path) != _UPLOAD or not route.upload:
        return plain(request)
    if request.media_type() == "application/json":
        body = msgspec.json.decode(request.body)
        model, version, load = body["model"], body["version"], body.get("load", False)
    else:
        given = {name: (request.parameters(name) or [""])[-1] for name in ("model", "version", "load")}
        model, version, load = given["model"], given["version"], given["load"].lower() in ("true", "1")
    return PlainRequest("POST", f"/models/{model}/versions/{version}/load") if load else None
