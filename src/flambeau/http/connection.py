"""A connection of `flambeau serve`: a bounded connection that dispatches predictions itself.

A POST to a coroutine route, with a declared length within the limit, is collected here and passed to `dispatch.answer`.
That saves the messages, the events and the second task of ASGI: a third of the front's time for a request. Everything
else goes to the ASGI front, as do requests that access control refuses and those sent before an earlier one was
answered. Both give the same answers (`tests/http/test_fronts.py`, `tests/http/test_connection.py`). Bodies are not
parsed here.
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
    """In place of the event that uvicorn's applications wait for."""

    def set(self) -> None: ...


_NOBODY_WAITS = _Unheard()


class Exchange:
    """A request in progress and the state of its answer, under uvicorn's names for the latter."""

    __slots__ = (
        "body", "client", "disconnected", "headers", "keep_alive", "match", "message_event", "path", "query",
        "received", "response_complete", "root",
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
        client: str,
    ) -> None:
        self.match = match
        self.path = path
        self.query = query
        self.headers = headers
        self.root = root
        self.client = client
        self.received = time.monotonic()
        self.body = body
        self.keep_alive = keep_alive
        self.disconnected = False
        self.response_complete = False
        self.message_event = _NOBODY_WAITS

    def request(self, charge: Charge | None) -> HttpRequest:
        """The request, now complete. The exchange drops its body, so that an idle connection holds none."""
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
            client=self.client,
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
            self.cycle = self._arriving  # type: ignore[assignment]  # it has the attributes that uvicorn uses
            self._open_share()
            self._expect_body(counted=False)

    def on_body(self, body: bytes) -> None:
        if self._arriving is None:
            super().on_body(body)
            return
        self._take(len(body))
        if not self._arriving.body.add(body):  # a second check: the parser counts too
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
        if self._answering is not None:  # items that are still queued are then not computed
            self._answering.cancel()

    def _recognise(self) -> Exchange | None:
        """The request whose headers are complete, if it is to be answered here; else `None`.

        Whatever `framing` would refuse gives `None`, as do headers that appear twice.
        """
        url, parser = self.url, self.parser
        if parser.get_method() != b"POST" or b"%" in url.partition(b"?")[0] or b"#" in url or not url.isascii():
            return None
        if parser.get_http_version() != "1.1":
            return None
        path, _, query = url.decode().partition("?")
        forwarding = self._access.forwarding
        path = forwarding.below(path) if forwarding.active else path
        match = self._access.table.find("POST", path)
        if match is None or not match.route.waits or match.route.upload:
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
        client, scheme = self._address, str(self.scheme)
        if forwarding.active:
            client = forwarding.client(self._address, headers)
            scheme = forwarding.scheme(self._address, headers, scheme)
        port = self.server[1] if self.server is not None else None
        refusal = self._access.check(match.route.scope, "POST", headers, client, port=port)
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
            root=f"{scheme}://{headers['host']}{forwarding.prefix}/",
            client=client,
        )

    def _refuse(self, error: RequestError) -> None:
        self._forget()
        super()._refuse(error)

    def _forget(self) -> None:
        """Drop the part of a body that has arrived, and will not be answered."""
        if self._arriving is not None:
            self._arriving.body = BodyBuffer(0)
            self._arriving = None

    async def _answer(self, exchange: Exchange) -> None:
        request = exchange.request(self._access.charge(exchange.headers, exchange.client))
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
        # While the service drains, connections close, so that clients send their next request elsewhere.
        keep = exchange.keep_alive and not self._service.draining
        origins = self._access.origins
        added = () if origins.none else origins.headers(exchange.headers)
        self.transport.write(serialised(answer, self.server_state.default_headers, added, keep=keep))
        exchange.response_complete = True
        if not keep:
            self.transport.close()
        self.on_response_complete()
