"""A client's connection: its limits and timeouts, its refusals, and its answers in the order of its requests.

It knows neither the parser nor the routes: `flambeau.http.connection` makes exchanges of what comes, and puts them in
line here. A request that is malformed, or that two parsers could read differently, ends the connection.
"""

import asyncio
import socket
import sys
import time
from abc import abstractmethod
from collections import deque
from dataclasses import dataclass, field
from typing import cast

from flambeau.errors import Code, RequestError
from flambeau.http.access import Denial
from flambeau.http.answer_bytes import Outbox, raw, serialised, serialised_raw
from flambeau.http.body_reader import PIECE
from flambeau.http.exchange import Answer, Exchange
from flambeau.http.heads import KnownHeads, Peer
from flambeau.http.request_body import InflightBudget, Share, full
from flambeau.http.site import Site
from flambeau.http.timeouts import ConnectionMonitor, ReadTimeout, WriteTimeout
from flambeau.protocols.errors import STATUS
from flambeau.protocols.messages import HttpAnswer, new_id
from flambeau.telemetry import logs

_LINGER = 2.0  # seconds in which a client that is still sending may read why it was refused
_PROBE = 0.02  # seconds from the end of a client's input to the probe whether the client is still there
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""The interim response, which a client may ask for, and every client ignores."""

_TCP_CLOSE = 7  # a state of TCP_INFO, tcp(7)


@dataclass(frozen=True, slots=True)
class Front:
    """What all connections of a server have in common. `tasks`: the requests that are no predictions. `piece`: where
    what comes is read to, and taken from at once."""

    site: Site
    monitor: ConnectionMonitor
    budget: InflightBudget
    connections: "set[BoundedConnection]" = field(default_factory=set)
    tasks: "set[asyncio.Task[object]]" = field(default_factory=set)
    heads: KnownHeads = field(default_factory=KnownHeads)
    outbox: Outbox = field(default_factory=Outbox)
    piece: memoryview = field(default_factory=lambda: memoryview(bytearray(PIECE)))


class BoundedConnection(asyncio.Protocol):
    """One client's connection.

    `_current` is the exchange whose answer is the next to be sent, `_ahead` are those behind it, and the request of
    `_arriving` has not come whole: it is the last of them.
    """

    transport: asyncio.Transport

    def __init__(self, front: Front) -> None:
        self._front = front
        self._site, self._monitor, self._outbox = front.site, front.monitor, front.outbox
        self._service, self._access, self._limits = (
            front.site.service, front.site.access, front.site.service.settings
        )  # fmt: skip
        self._reading, self._writing = ReadTimeout(front.monitor), WriteTimeout(front.monitor)
        self._peer = Peer("")
        self._encrypted = False
        self._current: Exchange | None = None
        self._ahead: deque[Exchange] = deque()
        self._arriving: Exchange | None = None
        self._sends_on = False  # the client may still be sending what is not read
        self._read_paused = self._write_paused = False
        self._closing = False  # whether it was closing at the last check
        self._deaf = False  # no further request is taken, and further input is ignored
        self._ended = False  # the client sends nothing more, and may still read
        self._lingers: float | None = None  # until when the client may still send, so that it can read its refusal
        self._spare: RequestError | None = None  # why this is a spare connection, which answers vital routes only

    @abstractmethod
    def _run(self, exchange: Exchange) -> None:
        """Have a request answered that has come whole."""

    @abstractmethod
    def _forget(self) -> None:
        """Take nothing more of the request that arrives."""

    @abstractmethod
    def _path(self) -> str:
        """The path of the request that arrives, or of the last one, without the prefix of a proxy's."""

    # The transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._encrypted = transport.get_extra_info("sslcontext") is not None
        here, there = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
        client = str(there[0]) if isinstance(there, tuple) else ""
        server = (str(here[0]), int(here[1])) if isinstance(here, tuple) else (str(here), None) if here else None
        prefix = self._access.forwarding.prefix
        self._peer = Peer(client, "https" if self._encrypted else "http", server, prefix)
        self._front.connections.add(self)
        room = self._monitor.enter(client)
        if len(self._front.connections) > self._monitor.connections and not self._monitor.make_room():
            self._spare = RequestError("there are too many connections to this server", code="overloaded")
        elif not room:
            self._spare = RequestError("there are too many connections from this address", code="rate_limited")
        if self._spare is not None and not self._monitor.spare(self):
            self._refuse(self._spare)

    def connection_lost(self, exc: Exception | None) -> None:
        self._front.connections.discard(self)
        self._monitor.leave(self._peer.client, self)
        self._deaf = True
        self._forget()
        owed = [self._current, *self._ahead]
        self._current = self._arriving = None
        self._ahead.clear()
        for exchange in owed:
            if exchange is not None:
                self._release(exchange)
                exchange.abandon()

    def eof_received(self) -> bool:
        """The client sends nothing more: it is gone, or it has half-closed the connection and waits for its answer."""
        self._outbox.flush()  # before anything closes
        if self._deaf and self._lingers is not None:
            return False
        self._ended = True
        arriving = self._arriving
        if arriving is not None and arriving.answer is not None:  # it was refused, and what it lacks is not wanted
            self._forget()
            self._arriving = None
            arriving.whole, self._deaf = True, True
            if arriving.sent:
                self._go_on(arriving)
        elif self._reading.waiting != "rest":
            self._refuse(RequestError("the request ended before it was whole", code="bad_http"))
        if self._encrypted or self._current is None:  # TLS cannot be half-closed
            return False
        asyncio.get_running_loop().call_later(_PROBE, self._probe)
        return True

    def _probe(self) -> None:
        """Find out whether the client still waits: if it is gone, its system resets the connection on any output."""
        current = self._current
        if self.transport.is_closing() or current is None or current.sent or current.head.version == "1.0":
            return
        self._outbox.write(self.transport, CONTINUE)
        asyncio.get_running_loop().call_later(_PROBE, self._leave_if_gone)

    def _leave_if_gone(self) -> None:
        if sys.platform != "linux" or self.transport.is_closing():
            return
        sock = self.transport.get_extra_info("socket")
        if sock.family != socket.AF_UNIX and sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE:
            self.transport.abort()

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        current = self._current
        if current is not None and current.answer is not None and not current.sent:
            current.ended(current.answer, None)

    def _pause_reading(self) -> None:
        if not self._read_paused and not self.transport.is_closing():
            self._read_paused = True
            self.transport.pause_reading()

    def _read_on(self) -> None:
        if self._read_paused and not self.transport.is_closing():
            self._read_paused = False
            self.transport.resume_reading()

    # What the monitor asks

    def check(self, now: float) -> None:
        """Act on whatever is overdue."""
        left = self.transport.get_write_buffer_size()
        if self._ended:
            self._leave_if_gone()
        if self._writing.overdue(left, now):
            self._note("client_too_slow", "the client does not read its answer")
            self.transport.abort()
        elif self._lingers is not None:  # refused, with a moment left to read why
            if left:
                self._lingers = now + _LINGER
            elif now > self._lingers:
                self.transport.abort()
        elif self.transport.is_closing():
            if not left and self._closing:  # a TLS client may never answer our close
                self.transport.abort()
            self._closing = True
        elif self._read_paused:  # we keep the client waiting, so its time starts anew
            self._reading.again(now)
        elif self._spare is not None and self._reading.waits_for_head(now):
            self._refuse(self._spare)
        elif self._reading.overdue(now):
            if self._reading.waiting != "rest":
                self._refuse(RequestError("the request did not arrive in time", code="client_too_slow"))
            elif self._spare is not None:
                self._refuse(self._spare)
            elif self._current is None:
                self._outbox.close(self.transport)

    @property
    def idle_since(self) -> float | None:
        """Since when it waits for a head, or the rest of one, with nothing to answer; `None` if it does not."""
        if self._reading.waiting == "body" or self._current is not None or self._deaf or self.transport.is_closing():
            return None
        return self._reading.since

    @property
    def has_half_a_head(self) -> bool:
        """Whether a head has begun and not ended."""
        return self._reading.waiting == "head"

    def make_way(self) -> None:
        """Close, to make room for a new connection. An idle connection closes as it would after `--idle-timeout`."""
        if self._spare is not None:
            self._refuse(self._spare)
        elif self.has_half_a_head:
            self._refuse(
                RequestError("the request did not arrive in time, and other clients are waiting", code="overloaded")
            )
        else:
            self._outbox.close(self.transport)

    # What the server asks when it stops

    def shutdown(self) -> None:
        """Close as soon as what has come is answered."""
        if self._current is None:
            self._outbox.close(self.transport)
        else:
            (self._ahead[-1] if self._ahead else self._current).keep_alive = False

    def give_up(self) -> None:
        """The time to answer is over."""
        for exchange in (self._current, *self._ahead):
            if exchange is not None:
                exchange.cancel()

    # Answers, in the order of the requests

    def _line_up(self, exchange: Exchange) -> None:
        """Put an exchange last in line. While another is before it, nothing more is read."""
        if self._current is None:
            self._current = exchange
        else:
            self._ahead.append(exchange)
            self._pause_reading()

    def _hold(self, exchange: Exchange) -> None:
        """Count the body of an exchange that is going to arrive."""
        exchange.share = Share(self._front.budget, asyncio.get_running_loop().time, lambda: self._refuse(full()))

    def _release(self, exchange: Exchange) -> None:
        """Give back what the body held of the budget."""
        if exchange.held:
            self._front.budget.used -= exchange.held
            exchange.held = 0
        if exchange.share is not None:
            exchange.share.close()
            exchange.share = None
        exchange.body = None

    def answered(self, exchange: Exchange, found: Answer) -> None:
        """Send the answer to a request, or keep it until those before it are sent and the client reads."""
        exchange.answer = found
        if exchange is self._current and not self._write_paused:
            self._send(exchange)

    def _send(self, exchange: Exchange) -> None:
        """Send the answer of the current exchange, and go on once its request has come whole."""
        answer = exchange.answer
        assert answer is not None
        # While the service drains, connections close, so that clients send their next request elsewhere.
        keep = exchange.keep_alive and not (self._service.draining and not self._ahead)
        if isinstance(answer, HttpAnswer):
            origins = self._access.origins
            readable = () if origins.none else origins.headers(exchange.head.headers)
            lines, body = serialised(answer, readable, keep=keep)
        else:
            lines = serialised_raw(answer, keep=keep, without_body=exchange.head.method == "HEAD")
            body = b""
        exchange.sent, exchange.keep_alive = True, keep
        self._release(exchange)
        self._outbox.put(self.transport, lines, body)
        if exchange.whole:
            self._go_on(exchange)
        elif exchange.head.expects:  # it does not send a body that is refused
            self._end()

    def _go_on(self, exchange: Exchange) -> None:
        """A request has come whole and is answered: go on with those that came after it, or wait for the next."""
        if not exchange.keep_alive:
            self._end()
            return
        if self._ahead:
            self._current = self._ahead.popleft()
            asyncio.get_running_loop().call_soon(self._proceed, self._current)
            if not self._ahead:
                self._read_on()
            return
        self._current = None
        if self._ended:
            self._end()
        elif self._read_paused:
            self._read_on()
        if self._reading.waiting == "rest":
            self._reading.since = self._monitor.now

    def _proceed(self, exchange: Exchange) -> None:
        """It is an exchange's turn."""
        if exchange is not self._current or self.transport.is_closing() or exchange.sent:
            return
        if exchange.answer is not None:  # it was refused
            self.answered(exchange, exchange.answer)
        elif not exchange.whole:
            self._let_it_come(exchange)
        elif exchange.answering is None:
            self._run(exchange)

    def _let_it_come(self, exchange: Exchange) -> None:
        """Tell a client that asks before it sends its body to send it."""
        head = exchange.head
        if head.expects and head.version != "1.0" and head.length != 0:
            self._outbox.write(self.transport, CONTINUE)

    def failed(self, exchange: Exchange, error: BaseException) -> None:
        """Send that we failed, or close if the answer was given up."""
        self._release(exchange)
        given_up = isinstance(error, asyncio.CancelledError)
        if not given_up:
            logs.failure("a request failed unexpectedly", error, id=exchange.identity)
        elif self.transport.is_closing():
            milliseconds = 1000 * (time.monotonic() - exchange.received)
            logs.event("the client is gone", id=exchange.identity, status=499, ms=milliseconds)
        if self.transport.is_closing() or exchange is not self._current:
            return
        self._deaf = True
        if not given_up and not exchange.sent:
            self._write_refusal(RequestError("the server failed on this request", code="internal"), exchange)
        self._outbox.close(self.transport)

    # Refusals

    def _refuse(self, error: RequestError, *, broken: bool = False) -> None:
        """Answer with the error, unless earlier answers are still to come, and end the connection.

        `broken`: where the request ends cannot be known, so the client may be sending the rest of it.
        """
        self._sends_on = broken or self._reading.waiting == "body" or self._spare is not None
        self._deaf = True
        self._note(error.code, error.message)
        arriving = self._arriving
        path = self._path()
        self._forget()
        self._arriving = None
        if arriving is not None:
            self._release(arriving)
        if arriving is not None and arriving in self._ahead:
            self._ahead.remove(arriving)
        if self._current is not None and self._current is not arriving:  # an earlier request is still to be answered
            (self._ahead[-1] if self._ahead else self._current).keep_alive = False
            return
        self._current = None
        if arriving is None or not arriving.sent:
            self._write_refusal(error, arriving, path)
        self._end()

    def _write_refusal(self, error: RequestError, exchange: Exchange | None, path: str | None = None) -> None:
        identity = new_id() if exchange is None else exchange.identity
        answer = Denial(error).answer(identity, self._path() if path is None else path)
        without_body = exchange is not None and exchange.head.method == "HEAD"
        self._outbox.write(self.transport, serialised_raw(raw(answer), keep=False, without_body=without_body))

    def _end(self) -> None:
        """Close, once everything is written; a client that is still sending has a moment to read why it was refused."""
        self._outbox.flush()
        self._deaf = True
        if self._sends_on and not self._ended and self.transport.can_write_eof():
            # Closing now would reset the connection while the client still sends, and it would not read its answers.
            self.transport.write_eof()
            self._lingers = asyncio.get_running_loop().time() + _LINGER
        else:
            self.transport.close()

    def _note(self, code: Code, why: str) -> None:
        self._service.metrics.refused(code, STATUS[code])
        logs.event("refused", why=why, status=STATUS[code], code=code, client=self._peer.client)
