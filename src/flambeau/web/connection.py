"""A connection of `flambeau serve`: uvicorn's own, with a short way for predictions.

A prediction whose length is declared and within the limit is collected and answered here, by `hot.answer`, without the
messages, the events and the second task that ASGI costs: a third of what the front takes for a request. Everything
else, and every request that was sent before the one ahead of it was answered, goes to the lane, which gives the same
answers (`tests/test_fronts.py`, `tests/test_connection.py`). It knows nothing of what is in a body.
"""

import asyncio
import time
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from flambeau import logs
from flambeau.service import Service
from flambeau.web import hot
from flambeau.web.http import HttpAnswer, HttpRequest, request_id


class HotConnection(HttpToolsProtocol):
    """One client's connection. The keywords are those of uvicorn's protocol classes."""

    def __init__(self, service: Service, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._service = service
        self._limit = service.settings.max_body_bytes
        self._arriving: _Exchange | None = None
        self._answering: asyncio.Task[None] | None = None

    def on_headers_complete(self) -> None:
        first = self.cycle is None or self.cycle.response_complete
        self._arriving = self._recognise() if first else None
        if self._arriving is None:
            super().on_headers_complete()
        else:
            self.cycle = self._arriving  # type: ignore[assignment]  # what uvicorn asks of it, it has

    def on_body(self, body: bytes) -> None:
        if self._arriving is None:
            super().on_body(body)
        else:
            self._arriving.chunks.append(body)

    def on_message_complete(self) -> None:
        exchange, self._arriving = self._arriving, None
        if exchange is None:
            super().on_message_complete()
            return
        self._answering = self.loop.create_task(self._answer(exchange))
        self.tasks.add(self._answering)  # uvicorn waits for these when it stops
        self._answering.add_done_callback(self.tasks.discard)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._answering is not None:  # what the client waited for is not computed if it still waits
            self._answering.cancel()

    def _recognise(self) -> "_Exchange | None":
        """The request whose headers are complete, if it is one for the short way."""
        path, _, query = self.url.partition(b"?")
        if self.parser.get_method() != b"POST" or not path.startswith(b"/predict") or b"%" in path or b"#" in self.url:
            return None
        if self.expect_100_continue or self.parser.should_upgrade() or self.parser.get_http_version() != "1.1":
            return None
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self.headers}
        length = headers.get("content-length", "")
        if not (length.isascii() and length.isdigit() and int(length[:19]) <= self._limit):
            return None
        if not (self.url.isascii() and hot.is_hot("POST", path.decode())):
            return None
        return _Exchange(path.decode(), query.decode(), headers, keep_alive=self.parser.should_keep_alive())

    async def _answer(self, exchange: "_Exchange") -> None:
        try:
            found = await hot.answer(self._service, exchange.request())
            if self.flow.write_paused:
                await self.flow.drain()
            self._answering = None
            if not exchange.disconnected:
                self._send(found, exchange)
        except asyncio.CancelledError:
            if not self.transport.is_closing():
                raise
            milliseconds = 1000 * (time.monotonic() - exchange.received)
            logs.event("the client is gone", id=request_id(exchange.headers), status=499, ms=milliseconds)
        finally:
            if not exchange.response_complete:
                self.transport.close()

    def _send(self, answer: HttpAnswer, exchange: "_Exchange") -> None:
        # While the service drains, the client is to take its next request elsewhere.
        keep = exchange.keep_alive and not self._service.draining
        self.transport.write(_serialised(answer, self.server_state.default_headers, keep=keep))
        exchange.response_complete = True
        if not keep:
            self.transport.close()
        self.on_response_complete()


class _Exchange:
    """A request on its way and the state of its answer, by the names that uvicorn gives to the latter."""

    __slots__ = (
        "chunks", "disconnected", "headers", "keep_alive", "message_event", "path", "query", "received",
        "response_complete",
    )  # fmt: skip

    def __init__(self, path: str, query: str, headers: dict[str, str], *, keep_alive: bool) -> None:
        self.path = path
        self.query = query
        self.headers = headers
        self.received = time.monotonic()
        self.chunks: list[bytes] = []
        self.keep_alive = keep_alive
        self.disconnected = False
        self.response_complete = False
        self.message_event = _NOBODY_WAITS

    def request(self) -> HttpRequest:
        body = self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
        return HttpRequest("POST", self.path, self.query, self.headers, body, self.received)


class _Unheard:
    """Stands where uvicorn has the event that its applications wait for."""

    def set(self) -> None: ...


_NOBODY_WAITS = _Unheard()


def _serialised(answer: HttpAnswer, defaults: list[tuple[bytes, bytes]], *, keep: bool) -> bytes:
    """The answer as it goes over the wire, with the headers that the server adds to every answer (Date)."""
    added = "".join([f"{name.lower()}: {value}\r\n" for name, value in answer.headers])
    closing = "" if keep else "connection: close\r\n"
    head = f"content-type: {answer.content_type}\r\n{added}content-length: {len(answer.body)}\r\n{closing}\r\n"
    default = b"".join([b"%b: %b\r\n" % each for each in defaults])
    return b"".join((STATUS_LINE[answer.status], default, head.encode("latin-1"), answer.body))
