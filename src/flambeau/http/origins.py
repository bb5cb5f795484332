"""Where a request says that it goes to and comes from: Host against DNS rebinding, and the origins of other pages.

It trusts nobody who is not a browser to tell the truth; browsers do, and only they can be made to ask for others.
"""

from collections.abc import Mapping

from flambeau.errors import ConfigError
from flambeau.protocols.messages import HttpAnswer
from flambeau.settings.service import Settings, is_local

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_MOST_REMEMBERED = 256
_ALLOWED_METHODS = "GET, POST"
_ALLOWED_HEADERS = "Authorization, Content-Type, X-Request-ID, X-Request-Timeout-Ms, traceparent"
_EXPOSED_HEADERS = "X-Request-ID, X-Model, X-Nonfinite-Outputs, Retry-After, Server-Timing"
_PREFLIGHT_SECONDS = "600"


class Hosts:
    """The names that this server answers to; all of them, where nothing was said."""

    def __init__(self, settings: Settings, *, ours: bool) -> None:
        """`ours`: the server is `flambeau serve` itself, and knows where it listens."""
        allowed = {each.lower() for each in listed(settings.allowed_hosts)}
        if ours and is_local(settings.host):
            allowed |= {"localhost", "127.0.0.1", "[::1]"}
        self._allowed = allowed
        self.seen: set[str | None] = set()
        """Some of those that were found to be ours, as they came; to be looked at first."""

    def __contains__(self, host: str | None) -> bool:
        """Whether a Host header, port and all, is one of ours. `None` stands for a request without one."""
        if not self._allowed or host is None:
            return True
        name = host.lower()
        if not name.endswith("]"):  # an address of IPv6 without a port
            before, colon, port = name.rpartition(":")
            if colon and port.isascii() and port.isdigit():
                name = before
        if name.removesuffix(".") not in self._allowed:
            return False
        if len(self.seen) < _MOST_REMEMBERED:
            self.seen.add(host)
        return True


class Origins:
    """The pages of other origins that may call this server from a browser; none, where nothing was said."""

    def __init__(self, settings: Settings) -> None:
        """Raises `ConfigError` for what is no origin."""
        self._listed = frozenset(each.lower().rstrip("/") for each in listed(settings.cors_origins))
        for each in self._listed - {"*"}:
            scheme, separator, rest = each.partition("://")
            if not (separator and scheme in ("http", "https") and rest) or "/" in rest:
                raise ConfigError(f"--cors-origins {each} is not an origin: write it as in https://example.org, or *")
        self.none = not self._listed

    def lists(self, origin: str | None) -> bool:
        """Whether pages of that origin may call."""
        return origin is not None and ("*" in self._listed or origin.lower() in self._listed)

    def may_send(self, method: str, headers: Mapping[str, str]) -> bool:
        """False for what a foreign page makes a browser send although nobody listed it (CSRF)."""
        return (
            headers.get("sec-fetch-site") != "cross-site"
            or method in _SAFE_METHODS
            or self.lists(headers.get("origin"))
        )

    def headers(self, headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        """What an answer carries so that the page may read it."""
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
        """The answer to a browser that asks whether it may; `None` when this is no such question from a listed page."""
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
