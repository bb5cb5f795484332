"""A connection of `flambeau serve`: what comes over it becomes exchanges, and each is answered once it has come whole.

One way for all requests: the head is read and checked against the limits, access control is asked, the body is
collected within its limit, and the site is asked for the answer (`flambeau.http.site`). Predictions are dispatched from
here, without a task. A head that is the same to the last byte as one before (`flambeau.http.heads`) is not even parsed.
Bodies are not parsed here.
"""

import asyncio
from urllib.parse import unquote

import httptools

from flambeau.errors import RequestError
from flambeau.http import framing
from flambeau.http.access import Denial
from flambeau.http.answer_bytes import raw
from flambeau.http.body_reader import BodyReader
from flambeau.http.bounded_connection import BoundedConnection, Front
from flambeau.http.exchange import Exchange
from flambeau.http.heads import END, LONGEST, Peer, RequestHead
from flambeau.http.request_body import DISCARD_AT_MOST, BodyBuffer, full
from flambeau.protocols import dispatch
from flambeau.system.eager import Eager

_MOST_AHEAD = 64  # pipelined requests: sent before the first of them was answered
_COPIED = 4096  # bytes: a longer body that came with its head is a view of what came


class StopParsingError(Exception):
    """Raised in the parser's callbacks to stop it."""


class HttpConnection(BoundedConnection):
    """One client's connection."""

    def __init__(self, front: Front) -> None:
        super().__init__(front)
        self._heads = front.heads
        self._always_admits = self._access.never_changes and not self._access.forwarding.active
        self._parser = self._new_parser()
        self._url = b""
        self._fields: framing.Headers = []
        self._fault: RequestError | None = None  # why the parser was stopped
        self._first = b""  # the first bytes of a message, as far as its head, if they came in one piece
        self._unparsed = False  # the body of `_arriving` does not go through the parser
        self._reader: BodyReader | None = None  # which reads for the connection, once a long body has come
        self._piece = self._head = self._body = self._around = self._chunks = 0  # bytes; the last, a number of chunks

    # What comes

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._unparsed:
            self._take(data)
            return
        self._first = b""
        if self._reading.waiting == "rest" and data.startswith(b"POST "):
            end = data.find(END, 0, LONGEST) + len(END)
            if end >= len(END):
                first = data[:end]
                head = self._heads.get(first)
                if (
                    head is not None
                    and self._current is None
                    and self._spare is None
                    and len(data) - end <= head.length  # type: ignore[operator]  # a known head has one
                ):  # if more follows, the parser reads it all
                    self._begin(head, data, end)
                    return
                self._first = first
        self._parse(data)
        if self._arriving is not None and not self._deaf:
            self._read_directly()

    def _begin(self, head: RequestHead, data: bytes, end: int) -> None:
        """Take a request whose head is known, and ends at `end`."""
        exchange = Exchange(self, head, self._peer)
        self._current = exchange
        if not (head.admitted and self._always_admits):
            self._admit(exchange)
        size, budget = len(data) - end, self._front.budget
        if size == head.length and exchange.answer is None and budget.used + size <= budget.most:  # nearly always
            budget.used += size
            exchange.held = size
            exchange.whole = True
            self._run(exchange, data[end:] if size <= _COPIED else memoryview(data)[end:])
            return
        self._expect_body(exchange)
        self._unparsed = True
        self._take(memoryview(data)[end:])

    def _take(self, data: bytes | memoryview) -> None:
        """Take the next piece of a body that does not go through the parser, and what follows it."""
        exchange = self._arriving
        assert exchange is not None
        length = exchange.head.length
        assert length is not None
        left = length - (exchange.discarded if exchange.body is None else exchange.body.size)
        size = min(left, len(data))
        self._reading.arrived += size
        error = self._keep(exchange, data if size == len(data) else data[:size])
        if error is not None:
            self._refuse(error)
        elif size < left:
            self._monitor.turns.took(size, pause=self._pause_reading, resume=self._read_on)
            self._read_directly()
        else:
            self._has_come()
            if size < len(data):
                self.data_received(bytes(data[size:]))

    def _keep(self, exchange: Exchange, piece: bytes | memoryview) -> RequestError | None:
        """Add a piece to a body, or discard it if the request is refused. Returns why the connection is to end."""
        body, share = exchange.body, exchange.share
        if body is None or share is None:
            exchange.discarded += len(piece)
            if exchange.discarded > DISCARD_AT_MOST * self._limits.max_body_bytes:
                self._forget()
                self._end()
            return None
        if not share.take(len(piece)):
            return full()
        try:
            if not body.add(piece):
                self._deny(exchange, self._site.too_large(exchange.head))
        except RequestError as error:  # there is no memory
            return error
        return None

    def _read_directly(self) -> None:
        """Have the rest of a body that has its place read to that place, past the parser."""
        exchange = self._arriving
        if exchange is None or exchange.head.length is None or self._encrypted or self.transport.is_closing():
            return
        body = exchange.body
        if body is None or body.room() is None:
            return
        if not self._unparsed:
            self._unparsed = True
            self._parser = self._new_parser()  # the one before waits for a body that it will not see
        if self._reader is None:
            self._reader = BodyReader(self, self._front.piece)
            self.transport.set_protocol(self._reader)
            if not self._read_paused:  # the loop looks at its protocol when it begins to read
                self.transport.pause_reading()
                self.transport.resume_reading()
        self._reader.body = body

    def _take_over(self) -> None:
        """Read again what comes."""
        if self._reader is not None:
            self._reader.body = None

    def body_came(self, size: int) -> None:
        """So many bytes of the body were read to their place."""
        exchange = self._arriving
        if exchange is None or exchange.body is None or exchange.share is None:  # it was refused meanwhile
            self._take_over()
            return
        self._reading.arrived += size
        if not exchange.share.take(size):
            self._take_over()
            self._refuse(full())
        elif exchange.body.size < exchange.body.most:
            self._monitor.turns.took(size, pause=self._pause_reading, resume=self._read_on)
        else:
            self._take_over()
            self._has_come()

    # The parser, and its callbacks

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def _parse(self, data: bytes) -> None:
        self._piece = len(data)
        if self._reading.waiting == "head":
            self._head += self._piece
        elif self._reading.waiting == "body":
            self._reading.arrived += self._piece
            self._around += self._piece
        try:
            self._feed(data)
        except httptools.HttpParserError:
            if not self._deaf:
                self._refuse(self._fault or framing.bad_http(), broken=True)
            return
        if self._deaf:
            return
        if self._reading.waiting != "rest":
            self._bound()
        if self._reading.waiting == "body" and not self._deaf:
            self._monitor.turns.took(self._piece, pause=self._pause_reading, resume=self._read_on)

    def _feed(self, data: bytes) -> None:
        """Parse. A head that asks to switch protocols (Upgrade) is answered as if it did not (RFC 9110, 7.8).

        The parser takes what follows such a head for another protocol. So a new parser gets the head without those
        headers, and then the rest.
        """
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                parser = self._parser
                head = framing.without_upgrade(parser.get_method(), self._url, parser.get_http_version(), self._fields)
                self._parser = self._new_parser()
                data = head + data[upgrade.args[0] :]

    def _has_wish(self) -> bool:
        """Whether the head asks to switch protocols: `_feed` then parses it again, without those headers."""
        return self._parser.should_upgrade() and self._parser.get_method() != b"CONNECT"

    def _bound(self) -> None:
        """Refuse a head that does not end, and a body that is mostly framing."""
        if self._reading.waiting == "body":
            if framing.too_much_overhead(self._chunks, self._around - self._body):
                self._refuse(
                    RequestError("the chunks of the body have too many extensions or trailers", code="too_many_chunks")
                )
        elif self._head > self._limits.max_request_line:
            found = framing.too_large(self._url, self._fields, self._limits)
            if found is None and self._head > self._limits.max_request_line + self._limits.max_headers_bytes:
                found = framing.head_too_large("the headers do not end")
            if found is not None:
                self._refuse(found, broken=True)

    def on_message_begin(self) -> None:
        if self._deaf:
            raise StopParsingError
        self._url, self._fields = b"", []
        self._reading.waiting, self._reading.since = "head", self._monitor.now
        self._head, self._chunks = self._piece, 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        first, self._first = self._first, b""  # of this head: another may follow in the same piece
        if self._has_wish():
            return
        parser = self._parser
        method, version = parser.get_method(), parser.get_http_version()
        self._fault = self._fault_in_head(method, version)
        if self._fault is not None:
            raise StopParsingError
        path, _, query = self._url.decode("ascii").partition("?")
        head = RequestHead(
            method.decode("ascii"), self._access.forwarding.below(unquote(path) if "%" in path else path), query,
            self._fields, self._access.table,
            version=version, keep_alive=version != "1.0" and parser.should_keep_alive(),
        )  # fmt: skip
        if self._spare is not None:
            self._fault = self._spare if not head.is_vital() else None
            if self._fault is not None:
                raise StopParsingError
            head.keep_alive = False
        elif first:
            self._heads.keep(first, head)
        exchange = Exchange(self, head, self._peer)
        self._line_up(exchange)
        self._admit(exchange)
        self._expect_body(exchange)
        if exchange is self._current and exchange.answer is None:
            self._let_it_come(exchange)

    def _fault_in_head(self, method: bytes, version: str) -> RequestError | None:
        found = framing.fault(method=method, version=version, url=self._url, headers=self._fields)
        if found is None and (self._head > self._monitor.small_head or len(self._fields) > self._limits.max_headers):
            found = framing.too_large(self._url, self._fields, self._limits)
        if len(self._ahead) >= _MOST_AHEAD:
            message = f"more than {_MOST_AHEAD} requests were sent before the first was answered"
            found = RequestError(message, code="bad_http")
        return found

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if framing.too_many_chunks(self._chunks, self._body):
            self._fault = RequestError("the body comes in too many chunks, or too small ones", code="too_many_chunks")
            raise StopParsingError

    def on_body(self, body: bytes) -> None:
        exchange = self._arriving
        if exchange is None:  # it was ended
            raise StopParsingError
        self._body += len(body)
        self._fault = self._keep(exchange, body)
        if self._fault is not None:
            raise StopParsingError

    def on_message_complete(self) -> None:
        if self._has_wish():
            return
        self._has_come()

    # Requests

    def _admit(self, exchange: Exchange) -> None:
        """Ask whether a request may pass, and whether its body is within the limit; else its answer is there."""
        access, head = self._access, exchange.head
        if access.forwarding.active:
            exchange.peer = self._forwarded(head)
        preflight = self._site.preflight(head)
        if preflight is not None:
            self.answered(exchange, raw(preflight, access.origins.headers(head.headers)))
            return
        denial = self._site.denial(head, exchange.peer)
        if denial is None and head.length is not None and head.length > self._site.limit(head):
            denial = self._site.too_large(head)
        if denial is not None:
            self._deny(exchange, denial)
        else:
            head.admitted = True

    def _forwarded(self, head: RequestHead) -> Peer:
        """Who sends a request, as a trusted proxy tells it."""
        own, forwarding = self._peer, self._access.forwarding
        client = forwarding.client(own.client, head.headers)
        return own._replace(client=client, scheme=forwarding.scheme(own.client, head.headers, own.scheme))

    def _deny(self, exchange: Exchange, denial: Denial) -> None:
        """Refuse a request whose body, if it has one, is still to come: that is discarded."""
        head = exchange.head
        if head.length != 0:
            exchange.keep_alive = False
        self._release(exchange)
        found = self._site.refused(denial, head, exchange.peer)
        self.answered(exchange, raw(found, self._access.origins.headers(head.headers)))

    def _expect_body(self, exchange: Exchange) -> None:
        """Expect the body of the exchange that is last in line."""
        self._arriving = exchange
        self._fields = []  # trailers must not pass for headers that were checked
        self._reading.waiting = "body"
        self._reading.again(self._monitor.now)
        self._body = self._around = 0
        head = exchange.head
        if head.length != 0 and exchange.answer is None:
            limit = self._site.limit(head)
            exchange.body = BodyBuffer(limit if head.length is None else head.length)
            self._hold(exchange)

    def _has_come(self) -> None:
        """The request that arrives has come whole."""
        exchange, self._arriving, self._unparsed = self._arriving, None, False
        self._reading.waiting, self._reading.since = "rest", self._monitor.now
        if exchange is None:
            return
        exchange.whole = True
        if exchange.share is not None:
            exchange.share.whole()
        self._deaf = not exchange.keep_alive
        if exchange is not self._current:
            return
        if exchange.sent:
            self._go_on(exchange)
        elif exchange.answer is None:
            self._run(exchange)

    def _run(self, exchange: Exchange, body: bytes | memoryview = b"") -> None:
        head, peer = exchange.head, exchange.peer
        if exchange.body is not None:
            body, exchange.body = exchange.body.whole(), None  # so that an idle connection holds none
        if head.is_prediction:
            assert head.match is not None
            request = self._site.request(head, peer, body, identity=exchange.identity, received=exchange.received)
            answering = Eager(dispatch.answer(self._service, head.match, request), exchange.ended)
            if exchange.answer is None:
                exchange.answering = answering
            return
        answer = self._site.answer(head, peer, body, identity=exchange.identity, received=exchange.received)
        task = exchange.answering = asyncio.get_running_loop().create_task(answer)
        self._front.tasks.add(task)
        task.add_done_callback(self._front.tasks.discard)
        task.add_done_callback(exchange.task_ended)

    def _forget(self) -> None:
        self._unparsed = False
        self._take_over()

    def _path(self) -> str:
        if self._arriving is not None:
            return self._arriving.head.path
        path = self._url.partition(b"?")[0].decode("latin-1")
        return self._access.forwarding.below(path)
