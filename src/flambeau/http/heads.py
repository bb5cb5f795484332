"""The head of a request, and the heads that came before, by their bytes.

A client sends the same head again and again. Once it was parsed, checked against the limits and found to be a
prediction, it need not be parsed again when the same bytes come back, over whichever connection. Access control is not
part of it: that is asked each time. What belongs to a connection, such as its client's address, is in `Peer`. This
module knows no body and no socket.
"""

from typing import NamedTuple

from flambeau.http import framing
from flambeau.protocols.messages import REQUEST_ID
from flambeau.protocols.routes import Match, RouteTable
from flambeau.system.known_bytes import KnownBytes

END = b"\r\n\r\n"
"""Ends a head."""

LONGEST = 2048
"""Bytes: longer heads are not kept."""

_MOST = 256  # heads in each of two generations


class Peer(NamedTuple):
    """Who sends a request, and where to: of the connection itself, or as a trusted proxy says.

    `server`: the host and the port at which it came in. `prefix`: of every path as the client sees it.
    """

    client: str
    scheme: str = "http"
    server: tuple[str, int | None] | None = None
    prefix: str = ""


class RequestHead:
    """The head of a request, whatever server read it. Header names are lower-case.

    `path` is unquoted and below the prefix. `length`: the bytes of the body, 0 without one, or `None` if it is sent in
    chunks, or the server did not say. `match` is its route, if it has one. `fields` are the headers as they came.
    """

    __slots__ = (
        "admitted", "expects", "fields", "headers", "identity", "is_prediction", "keep_alive", "length", "match",
        "method", "path", "query", "version",
    )  # fmt: skip

    def __init__(
        self,
        method: str,
        path: str,
        query: str,
        fields: framing.Headers,
        table: RouteTable,
        *,
        version: str = "1.1",
        keep_alive: bool = True,
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.version = version
        self.keep_alive = keep_alive
        self.fields = fields
        self.headers = headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in fields}
        self.match: Match | None = table.find(method, path)
        route = self.match.route if self.match is not None else None
        self.is_prediction = route is not None and method == "POST" and route.waits and route.scope == "infer"
        chunked = "transfer-encoding" in headers
        self.length = None if chunked else framing.length_of(headers.get("content-length", "0"))
        self.expects = "expect" in headers
        given = headers.get("x-request-id", "")
        self.identity = given if REQUEST_ID.fullmatch(given) else ""
        """The client's own request id, or empty."""
        self.admitted = False
        """Whether access control has let it pass before, which it may do differently today."""

    def is_vital(self) -> bool:
        """Whether the request has no body, and its route is vital."""
        has_body = "content-length" in self.headers or "transfer-encoding" in self.headers
        return self.match is not None and self.match.route.vital and not has_body


class KnownHeads(KnownBytes[RequestHead]):
    """Heads by their bytes, the end included."""

    def __init__(self) -> None:
        super().__init__(_MOST)

    def keep(self, raw: bytes, head: RequestHead) -> None:
        """Keep the head of a prediction over HTTP/1.1 with one plain Content-Length that keeps its connection open.

        Its lines must be those that the parser saw: each ended by CR LF, one for the request, one for each field and
        the empty one. Otherwise the parser may have ended the head elsewhere than where these bytes end.
        """
        headers = head.headers
        if not (head.is_prediction and head.keep_alive and head.version == "1.1" and "content-length" in headers):
            return
        if head.length is None or head.expects or len(headers) != len(head.fields):
            return
        lines = raw.count(b"\n")
        if lines == len(headers) + 2 == raw.count(b"\r\n") == raw.count(b"\r") and raw.endswith(END):
            super().keep(raw, head)
