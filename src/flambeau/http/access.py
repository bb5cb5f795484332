"""Access control: every request of every front passes it, before its body is read. What is not permitted is refused.

What a route requires stands in the table of routes; this knows only scopes.
"""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass

from flambeau.errors import Code, ConfigError, RequestError
from flambeau.http import tokens
from flambeau.http.origins import Hosts, Origins
from flambeau.http.rates import Attempts, Rate
from flambeau.http.site import site_routes
from flambeau.protocols.errors import RateLimited, error_answer
from flambeau.protocols.messages import Charge, HttpAnswer, sealed
from flambeau.protocols.routes import RequiredScope
from flambeau.settings.service import Settings, is_local

PASSED = "flambeau.access"
"""The key under which scope and environment carry the `AccessControl` that a request has passed, and as what."""

REFUSED = "flambeau.refusal"
"""The key under which a scope carries the refusal that its connection was given."""


@dataclass(frozen=True, slots=True)
class Denial:
    """Why a request does not get through, and the headers that say what would help."""

    error: RequestError
    headers: tuple[tuple[str, str], ...] = ()

    def answer(self, identity: str) -> HttpAnswer:
        """The whole answer, with the headers that every answer carries."""
        return sealed(error_answer(self.error, identity, headers=self.headers), identity)


class AccessControl:
    """The decision over one service's requests, and the table of their routes."""

    def __init__(self, settings: Settings, held: tuple[tokens.Token, ...], *, ours: bool) -> None:
        """`ours`: the server is `flambeau serve` itself. Raises `ConfigError`."""
        self.origins = Origins(settings)
        self.table = site_routes(settings, tokens=bool(held))
        self._hosts = Hosts(settings, ours=ours)
        self._tokens = held
        self._rate = Rate(settings.rate_limit) if settings.rate_limit else None
        self._attempts = Attempts()

    def check(
        self, required: RequiredScope | None, method: str, headers: Mapping[str, str], client: str
    ) -> Denial | None:
        """The refusal of a request, if it is refused. Header names are lower-case.

        `required` is the scope of its route; `None` where somebody's own route declares none.
        """
        if required is None:
            return _refusal("forbidden", "this address is not open to anybody")
        host = headers.get("host")
        if host not in self._hosts.seen and host not in self._hosts:
            return _refusal("bad_host", "this server does not answer to the name in the header Host", _HOST_HINT)
        if "sec-fetch-site" in headers and not self.origins.may_send(method, headers):
            return _refusal("forbidden", "pages of other sites may not send requests to this server", _ORIGIN_HINT)
        token = None
        if required != "public" and self._tokens:
            found = self._identify(headers.get("authorization"), client)
            if isinstance(found, Denial):
                return found
            if required == "admin" and found.scope != "admin":
                return _refusal("forbidden", "this token is not for this: it takes one with the scope admin")
            token = found
        if self._rate is not None and required == "infer":
            wait = self._rate.take(token.digest.hex() if token else network(client))
            if wait:
                return _refusal("rate_limited", "too many requests for now", headers=(("Retry-After", str(wait)),))
        return None

    def charge(self, headers: Mapping[str, str], client: str) -> Charge | None:
        """Counts the further items of a request that has passed; `None` where rates are not limited (A16)."""
        if self._rate is None:
            return None
        rate = self._rate
        key = self._payer(headers, client)

        def take(items: int) -> None:
            if items >= rate.most:  # waiting would not help
                raise RequestError(
                    f"a request of {items + 1} items is more than the {rate.most} that may be sent in the time "
                    "(--rate-limit), for each counts",
                    code="too_many_items",
                )
            wait = rate.take(key, items) if items > 0 else 0
            if wait:
                raise RateLimited(f"{items + 1} items are more than are left for now, and each counts", wait)

        return take

    def _payer(self, headers: Mapping[str, str], client: str) -> str:
        text = tokens.presented(headers.get("authorization", "")) if self._tokens else None
        token = tokens.match(self._tokens, text) if text is not None else None
        return token.digest.hex() if token else network(client)

    def _identify(self, authorization: str | None, client: str) -> tokens.Token | Denial:
        if authorization is None:
            return _refusal("unauthorized", "a token is needed: send the header Authorization: Bearer TOKEN")
        text = tokens.presented(authorization)
        token = tokens.match(self._tokens, text) if text is not None else None
        if token is not None:
            return token
        wait = self._attempts.note(network(client))
        if wait:
            return _refusal("too_many_attempts", "too many wrong tokens", headers=(("Retry-After", str(wait)),))
        return _refusal("unauthorized", "this token is not known here")


_HOST_HINT = "the operator can allow it with --allowed-hosts"
_ORIGIN_HINT = "the operator can allow a page's origin with --cors-origins"
_CHALLENGE = (("WWW-Authenticate", 'Bearer realm="flambeau"'),)


def _refusal(code: Code, message: str, hint: str | None = None, *, headers: tuple[tuple[str, str], ...] = ()) -> Denial:
    return Denial(RequestError(message, code=code, hint=hint), _CHALLENGE if code == "unauthorized" else headers)


def network(client: str) -> str:
    """What counts as one client: an address of IPv4, or the /64 of one of IPv6, which a single customer has."""
    if ":" not in client:
        return client
    try:
        return str(ipaddress.IPv6Network((client.partition("%")[0], 64), strict=False))
    except ValueError:
        return client


def open_access(settings: Settings, *, ours: bool) -> AccessControl:
    """What the settings and the environment ask for. Raises `ConfigError` for a service open to everybody."""
    held = tokens.read(settings.tokens_file, os.environ)
    if ours and not held and not is_local(settings.host) and not settings.insecure_no_auth:
        raise ConfigError(
            f"--host {settings.host} would serve everybody who can reach this machine, without asking who they are: "
            "run 'flambeau token --scope infer > tokens; chmod 600 tokens' and add --tokens-file tokens, "
            "or --insecure-no-auth if the network in front of it is trusted"
        )
    return AccessControl(settings, held, ours=ours)
