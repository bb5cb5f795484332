"""The heads of predictions: what a connection has to know of one, and those that came before, by their bytes.

A client sends the same head again and again, so what was once parsed, checked against the limits and found to be a
prediction need not be parsed again when the same bytes come back, over whichever connection. Access control is not part
of it: that is asked each time. It knows no body and no socket.
"""

from flambeau.http import framing
from flambeau.protocols.messages import REQUEST_ID
from flambeau.protocols.routes import Match

END = b"\r\n\r\n"
"""Ends a head."""

LONGEST = 2048
"""Bytes: longer heads are not kept."""

_MOST = 256  # heads in each of two generations


class PredictionHead:
    """A head that was read: of a prediction over HTTP/1.1, with one plain Content-Length.

    `identity` is the client's own request id, or empty. `root` is the URL below which the client sees the routes,
    unless a proxy says otherwise. `admitted`: access control has let it pass before, which it may do differently today.
    """

    __slots__ = ("admitted", "headers", "identity", "keep_alive", "length", "match", "path", "query", "root")

    def __init__(
        self, match: Match, path: str, query: str, headers: dict[str, str], *, length: int, keep_alive: bool, root: str
    ) -> None:
        self.match = match
        self.path = path
        self.query = query
        self.headers = headers
        self.length = length
        self.keep_alive = keep_alive
        self.root = root
        self.admitted = False
        given = headers.get("x-request-id", "")
        self.identity = given if REQUEST_ID.fullmatch(given) else ""


class KnownHeads:
    """Heads by their bytes, the end included. The least recently used half goes when there are too many."""

    def __init__(self) -> None:
        self._young: dict[bytes, PredictionHead] = {}
        self._old: dict[bytes, PredictionHead] = {}

    def get(self, raw: bytes) -> PredictionHead | None:
        """The head that was read from exactly these bytes, or `None`."""
        found = self._young.get(raw)
        if found is None and (found := self._old.get(raw)) is not None:
            self._put(raw, found)
        return found

    def keep(self, raw: bytes, head: PredictionHead, fields: framing.Headers) -> None:
        """Keep a head that keeps its connection open; `fields` are what the parser found in it.

        Its lines must be those that the parser saw: each ended by CR LF, one for the request, one for each field and
        the empty one. Otherwise the parser may have ended the head elsewhere than where these bytes end.
        """
        lines = raw.count(b"\n")
        if head.keep_alive and lines == len(fields) + 2 == raw.count(b"\r\n") == raw.count(b"\r") and raw.endswith(END):
            self._put(raw, head)

    def _put(self, raw: bytes, head: PredictionHead) -> None:
        if len(self._young) >= _MOST:
            self._old, self._young = self._young, {}
        self._young[raw] = head
