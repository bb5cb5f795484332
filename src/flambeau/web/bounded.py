"""A connection with bounds: uvicorn's own, with limits, patience, and refusals in our own form.

What is no request at all, or could be read as two, is answered here, and ends the connection. It knows nothing of
routes.
"""

import asyncio
from dataclasses import dataclass

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from flambeau import logs
from flambeau.errors import Code, RequestError
from flambeau.service import Service
from flambeau.web import framing
from flambeau.web.access.gate import Gate, Refusal
from flambeau.web.errors import STATUS
from flambeau.web.exchange import serialised
from flambeau.web.http import request_id
from flambeau.web.patience import Reading, Watch, Writing

_MOST_AHEAD = 64  # requests sent before the first of them was answered


@dataclass(frozen=True, slots=True)
class Front:
    """What all connections of a server share."""

    service: Service
    gate: Gate
    watch: Watch


class _StopError(Exception):
    """Raised within the parser's callbacks, to have it stop."""


class BoundedConnection(HttpToolsProtocol):
    """One client's connection. The keywords are those of uvicorn's protocol classes."""

    def __init__(self, front: Front, **uvicorn: object) -> None:
        super().__init__(**uvicorn)  # type: ignore[arg-type]  # uvicorn passes them on as it knows them
        self._service, self._watch = front.service, front.watch
        self._limits = front.service.settings
        self._reading, self._writing = Reading(front.watch), Writing(front.watch)
        self._address = ""
        self._fault: RequestError | None = None
        self._closing = False  # at the last look
        self._deaf = False  # it has been answered for the last time, and what still comes is not read
        self._counted = False  # whether the bytes of the body are
        self._piece = self._head = self._body = self._around = self._chunks = 0  # bytes, but for the last

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        room = self._watch.enter(self._address)
        if len(self.connections) > self._limits.max_connections:
            self._refuse(RequestError("there are too many connections to this server", code="overloaded"))
        elif not room:
            self._refuse(RequestError("there are too many connections from this address", code="rate_limited"))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._watch.leave(self._address)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._piece = len(data)
        if self._reading.waiting != "rest":
            self._count(self._piece)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # to which we do not: the request is answered as what it is
            self._deaf = True
            self.cycle.keep_alive = False
        except httptools.HttpParserError:
            if not self._deaf:
                self._refuse(self._fault or framing.BAD_HTTP)
            return
        if self._reading.waiting != "rest":
            self._bound()

    def _count(self, size: int) -> None:
        if self._reading.waiting == "head":
            self._head += size
        else:
            self._reading.arrived += size
            self._around += size

    def _bound(self) -> None:
        """Refuse a head that does not end, and a body of little but its framing."""
        if self._reading.waiting == "body":
            if self._counted and framing.too_much_overhead(self._chunks, self._around - self._body):
                self._refuse(RequestError("there is too much around the chunks of the body", code="too_many_chunks"))
        elif self._head > self._limits.max_request_line:
            found = framing.too_large(self.url, self.headers, self._limits)
            if found is None and self._head > self._limits.max_request_line + self._limits.max_headers_bytes:
                found = framing.head_too_large("the headers do not end")
            if found is not None:
                self._refuse(found)

    def look(self, now: float) -> None:
        """Act on what is overdue."""
        left = self.transport.get_write_buffer_size()
        if self._writing.overdue(left, now):
            self._note("client_too_slow", "the client does not read its answer")
            self.transport.abort()
        elif self.transport.is_closing():
            if not left and self._closing:  # with TLS a client can leave our goodbye unanswered
                self.transport.abort()
            self._closing = True
        elif self.flow.read_paused:  # we let the client wait, and not it us
            self._reading.again(now)
        elif self._reading.overdue(now):
            if self._reading.waiting != "rest":
                self._refuse(RequestError("the request did not come in time", code="client_too_slow"))
            elif self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    # What the parser calls

    def on_message_begin(self) -> None:
        if self._deaf:
            raise _StopError
        super().on_message_begin()
        self._reading.waiting, self._reading.since = "head", self._watch.now
        self._head, self._chunks = self._piece, 0

    def on_headers_complete(self) -> None:
        self._check_head()
        super().on_headers_complete()
        self._expect_body(counted=True)

    def _check_head(self) -> None:
        parser = self.parser
        self._fault = framing.fault(
            version=parser.get_http_version(), url=self.url, headers=self.headers, upgrade=parser.should_upgrade()
        ) or framing.too_large(self.url, self.headers, self._limits)
        if len(self.pipeline) >= _MOST_AHEAD:
            self._fault = RequestError("too many requests were sent ahead of their answers", code="bad_http")
        if self._fault is not None:
            raise _StopError

    def _expect_body(self, *, counted: bool) -> None:
        self.headers = []  # what comes after the body is not to be taken for what was checked
        self._reading.waiting = "body"
        self._reading.again(self._watch.now)
        self._body = self._around = 0
        self._counted = counted

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if framing.too_many_chunks(self._chunks, self._body):
            self._fault = RequestError("the body comes in too many pieces", code="too_many_chunks")
            raise _StopError

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._has_come()
        super().on_message_complete()

    def _has_come(self) -> None:
        self._reading.waiting, self._reading.since = "rest", self._watch.now
        self._deaf = not self.cycle.keep_alive

    def on_response_complete(self) -> None:
        """As uvicorn's, without a timer for every pause: `look` sees those that are too long."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._reading.waiting == "rest":
            self._reading.since = self._watch.now

    # Refusals

    def _refuse(self, error: RequestError) -> None:
        """Answer, if it is this one's turn, and end the connection."""
        self._deaf = True
        self._note(error.code, error.message)
        pending = self.cycle is not None and not self.cycle.response_complete
        if pending and self._reading.waiting == "head":  # of an earlier request, which came whole: it is answered
            self.cycle.keep_alive = False
            return
        started = pending and getattr(self.cycle, "response_started", False)
        if not started and not self.pipeline:
            answer = Refusal(error).answer(request_id({}))
            self.transport.write(serialised(answer, self.server_state.default_headers, (), keep=False))
        if pending:  # nobody else is to answer it
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _note(self, code: Code, why: str) -> None:
        self._service.metrics.refused(code, STATUS[code])
        logs.event("refused", why=why, status=STATUS[code], code=code, client=self._address)
