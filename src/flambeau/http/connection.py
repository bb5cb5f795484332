"""A connection of `flambeau serve`: a bounded connection that dispatches predictions itself.

A POST to a prediction's route, with a declared length within the limit, is collected here and passed to
`dispatch.answer`: without ASGI's messages and events, and without a task. A head that is the same to the last byte as
one before (`flambeau.http.heads`) is not even parsed. Everything else goes to the ASGI front, as do requests that
access control refuses and those sent before an earlier one was answered. Both give the same answers
(`tests/http/test_fronts.py`, `tests/http/test_connection.py`). Bodies are not parsed here.
"""

import asyncio
import time

from flambeau.errors import RequestError
from flambeau.http import framing
from flambeau.http.access import REFUSED, Denial
from flambeau.http.answer_bytes import serialised
from flambeau.http.body_reader import BodyReader
from flambeau.http.bounded_connection import BoundedConnection, Front, StopParsingError
from flambeau.http.heads import END, LONGEST, PredictionHead
from flambeau.http.request_body import FULL, BodyBuffer, Share
from flambeau.protocols import dispatch
from flambeau.protocols.messages import HttpAnswer, HttpRequest, new_id
from flambeau.system.eager import Eager
from flambeau.telemetry import logs

_COPIED = 4096  # bytes: a longer body that came with its head is a view of what came


class _Unheard:
    """In place of the event that uvicorn's applications wait for."""

    def set(self) -> None: ...


class Exchange:
    """A request in progress and the state of its answer, under uvicorn's names for the latter.

    `held`: the bytes of the budget that it holds where it has no share, because its body came whole.
    """

    __slots__ = (
        "_connection", "answering", "body", "client", "disconnected", "head", "held", "identity", "keep_alive",
        "received", "response_complete", "root", "share",
    )  # fmt: skip

    message_event = _Unheard()

    def __init__(self, connection: "DispatchingConnection", head: PredictionHead, client: str, root: str) -> None:
        self._connection = connection
        self.head = head
        self.client = client
        self.root = root
        self.received = time.monotonic()
        self.identity = head.identity or new_id()
        self.keep_alive = head.keep_alive
        self.disconnected = self.response_complete = False
        self.held = 0
        self.body: BodyBuffer | None = None  # as long as it arrives
        self.share: Share | None = None
        self.answering: Eager[HttpAnswer] | None = None

    def ended(self, found: HttpAnswer | None, error: BaseException | None) -> None:
        """The request was answered, or it was given up because its client is gone."""
        connection = self._connection
        if found is None or self.disconnected or connection.flow.write_paused:
            connection.finish(self, found, error)
        else:  # nearly always
            self.answering = None
            try:
                connection.send(found, self)
            except Exception as unsent:  # an answer that cannot be written: its client must not wait, nor hold memory
                connection.finish(self, None, unsent)


class DispatchingConnection(BoundedConnection):
    """One client's connection. The keywords are those of uvicorn's protocol classes."""

    def __init__(self, front: Front, **uvicorn: object) -> None:
        super().__init__(front, **uvicorn)
        self._heads = front.heads
        self._arriving: Exchange | None = None
        self._reader: BodyReader | None = None  # which reads the body of `_arriving`, while it does
        self._unparsed = False  # the body of `_arriving` does not go through the parser
        self._first = b""  # the first bytes of a message, as far as its head, if they came in one piece
        self._refusal: Denial | None = None  # of the request whose head has come, where access control was asked before

    def data_received(self, data: bytes) -> None:
        if self._unparsed:
            self._go_on(data)
            return
        self._first = b""
        if self._reading.waiting == "rest" and not self._deaf and data.startswith(b"POST "):
            end = data.find(END, 0, LONGEST) + len(END)
            if end >= len(END):
                first = data[:end]
                cycle = self.cycle
                head = self._heads.get(first)
                if (
                    head is not None
                    and (cycle is None or cycle.response_complete)
                    and self._spare is None
                    and self._begin(head, data, end)
                ):
                    return
                self._first = first
        super().data_received(data)
        self._refusal = None
        if self._arriving is not None and not self._deaf:
            self._read_directly()

    def _begin(self, head: PredictionHead, data: bytes, end: int) -> bool:
        """Take a request whose head is known, and ends at `end`; false if it is to go through the parser after all."""
        size = len(data) - end
        if size > head.length:  # more follows, which the parser reads with it
            return False
        budget = self._budget
        if size == head.length and budget.used + size > budget.most:  # the parser's way makes room
            return False  # before it is admitted: that counts, and is done once
        exchange = self._admitted(head)
        if exchange is None:
            return False
        if size < head.length:
            self._collect(exchange)
            self._unparsed = True
            self._go_on(data[end:])
            return True
        budget.used += size
        exchange.held = size
        self._reading.since = self._monitor.now
        self.cycle = exchange  # type: ignore[assignment]  # it has the attributes that uvicorn uses
        self._answer(exchange, data[end:] if size <= _COPIED else memoryview(data)[end:])
        return True

    def _admitted(self, head: PredictionHead) -> Exchange | None:
        """The exchange of a request, if access control admits it."""
        access, client, root = self._access, self._address, head.root
        if access.forwarding.active:
            client = access.forwarding.client(client, head.headers)
            scheme = access.forwarding.scheme(self._address, head.headers, str(self.scheme))
            root = f"{scheme}://{head.headers['host']}{access.forwarding.prefix}/"
        if not (head.admitted and access.never_changes):
            refusal = self._refusal or access.check(head.match.route.scope, "POST", head.headers, client)
            if refusal is not None:
                self._refusal = refusal
                return None
            head.admitted = True
        return Exchange(self, head, client, root)

    def _collect(self, exchange: Exchange) -> None:
        """Expect the body of a request."""
        self.cycle = self._arriving = exchange  # type: ignore[assignment]  # it has the attributes that uvicorn uses
        exchange.body = BodyBuffer(exchange.head.length)
        exchange.share = self._open_share()
        self._expect_body(counted=False)

    def _go_on(self, data: bytes) -> None:
        """Take the next piece of a body that does not go through the parser, and what follows it."""
        exchange = self._arriving
        assert exchange is not None
        assert exchange.body is not None
        left = exchange.head.length - exchange.body.size
        size = min(left, len(data))
        self._reading.arrived += size
        assert exchange.share is not None
        try:
            if not exchange.share.take(size):
                self._refuse(FULL)
                return
            exchange.body.add(data if size == len(data) else data[:size])
        except RequestError as error:  # there is no memory
            self._refuse(error)
            return
        if self._arriving is not exchange:  # the upload was ended to make room
            return
        if size < left:
            self._monitor.turns.took(size, pause=self.flow.pause_reading, resume=self._read_on)
            self._read_directly()
            return
        self.on_message_complete()
        if size < len(data):
            self.data_received(data[size:])

    def _read_directly(self) -> None:
        """Have the rest of a body that has its place read to that place, past the parser."""
        exchange = self._arriving
        assert exchange is not None
        body = exchange.body
        if body is None or body.room() is None or self.scheme == "https" or self.transport.is_closing():
            return
        if not self._unparsed:
            self._unparsed = True
            self.parser = self._new_parser()  # the one before waits for a body that it will not see
        self._reader = BodyReader(self, body)
        self._hand_to(self._reader)

    def _take_over(self) -> None:
        """Read again what comes."""
        if self._reader is not None:
            self._reader.let_go()
            self._reader = None
            if not self.transport.is_closing():
                self._hand_to(self)

    def _hand_to(self, protocol: asyncio.BaseProtocol) -> None:
        """Have what comes from now on go to that protocol: the loop looks at it when it begins to read."""
        self.transport.set_protocol(protocol)
        if not self.flow.read_paused:
            self.transport.pause_reading()
            self.transport.resume_reading()

    def body_came(self, size: int) -> None:
        """So many bytes of the body were read to their place."""
        exchange = self._arriving
        if exchange is None or exchange.body is None or exchange.share is None:  # it was refused meanwhile
            self._take_over()
            return
        self._reading.arrived += size
        if not exchange.share.take(size):
            self._take_over()
            self._refuse(FULL)
        elif self._arriving is not exchange:  # the upload was ended to make room
            self._take_over()
        elif exchange.body.size < exchange.head.length:
            self._monitor.turns.took(size, pause=self.flow.pause_reading, resume=self._read_on)
        else:
            self._take_over()
            self.on_message_complete()

    # Callbacks of the parser

    def on_headers_complete(self) -> None:
        raw, self._first = self._first, b""  # of this head: another may follow in the same piece
        if self._has_wish():
            return
        first = self.cycle is None or self.cycle.response_complete
        exchange = self._recognise(raw) if first else None
        if exchange is None:
            super().on_headers_complete()
        else:
            self._collect(exchange)

    def on_body(self, body: bytes) -> None:
        if self._arriving is None or self._arriving.body is None:
            super().on_body(body)
            return
        self._take(len(body))
        if not self._arriving.body.add(body):  # a second check: the parser counts too
            self._fault = framing.BAD_HTTP
            raise StopParsingError

    def on_message_complete(self) -> None:
        exchange, self._arriving, self._unparsed = self._arriving, None, False
        if exchange is None or exchange.body is None:
            super().on_message_complete()
            return
        self._has_come()
        body, exchange.body = exchange.body.whole(), None  # so that an idle connection holds none
        self._answer(exchange, body)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget()
        if isinstance(self.cycle, Exchange):
            self._release(self.cycle)
        self.give_up()

    def give_up(self) -> None:
        """Nobody waits for the answer: items that are still queued are not computed."""
        if isinstance(self.cycle, Exchange) and self.cycle.answering is not None:
            self.cycle.answering.cancel()

    def _recognise(self, raw: bytes) -> Exchange | None:
        """The request whose headers are complete, if it is to be answered here; else `None`.

        `raw`: the bytes of its head, or none if they did not come in one piece as the first of what came.
        Whatever `framing` would refuse gives `None`, as do headers that appear twice.
        """
        head = self._read_head()
        if head is None or self._spare is not None:
            return None
        if raw:
            self._heads.keep(raw, head, self.headers)
        exchange = self._admitted(head)
        if self._refusal is not None:
            self.scope[REFUSED] = self._refusal  # type: ignore[literal-required]  # ours, for the ASGI front
        return exchange

    def _read_head(self) -> PredictionHead | None:
        url, parser = self.url, self.parser
        if parser.get_method() != b"POST" or b"%" in url.partition(b"?")[0] or b"#" in url or not url.isascii():
            return None
        if parser.get_http_version() != "1.1":
            return None
        path, _, query = url.decode().partition("?")
        forwarding = self._access.forwarding
        path = forwarding.below(path) if forwarding.active else path
        match = self._access.table.find("POST", path)
        if match is None or not match.route.waits or match.route.scope != "infer":
            return None
        if self._head > self._monitor.small_head and framing.too_large(url, self.headers, self._limits):
            return None
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self.headers}
        if len(headers) != len(self.headers) or len(headers) > self._limits.max_headers:
            return None
        length = framing.length_of(headers.get("content-length", ""))
        if length is None or length > self._limits.max_body_bytes:
            return None
        if "expect" in headers or "host" not in headers:
            return None
        root = f"{self.scheme}://{headers['host']}{forwarding.prefix}/"
        keep_alive = parser.should_keep_alive()
        return PredictionHead(match, path, query, headers, length=length, keep_alive=keep_alive, root=root)

    def _refuse(self, error: RequestError) -> None:
        self._outbox.flush()  # an answer that came before goes out before
        self._forget()
        super()._refuse(error)

    def _forget(self) -> None:
        """Drop the part of a body that has arrived, and will not be answered."""
        self._unparsed = False
        if self._arriving is not None:
            self._arriving.body = None
            self._arriving = None
            self._take_over()

    # Answers

    def _answer(self, exchange: Exchange, body: bytes | memoryview) -> None:
        head = exchange.head
        request = HttpRequest(
            "POST", head.path, head.query, head.headers, body, exchange.received,
            None if self._access.never_changes else self._access.charge(head.headers, exchange.client),
            exchange.identity, exchange.root, exchange.client,
        )  # fmt: skip
        answering = Eager(dispatch.answer(self._service, head.match, request), exchange.ended)
        if not exchange.response_complete:
            exchange.answering = answering

    def finish(self, exchange: Exchange, found: HttpAnswer | None, error: BaseException | None) -> None:
        """Send the answer to a request whose client does not read yet, or give the request up."""
        exchange.answering = None
        if found is None:
            if not isinstance(error, asyncio.CancelledError):  # `dispatch.answer` raises nothing else
                logs.failure("a request failed unexpectedly", error or RuntimeError(), id=exchange.identity)
            elif self.transport.is_closing():
                milliseconds = 1000 * (time.monotonic() - exchange.received)
                logs.event("the client is gone", id=exchange.identity, status=499, ms=milliseconds)
            self._release(exchange)
            self.transport.close()
        elif exchange.disconnected:
            self._release(exchange)
            self.transport.close()
        else:
            Eager(self.flow.drain(), lambda _, __: self.send(found, exchange))

    def send(self, answer: HttpAnswer, exchange: Exchange) -> None:
        """Send the answer to a request whose client is there and reads."""
        # While the service drains, connections close, so that clients send their next request elsewhere.
        keep = exchange.keep_alive and not self._service.draining
        origins = self._access.origins
        added = () if origins.none else origins.headers(exchange.head.headers)
        data = serialised(answer, self._defaults.of(self.server_state.default_headers), added, keep=keep)
        exchange.response_complete = True
        self._release(exchange)
        if keep:
            self._outbox.put(self.transport, data)
        else:
            self.transport.write(data)
            self.transport.close()
        if self.pipeline or self._ended or self.flow.read_paused or not keep:
            self.go_on()
        elif self._reading.waiting == "rest":
            self._reading.since = self._monitor.now

    def _release(self, exchange: Exchange) -> None:
        """Give back what the body held of the budget."""
        self._budget.used -= exchange.held
        exchange.held = 0
        if exchange.share is not None:
            exchange.share.close()
            if exchange.share in self._shares:
                self._shares.remove(exchange.share)
            exchange.share = None
