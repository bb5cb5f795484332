"""A request that its connection has answered itself: what has come of it, and its answer as it goes over the wire."""

import time

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from flambeau.http.request_body import BodyBuffer
from flambeau.protocols.messages import Charge, HttpAnswer, HttpRequest
from flambeau.protocols.routes import Match


class Exchange:
    """A request on its way and the state of its answer, by the names that uvicorn gives to the latter."""

    __slots__ = (
        "body", "disconnected", "headers", "keep_alive", "match", "message_event", "path", "query", "received",
        "response_complete", "root",
    )  # fmt: skip

    def __init__(
        self,
        match: Match,
        path: str,
        *,
        query: str,
        headers: dict[str, str],
        body: BodyBuffer,
        keep_alive: bool,
        root: str,
    ) -> None:
        self.match = match
        self.path = path
        self.query = query
        self.headers = headers
        self.root = root
        self.received = time.monotonic()
        self.body = body
        self.keep_alive = keep_alive
        self.disconnected = False
        self.response_complete = False
        self.message_event = _NOBODY_WAITS

    def request(self, charge: Charge | None) -> HttpRequest:
        """The request, which has come whole. Its body is let go of here: an idle connection holds none."""
        body, self.body = self.body, BodyBuffer(0)
        return HttpRequest(
            "POST", self.path, self.query, self.headers, body.whole(), self.received, charge, root=self.root
        )


class _Unheard:
    """Stands where uvicorn has the event that its applications wait for."""

    def set(self) -> None: ...


_NOBODY_WAITS = _Unheard()


def serialised(
    answer: HttpAnswer, defaults: list[tuple[bytes, bytes]], more: tuple[tuple[str, str], ...], *, keep: bool
) -> bytes:
    """The answer as it goes over the wire, with the headers that the server adds to every answer (Date)."""
    added = "".join([f"{name.lower()}: {value}\r\n" for name, value in answer.headers + more])
    closing = "" if keep else "connection: close\r\n"
    head = f"content-type: {answer.content_type}\r\n{added}content-length: {len(answer.body)}\r\n{closing}\r\n"
    default = b"".join([b"%b: %b\r\n" % each for each in defaults])
    return b"".join((STATUS_LINE[answer.status], default, head.encode("latin-1"), answer.body))
