"""A connection of `flambeau serve`: a bounded one, which has predictions answered itself.

A POST to a route that waits, whose length is declared and within the limit, is collected here and given to
`dispatch.answer` without the messages, the events and the second task that ASGI costs: a third of what the front takes
for a request. Everything else, whatever access control refuses, and every request that was sent before the one ahead of
it was answered, goes to the ASGI front, which gives the same answers (`tests/http/test_fronts.py`,
`tests/http/test_connection.py`). It knows nothing of what is in a body.
"""

import asyncio
import time

from flambeau.errors import RequestError
from flambeau.http import framing
from flambeau.http.access import REFUSED
from flambeau.http.bounded_connection import BoundedConnection, Front, StopParsingError, serialised
from flambeau.http.request_body import BodyBuffer
from flambeau.protocols import dispatch
from flambeau.protocols.messages import Charge, HttpAnswer, HttpRequest
from flambeau.protocols.routes import Match
from flambeau.telemetry import logs


class _Unheard:
    """Stands where uvicorn has the event that its applications wait for."""

    def set(self) -> None: ...


_NOBODY_WAITS = _Unheard()


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

    def request(self, charge: Charge | None, client: str) -> HttpRequest:
        """The request, which has come whole. Its body is let go of here: an idle connection holds none."""
        body, self.body = self.body, BodyBuffer(0)
        return HttpRequest(
            "POST",
            self.path,
            self.query,
            self.headers,
            body.whole(),
            self.received,
            charge,
            root=self.root,
            client=client,
        )


class DispatchingConnection(BoundedConnection):
    """One client's connection. The keywords are those of uvicorn's protocol classes."""

    def __init__(self, front: Front, **uvicorn: object) -> None:
        super().__init__(front, **uvicorn)
        self._arriving: Exchange | None = None
        self._answering: asyncio.Task[None] | None = None

    def on_headers_complete(self) -> None:
        if self._has_wish():
            return
        first = self.cycle is None or self.cycle.response_complete
        self._arriving = self._recognise() if first else None
        if self._arriving is None:
            super().on_headers_complete()
        else:
            self.cycle = self._arriving  # type: ignore[assignment]  # what uvicorn asks of it, it has
            self._open_share()
            self._expect_body(counted=False)

    def on_body(self, body: bytes) -> None:
        if self._arriving is None:
            super().on_body(body)
            return
        self._take(len(body))
        if not self._arriving.body.add(body):  # the parser counts too: this is a second lock on the same door
            self._fault = framing.BAD_HTTP
            raise StopParsingError

    def on_message_complete(self) -> None:
        exchange, self._arriving = self._arriving, None
        if exchange is None:
            super().on_message_complete()
            return
        self._has_come()
        self._answering = self.loop.create_task(self._answer(exchange))
        self.tasks.add(self._answering)  # uvicorn waits for these when it stops
        self._answering.add_done_callback(self.tasks.discard)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget()
        if self._answering is not None:  # what the client waited for is not computed if it still waits
            self._answering.cancel()

    def _recognise(self) -> Exchange | None:
        """The request whose headers are complete, if it is to be answered here.

        Nothing that `framing` would refuse comes through: no header is there twice, and none is too long.
        """
        url, parser = self.url, self.parser
        if parser.get_method() != b"POST" or b"%" in url.partition(b"?")[0] or b"#" in url or not url.isascii():
            return None
        if parser.get_http_version() != "1.1":
            return None
        path, _, query = url.decode().partition("?")
        match = self._access.table.find("POST", path)
        if match is None or not match.route.waits:
            return None
        if self._head > self._monitor.small_head and framing.too_large(url, self.headers, self._limits):
            return None
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self.headers}
        if len(headers) != len(self.headers) or len(headers) > self._limits.max_headers:
            return None
        length = framing.length_of(headers.get("content-length", ""))
        if length is None or length > self._limits.max_body_bytes:
            return None
        if "expect" in headers or "host" not in headers or self._spare is not None:
            return None
        refusal = self._access.check(match.route.scope, "POST", headers, self._address)
        if refusal is not None:
            self.scope[REFUSED] = refusal  # type: ignore[literal-required]  # ours, for the ASGI front
            return None
        return Exchange(
            match,
            path,
            query=query,
            headers=headers,
            body=BodyBuffer(length),
            keep_alive=parser.should_keep_alive(),
            root=f"{self.scheme}://{headers['host']}/",
        )

    def _refuse(self, error: RequestError) -> None:
        self._forget()
        super()._refuse(error)

    def _forget(self) -> None:
        """Let go of what has come of a body that will not be answered."""
        if self._arriving is not None:
            self._arriving.body = BodyBuffer(0)
            self._arriving = None

    async def _answer(self, exchange: Exchange) -> None:
        request = exchange.request(self._access.charge(exchange.headers, self._address), self._address)
        try:
            found = await dispatch.answer(self._service, exchange.match, request)
            if self.flow.write_paused:
                await self.flow.drain()
            self._answering = None
            if not exchange.disconnected:
                self._send(found, exchange)
        except asyncio.CancelledError:
            if not self.transport.is_closing():
                raise
            milliseconds = 1000 * (time.monotonic() - request.received)
            logs.event("the client is gone", id=request.identity, status=499, ms=milliseconds)
        finally:
            if not exchange.response_complete:
                self.transport.close()

    def _send(self, answer: HttpAnswer, exchange: Exchange) -> None:
        # While the service drains, the client is to take its next request elsewhere.
        keep = exchange.keep_alive and not self._service.draining
        origins = self._access.origins
        added = () if origins.none else origins.headers(exchange.headers)
        self.transport.write(serialised(answer, self.server_state.default_headers, added, keep=keep))
        exchange.response_complete = True
        if not keep:
            self.transport.close()
        self.on_response_complete()
