"""A request and its answer as plain values, so that protocol code is pure functions behind every front."""

import itertools
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from urllib.parse import parse_qs

import msgspec
from msgspec.structs import force_setattr

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""A valid X-Request-ID."""

JSON = "application/json"

SAFE_HEADERS = (("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"))
"""On every answer: predictions are private, and browsers must not guess a content type."""


Charge = Callable[[int], None]
"""Charges the items of a request after its first to the client's rate limit. Raises `RequestError` above the limit."""


class HttpRequest(msgspec.Struct, frozen=True, gc=False):
    """A fully received request. Header names are lower-case; `received` is `time.monotonic()` at its first byte.

    `charge` is set where rates are limited. `identity` is the request id in answers, log and spans; by default it comes
    from the headers. `root` is the URL below which the client sees the routes, with a slash at the end. `client` is the
    client's address, where it is known.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes | memoryview
    received: float = msgspec.field(default_factory=time.monotonic)
    charge: Charge | None = None
    identity: str = ""
    root: str = "/"
    client: str = ""

    def __post_init__(self) -> None:
        if not self.identity:
            force_setattr(self, "identity", request_id(self.headers))  # once: it may be a new one

    def parameters(self, name: str) -> list[str]:
        """Every value of that name in the query."""
        return parse_qs(self.query, keep_blank_values=True).get(name, []) if self.query else []

    def key(self, header: str | None) -> str:
        """What tells this request's sender from others: that header's value if the request has it, else its id."""
        return self.headers.get(header, self.identity) if header is not None else self.identity

    def media_type(self) -> str:
        """The content type in lower case, without its parameters; empty if there is none."""
        return media_type_of(self.headers.get("content-type", ""))


def media_type_of(content_type: str) -> str:
    """The type that a Content-Type names, in lower case, without its parameters."""
    return content_type.partition(";")[0].strip().lower()


class HttpAnswer(msgspec.Struct, frozen=True, gc=False):
    """An answer. `headers` come in addition to Content-Type and Content-Length."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


_ON_EVERY_ANSWER = frozenset({"X-Request-ID", *(name for name, _ in SAFE_HEADERS)})


def sealed(answer: HttpAnswer, identity: str) -> HttpAnswer:
    """The answer with the headers that every answer carries. Its own override them, so no name appears twice."""
    own = answer.headers
    if len(own) == 1 and own[0][0] not in _ON_EVERY_ANSWER:  # nearly always
        headers = (("X-Request-ID", identity), *SAFE_HEADERS, own[0])
        return HttpAnswer(answer.status, answer.body, answer.content_type, headers)
    named = dict((("X-Request-ID", identity), *SAFE_HEADERS, *answer.headers))
    return HttpAnswer(answer.status, answer.body, answer.content_type, tuple(named.items()))


def request_id(headers: Mapping[str, str]) -> str:
    """The client's X-Request-ID if it is valid, else a new one."""
    given = headers.get("x-request-id")
    return given if given is not None and REQUEST_ID.fullmatch(given) else new_id()


_MOST_IDS = 1 << 24  # with one random prefix


class _Ids:
    """Ids of 16 hexadecimal digits: ten random ones for 16 million requests of this process, and their count.

    So no two requests of a process have the same, and hardly two of different processes; and the kernel need not be
    asked for random bytes each time. They are names, not secrets.
    """

    def __init__(self) -> None:
        self._forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._series = "", itertools.count(_MOST_IDS)  # the first id begins a series, so that importing draws nothing

    def __call__(self) -> str:
        prefix, count = self._series  # at once: another thread may begin a series meanwhile
        number = next(count)
        if number >= _MOST_IDS:
            prefix, number = secrets.token_hex(5), 0
            self._series = prefix, itertools.count(1)
        return f"{prefix}{number:06x}"


new_id = _Ids()
"""Makes the id of a request that came without one. May be called in any thread."""


def prefers(accept: str, media_type: str, *, over: str) -> bool:
    """Whether an `Accept` header names `media_type` with at least the quality of `over` (RFC 9110, 12.5.1).

    Only a type named in full counts: `*/*` asks for the usual one.
    """
    if media_type not in accept.lower():
        return False
    wanted = {name.strip(): _quality(parameters) for name, _, parameters in _ranges(accept)}
    return wanted.get(media_type, 0.0) > 0 and wanted[media_type] >= wanted.get(over, 0.0)


def _ranges(accept: str) -> list[tuple[str, str, str]]:
    return [each.lower().partition(";") for each in accept.split(",")]


def _quality(parameters: str) -> float:
    found = re.search(r"(?:^|;)\s*q\s*=\s*([0-9.]+)", parameters)
    try:
        return float(found[1]) if found else 1.0
    except ValueError:
        return 0.0
