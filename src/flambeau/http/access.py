"""Access control: every front checks every request here before it reads the body. What is not permitted is refused.

The scope that a route requires is in the table of routes.
"""

import ipaddress
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from flambeau.errors import Code, ConfigError, RequestError
from flambeau.http import tokens
from flambeau.http.forwarded import Forwarding
from flambeau.http.origins import SAFE_METHODS, Hosts, Origins
from flambeau.protocols import (
    models,
    openapi,
    platform_routes,
    sagemaker_runtime,
    torchserve,
    torchserve_models,
    v1,
    v2_routes,
)
from flambeau.protocols.content_encoding import UnpackingBudget
from flambeau.protocols.dispatch import NATIVE
from flambeau.protocols.errors import RateLimited
from flambeau.protocols.messages import Charge, HttpAnswer, HttpRequest, sealed
from flambeau.protocols.refusals import refusal_at
from flambeau.protocols.routes import OPEN, RequiredScope, Route, RouteTable
from flambeau.settings.hosts import is_local
from flambeau.settings.service import Settings
from flambeau.system.machine import pip_install
from flambeau.ui import openapi_page, pages

PASSED = "flambeau.access"
"""The key in a WSGI environment for the `AccessControl` that a request passed, and for which scope."""


@dataclass(frozen=True, slots=True)
class Denial:
    """Why a request is refused, and the headers that tell the client what to do."""

    error: RequestError
    headers: tuple[tuple[str, str], ...] = ()

    def answer(self, identity: str, path: str) -> HttpAnswer:
        """The whole answer at a path, with the headers that every answer carries."""
        return sealed(refusal_at(path, self.error, identity, headers=self.headers), identity)


class KeyedLimit(Protocol):
    """A limit on a rate, for each key."""

    most: int

    def take(self, key: str, items: int = 1) -> int:
        """Count `items` of `key`: 0 if they may go on, else the seconds until the key may try again."""
        ...


class AttemptLimit(Protocol):
    """A limit on wrong tokens, for each network."""

    def note(self, address: str) -> int:
        """Count a wrong token: 0 while it may be a mistake, else the seconds until the client may try again."""
        ...


@dataclass(frozen=True, slots=True)
class Sharing:
    """What one of several fronts shares with the others: limits, and routes that answer for all of them."""

    rate: KeyedLimit | None
    attempts: AttemptLimit
    route: Callable[[Route], Route]


class AccessControl:
    """Decides on the requests to one service; holds the table of their routes."""

    def __init__(
        self, settings: Settings, held: tokens.HeldTokens, *, ours: bool, sharing: Sharing | None = None
    ) -> None:
        """`ours`: the server is `flambeau serve` itself. `sharing`: of one front of several. Raises `ConfigError`."""
        self.origins = Origins(settings)
        self.forwarding = Forwarding(settings)
        self._hosts = Hosts(settings, ours=ours)
        self._tokens = self.held = held
        self._rate: KeyedLimit | None
        self._attempts: AttemptLimit
        if sharing is not None:
            self._rate, self._attempts = sharing.rate, sharing.attempts
        else:
            self._rate, self._attempts = Rate(settings.rate_limit) if settings.rate_limit else None, Attempts()
        self.never_changes = not held and self._rate is None
        """Whether its decision depends on the headers alone: whoever sends the same is let pass again."""
        self._local = settings.guarded
        self._admin_port = settings.management_port
        guarded = bool(held) or settings.managed_here
        self.managing = models.why_nothing_changes(ours=ours, guarded=guarded)
        """Why nobody may load or unload models over HTTP; `None` where an admin may."""
        self.managing_over_grpc = models.why_nothing_changes(ours=ours, guarded=bool(held) or settings.managed_by_grpc)
        """The same for gRPC."""
        self.table = site_routes(settings, self, ours=ours, tokens=bool(held))
        if sharing is not None:
            self.table = RouteTable(map(sharing.route, self.table))

    def check(
        self,
        required: RequiredScope | None,
        method: str,
        headers: Mapping[str, str],
        client: str,
        *,
        port: int | None = None,
    ) -> Denial | None:
        """Why a request is refused; `None` if it may pass. Header names are lower-case.

        `required` is the scope of its route; `None` for an application's own route that declares none. `port` is the
        one that it came in by: where there is one for management, nothing is managed at others.
        """
        if required is None:
            return _refusal("forbidden", "this route is closed: it declares no required scope")
        host = headers.get("host")
        if required != "health" and host not in self._hosts.seen and host not in self._hosts:
            return _refusal("bad_host", "this server does not answer to the name in the header Host", _HOST_HINT)
        if "sec-fetch-site" in headers and not self.origins.may_send(method, headers):
            return _refusal("forbidden", _NO_FOREIGN_PAGE, _ORIGIN_HINT)
        if required == "admin" and method not in SAFE_METHODS and not _from_no_page(headers, host):
            return _refusal("forbidden", _NO_PAGE)
        if required == "admin" and self._admin_port is not None and port != self._admin_port:
            return _refusal("forbidden", NOT_HERE)
        token = self._admitted(required, headers, client)
        if isinstance(token, Denial):
            return token
        if self._rate is not None and required == "infer" and method not in SAFE_METHODS:
            wait = self._rate.take(token.digest.hex() if token else network(client))
            if wait:
                return _refusal("rate_limited", _TOO_MANY, headers=(("Retry-After", str(wait)),))
        return None

    def refusal_of_call(self, required: RequiredScope, metadata: Mapping[str, str], client: str) -> RequestError | None:
        """Why a gRPC call is refused; `None` if it may be made. A call has no `Host` and changes something if it can.

        No browser makes gRPC calls. Those that a proxy makes for one have its headers, and are judged by them.
        """
        if not self.origins.may_send("POST", metadata):
            return RequestError(_NO_FOREIGN_PAGE, code="forbidden", hint=_ORIGIN_HINT)
        if required == "admin" and not _from_no_page(metadata, None):
            return RequestError(_NO_PAGE, code="forbidden")
        found = self._admitted(required, metadata, client)
        return found.error if isinstance(found, Denial) else None

    def rate_call(self, metadata: Mapping[str, str], client: str) -> None:
        """Count a prediction over gRPC towards the rate limit. Raises `RequestError` above it."""
        if self._rate is not None and (wait := self._rate.take(self._payer(metadata, client))):
            raise RateLimited(_TOO_MANY, wait)

    def _admitted(
        self, required: RequiredScope, headers: Mapping[str, str], client: str
    ) -> tokens.Token | Denial | None:
        """The token of a request that has one for the scope, `None` where none is needed; else the denial."""
        if required in OPEN or not self._tokens:
            return None
        found = self._identify(headers.get("authorization"), client)
        if isinstance(found, tokens.Token) and required == "admin" and found.scope != "admin":
            return _refusal("forbidden", "this address needs a token with the scope admin")
        return found

    def is_admin(self, headers: Mapping[str, str]) -> bool:
        """Whether a request comes from who may manage the server: with an admin token, or where no tokens are, from
        this machine."""
        if not self._tokens:
            return self._local
        text = tokens.presented(headers.get("authorization", ""))
        token = tokens.match(self._tokens.now(), text) if text is not None else None
        return token is not None and token.scope == "admin"

    def name_of(self, headers: Mapping[str, str], client: str) -> str:
        """Who sends a request that changes something, for the log."""
        request = HttpRequest("POST", "", "", headers, b"", client=client)
        return models.sender(request, tokens=bool(self._tokens))

    def charge(self, headers: Mapping[str, str], client: str) -> Charge | None:
        """What charges the items of a request after its first; `None` where rates are not limited."""
        if self._rate is None:
            return None
        rate = self._rate
        key = self._payer(headers, client)

        def take(items: int) -> None:
            if items >= rate.most:  # waiting would not help
                raise RequestError(
                    f"the request has {items + 1} items, and each counts: the rate limit allows {rate.most} "
                    "(--rate-limit)",
                    code="too_many_items",
                )
            wait = rate.take(key, items) if items > 0 else 0
            if wait:
                raise RateLimited(f"the rate limit has no room for {items + 1} items now: each counts", wait)

        return take

    def _payer(self, headers: Mapping[str, str], client: str) -> str:
        text = tokens.presented(headers.get("authorization", "")) if self._tokens else None
        token = tokens.match(self._tokens.now(), text) if text is not None else None
        return token.digest.hex() if token else network(client)

    def _identify(self, authorization: str | None, client: str) -> tokens.Token | Denial:
        if authorization is None:
            return _refusal("unauthorized", "a token is needed: send the header Authorization: Bearer TOKEN")
        text = tokens.presented(authorization)
        token = tokens.match(self._tokens.now(), text) if text is not None else None
        if token is not None:
            return token
        wait = self._attempts.note(network(client))
        if wait:
            return _refusal("too_many_attempts", "too many wrong tokens", headers=(("Retry-After", str(wait)),))
        if text is None:
            return _refusal(
                "unauthorized", "the header Authorization holds no bearer token: send it as Authorization: Bearer TOKEN"
            )
        return _refusal("unauthorized", "this token is not known here")


def _from_no_page(headers: Mapping[str, str], host: str | None) -> bool:
    """Whether a request comes from a program, or from a page of this server: other ports of this machine are others."""
    origin = headers.get("origin")
    same = origin is None or (host is not None and origin.partition("://")[2] == host)
    return same and headers.get("sec-fetch-site", "none") in ("none", "same-origin")


NOT_HERE = "nothing is managed at this address: the service has another for that"
_NO_FOREIGN_PAGE = "pages of other sites may not send requests to this server"
_NO_PAGE = "pages may not change anything here: use a program, or flambeau models"
_TOO_MANY = "too many requests for now"
_HOST_HINT = "the operator can allow it with --allowed-hosts"
_ORIGIN_HINT = "the operator can allow a page's origin with --cors-origins"
_CHALLENGE = (("WWW-Authenticate", 'Bearer realm="flambeau"'),)


def _refusal(code: Code, message: str, hint: str | None = None, *, headers: tuple[tuple[str, str], ...] = ()) -> Denial:
    return Denial(RequestError(message, code=code, hint=hint), _CHALLENGE if code == "unauthorized" else headers)


def network(client: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 of an IPv6 address, which one customer has to itself."""
    if ":" not in client:
        return client
    try:
        return str(ipaddress.IPv6Network((client.partition("%")[0], 64), strict=False))
    except ValueError:
        return client


def open_access(settings: Settings, *, ours: bool) -> AccessControl:
    """The access control of the settings and the environment. Raises `ConfigError` for a service open to everybody."""
    held = tokens.HeldTokens(settings.tokens_file, tokens.read(None, os.environ))
    if settings.grpc_port and not ours:
        raise ConfigError(
            f"grpc_port={settings.grpc_port}: only flambeau serve listens for gRPC, an application does not"
        )
    if settings.fronts != 1 and not ours:
        raise ConfigError(
            f"fronts={settings.fronts}: only flambeau serve has several fronts: other servers have their own processes"
        )
    open_to_others = next((where for where in settings.addresses if not is_local(where[1])), None)
    if ours and not held and open_to_others is not None and not settings.insecure_no_auth:
        raise ConfigError(
            f"{' '.join(open_to_others)} would serve everybody who can reach this machine, without asking who they "
            "are: run 'flambeau token --scope infer > tokens; chmod 600 tokens' and add --tokens-file tokens, "
            "or --insecure-no-auth if the network in front of it is trusted"
        )
    return AccessControl(settings, held, ours=ours)


# Rates: of requests, by the `limits` library, where a rate is set; of wrong tokens always. Memory is bounded.


_MOST_KEYS = 4096
ATTEMPTS, ATTEMPT_WINDOW = 10, 60.0
"""Wrong tokens of a network that may be mistakes, in so many seconds."""


class Rate:
    """A rate limit for each key: two counters per key, whatever the rate."""

    def __init__(self, text: str) -> None:
        """`text` is as in `100/minute`. Raises `ConfigError`."""
        try:
            import limits
            from limits.storage import MemoryStorage
            from limits.strategies import SlidingWindowCounterRateLimiter
        except ImportError as error:
            raise ConfigError(f"--rate-limit needs the package limits: {pip_install('rate-limit')}") from error
        try:
            self._rate = limits.parse(text)
        except ValueError:
            raise ConfigError(f"--rate-limit {text} is not a rate: write it as in 100/minute or 5/second") from None
        self.most: int = self._rate.amount
        self.period = float(self._rate.get_expiry())
        """Seconds."""
        self._storage = MemoryStorage()
        self._limiter = SlidingWindowCounterRateLimiter(self._storage)

    def take(self, key: str, items: int = 1) -> int:
        """Count `items` of `key`: 0 if they may go on, else the seconds until the key may try again.

        Refused items are not counted.
        """
        if (
            len(self._storage.storage) > 2 * _MOST_KEYS
            and self._limiter.get_window_stats(self._rate, key).remaining == self._rate.amount
        ):
            key = "others"  # new keys share one, so that a flood of addresses cannot fill the memory
        if self._limiter.hit(self._rate, key, cost=items):
            return 0
        return max(1, math.ceil(self._limiter.get_window_stats(self._rate, key).reset_time - time.time()))


class Attempts:
    """Wrong tokens by client network. A right token always passes, whatever wrong ones came from the same address."""

    def __init__(self) -> None:
        self._failed: OrderedDict[str, tuple[float, int]] = OrderedDict()  # when its window began, and how many

    def note(self, address: str) -> int:
        """Count a wrong token: 0 while it may be a mistake, else the seconds until the client may try again."""
        now = time.monotonic()
        began, count = self._failed.get(address, (now, 0))
        if now - began >= ATTEMPT_WINDOW:
            began, count = now, 0
        self._failed[address] = (began, count + 1)
        self._failed.move_to_end(address)
        if len(self._failed) > _MOST_KEYS:
            self._failed.popitem(last=False)
        return 0 if count < ATTEMPTS else math.ceil(ATTEMPT_WINDOW - (now - began))


# The one table of routes of a server: those of the protocols and of the pages, and the document about them.


def site_routes(settings: Settings, access: AccessControl, *, ours: bool, tokens: bool) -> RouteTable:
    """The table behind that access control.

    `ours`: the server is `flambeau serve` itself. `tokens`: some requests need a token.
    """
    document = openapi.route(lambda: table, tokens=tokens)
    guarded = tokens or settings.managed_here
    about_models = models.routes(access.is_admin, ours=ours, guarded=guarded, tokens=tokens)
    unpacking = UnpackingBudget(settings)
    v2 = v2_routes.routes(unpacking, access.is_admin, ours=ours, guarded=guarded, tokens=tokens)
    theirs = torchserve.routes(document.answer)
    routes = [
        *NATIVE,
        *about_models,
        *v2,
        *v1.routes(unpacking),
        *theirs,
        *sagemaker_runtime.routes(unpacking),
        document,
        *pages.ROUTES,
        *openapi_page.ROUTES,
    ]
    if settings.model_store is not None:
        of_store = torchserve_models.routes(settings.model_store, ours=ours, guarded=guarded, tokens=tokens)
        routes = [*of_store, *(route for route in routes if not route.path.startswith("/models"))]
    if settings.metrics_public or settings.metrics_address is not None:
        routes = [replace(route, scope="public") if route.path == "/metrics" else route for route in routes]
    table = RouteTable(platform_routes.added(routes, settings, unpacking))
    return table
