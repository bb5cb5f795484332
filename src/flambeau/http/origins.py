"""The checks of Host, against DNS rebinding, and of Origin, against requests from foreign pages.

A client that is not a browser can put anything into these headers. That does no harm: browsers set them truthfully, and
only a browser can be tricked into sending requests for somebody else.
"""

from collections.abc import Mapping

from flambeau.errors import ConfigError
from flambeau.protocols.messages import HttpAnswer
from flambeau.settings.hosts import is_local
from flambeau.settings.service import Settings

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_MOST_REMEMBERED = 256
_ALLOWED_METHODS = "GET, POST"
_ALLOWED_HEADERS = "Authorization, Content-Type, X-Request-ID, X-Request-Timeout-Ms, traceparent"
_EXPOSED_HEADERS = "X-Request-ID, X-Model, X-Nonfinite-Outputs, Retry-After, Server-Timing"
_PREFLIGHT_SECONDS = "600"


class Hosts:
    """The host names that this server answers to; every name, if no setting restricts them."""

    def __init__(self, settings: Settings, *, ours: bool) -> None:
        """`ours`: the server is `flambeau serve` itself, and knows where it listens."""
        allowed = {each.lower() for each in listed(settings.allowed_hosts)}
        if "*" in allowed:
            allowed = set()
        elif ours and is_local(settings.host):
            allowed |= {"localhost", "127.0.0.1", "[::1]"}
        self._allowed = allowed
        self.seen: set[str | None] = set()
        """A cache of Host headers that passed, verbatim; look here first."""

    def __contains__(self, host: str | None) -> bool:
        """Whether a Host header, with its port if any, is allowed. `None` stands for a request without one."""
        if not self._allowed or host is None:
            return True
        name = host.lower()
        if not name.endswith("]"):  # not an IPv6 address without a port
            before, colon, port = name.rpartition(":")
            if colon and port.isascii() and port.isdigit():
                name = before
        if name.removesuffix(".") not in self._allowed:
            return False
        if len(self.seen) < _MOST_REMEMBERED:
            self.seen.add(host)
        return True


class Origins:
    """The other origins whose pages may call this server from a browser; none by default."""

    def __init__(self, settings: Settings) -> None:
        """Raises `ConfigError` for a member of `--cors-origins` that is not an origin."""
        self._listed = frozenset(each.lower().rstrip("/") for each in listed(settings.cors_origins))
        for each in self._listed - {"*"}:
            scheme, separator, rest = each.partition("://")
            if not (separator and scheme in ("http", "https") and rest) or "/" in rest:
                raise ConfigError(f"--cors-origins {each} is not an origin: write it as in https://example.org, or *")
        self.none = not self._listed

    def lists(self, origin: str | None) -> bool:
        """Whether pages of that origin may call this server."""
        return origin is not None and ("*" in self._listed or origin.lower() in self._listed)

    def may_send(self, method: str, headers: Mapping[str, str]) -> bool:
        """False for a request that an unlisted foreign page makes a browser send (CSRF)."""
        return (
            headers.get("sec-fetch-site") != "cross-site" or method in SAFE_METHODS or self.lists(headers.get("origin"))
        )

    def headers(self, headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        """The headers of an answer that let a page of a listed origin read it."""
        if self.none:
            return ()
        origin = headers.get("origin")
        if origin is None or not self.lists(origin):
            return (("Vary", "Origin"),)
        return (
            ("Access-Control-Allow-Origin", origin),
            ("Access-Control-Expose-Headers", _EXPOSED_HEADERS),
            ("Vary", "Origin"),
        )

    def preflight(self, method: str, headers: Mapping[str, str]) -> HttpAnswer | None:
        """The answer to a preflight request from a page of a listed origin; `None` for any other request."""
        if method != "OPTIONS" or self.none or "access-control-request-method" not in headers:
            return None
        if not self.lists(headers.get("origin")):
            return None
        allowed = (
            ("Access-Control-Allow-Methods", _ALLOWED_METHODS),
            ("Access-Control-Allow-Headers", _ALLOWED_HEADERS),
            ("Access-Control-Max-Age", _PREFLIGHT_SECONDS),
        )
        return HttpAnswer(204, b"", headers=allowed)


def listed(text: str | None) -> list[str]:
    """The members of a comma-separated setting."""
    return [each.strip() for each in (text or "").split(",") if each.strip()]
