"""A bounded connection: uvicorn's own, with limits, timeouts, and refusals in our own form.

A malformed request, or one that two parsers could read differently, is refused here and ends the connection. The only
thing it needs to know of a route is whether it is vital, and so answered over a spare connection.
"""

import asyncio
import socket
import sys
from collections import deque
from dataclasses import dataclass, field

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from flambeau.errors import Code, RequestError
from flambeau.http import framing
from flambeau.http.access import AccessControl, Denial
from flambeau.http.answer_bytes import DefaultLines, Outbox, serialised
from flambeau.http.heads import KnownHeads
from flambeau.http.request_body import FULL, SHARE, InflightBudget, Share
from flambeau.http.timeouts import ConnectionMonitor, ReadTimeout, WriteTimeout
from flambeau.protocols.errors import STATUS
from flambeau.protocols.messages import new_id
from flambeau.serving.service import Service
from flambeau.telemetry import logs

_MOST_AHEAD = 64  # pipelined requests: sent before the first of them was answered
_LINGER = 2.0  # seconds in which a client that is still sending may read why it was refused
_PROBE = 0.02  # seconds from the end of a client's input to the probe whether the client is still there
_STILL_THERE = b"HTTP/1.1 100 Continue\r\n\r\n"  # the interim response that every client ignores
_TCP_CLOSE = 7  # a state of TCP_INFO, tcp(7)


@dataclass(frozen=True, slots=True)
class Front:
    """What all connections of a server have in common."""

    service: Service
    access: AccessControl
    monitor: ConnectionMonitor
    budget: InflightBudget
    heads: KnownHeads = field(default_factory=KnownHeads)
    defaults: DefaultLines = field(default_factory=DefaultLines)
    outbox: Outbox = field(default_factory=Outbox)


class StopParsingError(Exception):
    """Raised in the parser's callbacks to stop it."""


class BoundedConnection(HttpToolsProtocol):
    """One client's connection. The keywords are those of uvicorn's protocol classes."""

    def __init__(self, front: Front, **uvicorn: object) -> None:
        super().__init__(**uvicorn)  # type: ignore[arg-type]  # uvicorn passes them on as it knows them
        self._service, self._monitor, self._budget = front.service, front.monitor, front.budget
        self._access, self._defaults, self._outbox = front.access, front.defaults, front.outbox
        self._limits = front.service.settings
        self._reading, self._writing = ReadTimeout(front.monitor), WriteTimeout(front.monitor)
        self._address = ""
        self._fault: RequestError | None = None
        self._closing = False  # whether it was closing at the last check
        self._deaf = False  # no further request is taken, and further input is ignored
        self._ended = False  # the client sends nothing more, and may still read
        self._lingers: float | None = None  # until when the client may still send, so that it can read its refusal
        self._spare: RequestError | None = None  # why this is a spare connection, which answers vital routes only
        self._shares: deque[Share] = deque()  # of the unanswered requests, in order
        self._share: Share | None = None  # of the latest request
        self._counted = False  # whether `_body` counts the bytes of the body
        self._piece = self._head = self._body = self._around = self._chunks = 0  # bytes; the last, a number of chunks

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        room = self._monitor.enter(self._address)
        if len(self.connections) > self._monitor.connections and not self._monitor.make_room():
            self._spare = RequestError("there are too many connections to this server", code="overloaded")
        elif not room:
            self._spare = RequestError("there are too many connections from this address", code="rate_limited")
        if self._spare is not None and not self._monitor.spare(self):
            self._refuse(self._spare)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._monitor.leave(self._address, self)
        while self._shares:
            self._shares.popleft().close()

    def eof_received(self) -> bool:  # type: ignore[override]  # whether the connection is kept, to answer
        """The client sends nothing more: it is gone, or it has half-closed the connection and waits for its answer."""
        self._outbox.flush()  # before anything closes
        if self._deaf and self._lingers is not None:
            return False
        self._ended = True
        if self._reading.waiting != "rest":
            self._refuse(RequestError("the request ended before it was whole", code="bad_http"))
        if self.scheme == "https" or not self._is_answering():  # TLS cannot be half-closed
            return False
        self.loop.call_later(_PROBE, self._probe)
        return True

    def _is_answering(self) -> bool:
        return bool(self.pipeline) or (self.cycle is not None and not self.cycle.response_complete)

    def _probe(self) -> None:
        """Find out whether the client still waits: if it is gone, its system resets the connection on any output."""
        started = getattr(self.cycle, "response_started", False)
        old = self.scope is not None and self.scope["http_version"] == "1.0"  # no scope: the parser was never asked
        if self.transport.is_closing() or not self._is_answering() or started or old:
            return
        self.transport.write(_STILL_THERE)
        self.loop.call_later(_PROBE, self._leave_if_gone)

    def _leave_if_gone(self) -> None:
        if sys.platform != "linux" or self.transport.is_closing():
            return
        sock = self.transport.get_extra_info("socket")
        if sock.family != socket.AF_UNIX and sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._piece = len(data)
        if self._reading.waiting != "rest":
            self._count(self._piece)
        try:
            self._feed(data)
        except httptools.HttpParserError:
            if not self._deaf:
                self._refuse(self._fault or framing.BAD_HTTP)
            return
        if self._reading.waiting != "rest":
            self._bound()
        if self._reading.waiting == "body" and not self._deaf:
            self._monitor.turns.took(self._piece, pause=self.flow.pause_reading, resume=self._read_on)

    def _read_on(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def _feed(self, data: bytes) -> None:
        """Parse. A head that asks to switch protocols (Upgrade) is answered as if it did not (RFC 9110, 7.8).

        The parser takes what follows such a head for another protocol. So a new parser gets the head without those
        headers, and then the rest.
        """
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                parser = self.parser
                head = framing.without_upgrade(parser.get_method(), self.url, parser.get_http_version(), self.headers)
                self.parser = self._new_parser()
                data = head + data[upgrade.args[0] :]

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def _has_wish(self) -> bool:
        """Whether the head asks to switch protocols: `_feed` then parses it again, without those headers."""
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def _count(self, size: int) -> None:
        if self._reading.waiting == "head":
            self._head += size
        else:
            self._reading.arrived += size
            self._around += size

    def _bound(self) -> None:
        """Refuse a head that does not end, and a body that is mostly framing."""
        if self._reading.waiting == "body":
            if self._counted and framing.too_much_overhead(self._chunks, self._around - self._body):
                self._refuse(
                    RequestError("the chunks of the body have too many extensions or trailers", code="too_many_chunks")
                )
        elif self._head > self._limits.max_request_line:
            found = framing.too_large(self.url, self.headers, self._limits)
            if found is None and self._head > self._limits.max_request_line + self._limits.max_headers_bytes:
                found = framing.head_too_large("the headers do not end")
            if found is not None:
                self._refuse(found)

    def check(self, now: float) -> None:
        """Act on whatever is overdue."""
        left = self.transport.get_write_buffer_size()
        if self._lingers is not None:  # refused, with a moment left to read why
            if now > self._lingers:
                self.transport.abort()
            return
        if self._ended:
            self._leave_if_gone()
        if self._writing.overdue(left, now):
            self._note("client_too_slow", "the client does not read its answer")
            self.transport.abort()
        elif self.transport.is_closing():
            if not left and self._closing:  # a TLS client may never answer our close
                self.transport.abort()
            self._closing = True
        elif self.flow.read_paused:  # we keep the client waiting, so its time starts anew
            self._reading.again(now)
        elif self._spare is not None and self._reading.waits_for_head(now):
            self._refuse(self._spare)
        elif self._reading.overdue(now):
            if self._reading.waiting != "rest":
                self._refuse(RequestError("the request did not arrive in time", code="client_too_slow"))
            elif self._spare is not None:
                self._refuse(self._spare)
            elif self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    @property
    def idle_since(self) -> float | None:
        """Since when it waits for a head, or the rest of one, with nothing to answer; `None` if it does not."""
        if self._reading.waiting == "body" or self._is_answering() or self._deaf or self.transport.is_closing():
            return None
        return self._reading.since

    @property
    def has_half_a_head(self) -> bool:
        """Whether a head has begun and not ended."""
        return self._reading.waiting == "head"

    def shutdown(self) -> None:
        self._outbox.flush()
        super().shutdown()

    def make_way(self) -> None:
        """Close, to make room for a new connection. An idle connection closes as it would after `--idle-timeout`."""
        self._outbox.flush()
        if self._spare is not None:
            self._refuse(self._spare)
        elif self.has_half_a_head:
            self._refuse(
                RequestError("the request did not arrive in time, and other clients are waiting", code="overloaded")
            )
        else:
            self.transport.close()

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        if self._deaf:
            raise StopParsingError
        super().on_message_begin()
        self._reading.waiting, self._reading.since = "head", self._monitor.now
        self._head, self._chunks = self._piece, 0

    def on_headers_complete(self) -> None:
        if self._has_wish():
            return
        self._check_head()
        self.scope[SHARE] = self._open_share()  # type: ignore[literal-required]  # ours, for the ASGI front
        super().on_headers_complete()
        if self._spare is not None:
            self.cycle.keep_alive = False
        self._expect_body(counted=True)

    def _open_share(self) -> Share:
        """The share in the budget for bodies of the request whose head is complete."""
        share = self._share = Share(self._budget, self.loop.time, lambda: self._refuse(FULL))
        self._shares.append(share)
        return share

    def _take(self, size: int) -> None:
        """Count bytes of the body, or stop the parser."""
        if self._share is not None and not self._share.take(size):
            self._fault = FULL
            raise StopParsingError

    def _check_head(self) -> None:
        parser = self.parser
        self._fault = framing.fault(
            method=parser.get_method(), version=parser.get_http_version(), url=self.url, headers=self.headers
        ) or framing.too_large(self.url, self.headers, self._limits)
        if len(self.pipeline) >= _MOST_AHEAD:
            self._fault = RequestError(
                f"more than {_MOST_AHEAD} requests were sent before the first was answered", code="bad_http"
            )
        if self._spare is not None and not self._is_vital(parser.get_method()):
            self._fault = self._fault or self._spare
        if self._fault is not None:
            raise StopParsingError

    def _is_vital(self, method: bytes) -> bool:
        """Whether the request has no body, and its route is vital."""
        match = self._access.table.find(method.decode("latin-1"), self.url.partition(b"?")[0].decode("latin-1"))
        has_body = any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)
        return match is not None and match.route.vital and not has_body

    def _expect_body(self, *, counted: bool) -> None:
        self.headers = []  # trailers must not pass for headers that were checked
        self._reading.waiting = "body"
        self._reading.again(self._monitor.now)
        self._body = self._around = 0
        self._counted = counted

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if framing.too_many_chunks(self._chunks, self._body):
            self._fault = RequestError("the body comes in too many chunks, or too small ones", code="too_many_chunks")
            raise StopParsingError

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        self._take(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._has_wish():
            return
        self._has_come()
        super().on_message_complete()

    def _has_come(self) -> None:
        self._reading.waiting, self._reading.since = "rest", self._monitor.now
        self._deaf = not self.cycle.keep_alive
        if self._share is not None:
            self._share.whole()

    def on_response_complete(self) -> None:
        """As uvicorn's, without a timer for every idle connection: `check` closes those that are idle for too long."""
        self.server_state.total_requests += 1
        if self._shares:
            self._shares.popleft().close()
        self.go_on()

    def go_on(self) -> None:
        """A request was answered: go on with those that were sent after it, or wait for the next."""
        if self._ended and not self.pipeline:
            self._outbox.flush()
            self.transport.close()
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._reading.waiting == "rest":
            self._reading.since = self._monitor.now

    # Refusals

    def _refuse(self, error: RequestError) -> None:
        """Answer with the error, unless earlier answers are still to come, and end the connection."""
        sending = self._reading.waiting == "body" or self._spare is not None
        self._deaf = True
        self._note(error.code, error.message)
        if self._share is not None and self._reading.waiting == "body":
            self._share.close()
        pending = self.cycle is not None and not self.cycle.response_complete
        if pending and self._reading.waiting == "head":  # an earlier request, which is complete, is still answered
            self.cycle.keep_alive = False
            return
        started = pending and getattr(self.cycle, "response_started", False)
        if not started and not self.pipeline:
            answer = Denial(error).answer(new_id())
            self.transport.write(serialised(answer, self._default_lines(), (), keep=False))
        if pending:  # nothing else may answer it
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if sending and not self._ended and self.transport.can_write_eof():
            # Closing now would reset the connection while the client still sends, and it would not read the answer.
            self.transport.write_eof()
            self._lingers = self.loop.time() + _LINGER
        else:
            self.transport.close()

    def _default_lines(self) -> bytes:
        return self._defaults.of(self.server_state.default_headers)

    def _note(self, code: Code, why: str) -> None:
        self._service.metrics.refused(code, STATUS[code])
        logs.event("refused", why=why, status=STATUS[code], code=code, client=self._address)
