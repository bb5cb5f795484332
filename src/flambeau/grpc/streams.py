"""One stream of a connection, which carries one call: messages cut out of what comes, and answers within the windows.

A message is counted as soon as its length is known, and collected in its place. What a call means is not known here.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Protocol

from flambeau.errors import RequestError
from flambeau.grpc import http2_frames as frames
from flambeau.grpc.admission import LongArrival
from flambeau.grpc.call_heads import CallHead
from flambeau.grpc.header_blocks import written
from flambeau.grpc.http2_frames import ErrorCode
from flambeau.grpc.statuses import Status, message_text

if TYPE_CHECKING:
    from flambeau.grpc.http2_link import Http2Link

_PREFIX = Struct(">BI")  # whether a message is packed, and its length
_PREFIX_SIZE = _PREFIX.size

_CONTENT = [
    (b":status", b"200"),
    (b"content-type", b"application/grpc"),
    (b"grpc-accept-encoding", b"identity,deflate,gzip"),
]
_ANSWER = written(_CONTENT)
_ANSWER_HEAD = frames.head(len(_ANSWER), frames.HEADERS, frames.END_HEADERS, 0)[:5]
_GOOD = written([(b"grpc-status", b"0")])
_TRAILERS_HEAD = frames.head(len(_GOOD), frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 0)[:5]
_COPIED = 16 * 1024  # bytes: a shorter answer is joined with its headers
_LEAST_HELD = 128
"""Bytes that a message counts as at least: it takes about as many beside its own, and an empty one comes as five."""

Trailing = list[tuple[str, str]]


class Message:
    """A message as it came. `size`: the bytes that it holds of the memory for messages, until `release`."""

    __slots__ = ("packed", "raw", "size")

    def __init__(self, raw: bytes | memoryview, size: int, packed: bool) -> None:
        self.raw = raw
        self.size = size
        self.packed = packed


class Conversation(Protocol):
    """What a call does with its stream."""

    def came(self, message: Message) -> None:
        """A message has come whole."""

    def half_closed(self) -> None:
        """The client sends no more messages."""

    def failed(self, error: RequestError) -> None:
        """What came cannot be taken."""

    def gone(self) -> None:
        """The client does not want the answer, or has left."""

    def overdue(self, now: float) -> None:
        """Act on what is overdue. `now` is `time.monotonic()`."""


class CallStream(Protocol):
    """What a stream is to its call. `head`, `peer`: what the call begins with, and its client's address. `ended`:
    whether the client has sent all, `deaf`: whether nobody wants what still comes, `over`: whether all is said."""

    call: Conversation | None
    deaf: bool

    @property
    def head(self) -> CallHead: ...
    @property
    def peer(self) -> str: ...
    @property
    def ended(self) -> bool: ...
    @property
    def over(self) -> bool: ...

    def answer(self, message: bytes, trailing: Trailing | None = None) -> None:
        """Send the one message of a good answer, and end."""

    def send(self, message: bytes) -> None:
        """Send one of several messages."""

    async def drained(self) -> None:
        """Wait until what was sent has left, as far as the client lets it."""

    def read_on(self, size: int) -> None:
        """A message of that size was read, so that others may come."""

    def ignore(self) -> None:
        """Nobody wants what still comes."""

    def end(self, status: Status, text: str, trailing: Trailing) -> None:
        """End the call with its status, behind what was sent, and ignore what still comes. The first status counts."""

    def refuse(self, status: int) -> None:
        """Answer what is no call with a status of HTTP."""

    def at_end(self, function: Callable[[], None]) -> None:
        """Call that when all that was said has left, or nobody wants it."""


class Stream:
    """A connection's stream. `window`: the bytes that may be sent on it, `credit`: those that its client may send."""

    __slots__ = (
        "_arrival", "_at_end", "_connection", "_left", "_out", "_packed", "_prefix", "_released", "_sent_head",
        "_trailers", "_unread", "_waiter", "call", "credit", "deaf", "ended", "head", "lacks", "number", "over",
        "window",
    )  # fmt: skip

    def __init__(self, connection: "Http2Link", number: int, head: CallHead, window: int) -> None:
        self._connection = connection
        self.number = number
        self.head = head
        self.window = window
        self.lacks = head.length
        """The bytes that are yet to come by the call's own word, if it gave one."""
        self.credit = connection.ground.window
        self.call: Conversation | None = None
        self.ended = False
        """Whether the client has sent all."""
        self.deaf = False
        """Whether nobody wants what still comes."""
        self.over = False
        self._prefix = b""
        self._arrival: LongArrival | None = None
        self._packed = 0
        self._released = self._unread = 0
        self._out: deque[bytes | memoryview] = deque()
        self._left = 0
        self._trailers: bytes | None = None
        self._sent_head = False
        self._waiter: asyncio.Future[None] | None = None
        self._at_end: Callable[[], None] | None = None

    @property
    def peer(self) -> str:
        """The client's address."""
        return self._connection.peer

    @property
    def owes(self) -> int:
        """The bytes of answers that its client does not take."""
        return self._left

    # What comes

    def take(self, data: bytes, place: int, end: int) -> None:
        """Take what came of messages: `data` from `place` to `end`."""
        ground = self._connection.ground
        while place < end and not self.deaf:
            arrival = self._arrival
            if arrival is None:
                if not self._prefix and end - place >= _PREFIX_SIZE:
                    packed, size = _PREFIX.unpack_from(data, place)
                    place += _PREFIX_SIZE
                else:
                    lacks = min(_PREFIX_SIZE - len(self._prefix), end - place)
                    self._prefix += data[place : place + lacks]
                    place += lacks
                    if len(self._prefix) < _PREFIX_SIZE:
                        return
                    packed, size = _PREFIX.unpack(self._prefix)
                    self._prefix = b""
                try:
                    self._check(packed, size)
                    if size <= end - place:
                        held = max(size, _LEAST_HELD)
                        ground.admission.hold(held)
                        self._came(Message(data[place : place + size], held, packed == 1))
                        place += size
                        continue
                    self._packed = packed
                    self._arrival = ground.admission.arrival(size, self._given_up)
                except RequestError as error:
                    self._fail(error)
                continue
            part = min(arrival.left, end - place)
            try:
                arrival.add(memoryview(data)[place : place + part])
            except RequestError as error:
                self._fail(error)
                return
            place += part
            self._arrived(arrival)

    def room(self) -> memoryview | None:
        """Where the rest of a long message may be written; call `filled` with what was."""
        return self._arrival.room() if self._arrival is not None else None

    def filled(self, size: int) -> None:
        """So many bytes were written into `room`."""
        arrival = self._arrival
        if arrival is None:
            return
        try:
            arrival.filled(size)
        except RequestError as error:
            self._fail(error)
            return
        self._arrived(arrival)

    def finish(self) -> None:
        """The client has sent all."""
        self.ended = True
        if self.deaf or self.call is None:
            return
        if self.lacks:
            self._connection.reset(self, ErrorCode.PROTOCOL_ERROR)
        elif self._arrival is not None or self._prefix:
            self._fail(RequestError("the call ends within a message", code="bad_request"))
        else:
            self.call.half_closed()

    def read_on(self, size: int) -> None:
        """A message of that size was read, so that others may come."""
        self._unread -= size
        self.replenish(0)

    def replenish(self, size: int) -> None:
        """Let the client send as much again as came, unless it sends faster than it is read."""
        self._released += size
        most = self._connection.ground.window
        if 2 * self._released >= most and 2 * self._unread < most and not self.ended and not self.deaf:
            self._connection.put(frames.window_update(self.number, self._released))
            self.credit += self._released
            self._released = 0

    def ignore(self) -> None:
        """Nobody wants what still comes."""
        self.deaf = True
        if self._arrival is not None:
            self._arrival.close()
            self._arrival = None

    def close(self) -> None:
        """Nobody wants what still comes, and nothing more is sent."""
        self.ignore()
        self.over = True
        self._out.clear()
        self._left = 0
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self._at_end is not None:
            function, self._at_end = self._at_end, None
            function()

    def at_end(self, function: Callable[[], None]) -> None:
        """Call that when all that was said has left, or nobody wants it."""
        if self.over:
            function()
        else:
            self._at_end = function

    def _check(self, packed: int, size: int) -> None:
        most = self._connection.ground.most_message
        if size > most:
            raise RequestError(
                f"a message of {size} bytes is larger than max_body_bytes ({most})", code="body_too_large"
            )
        if packed > 1 or (packed and self.head.encoding == "identity"):
            raise RequestError("a message is packed, and grpc-encoding does not say how", code="bad_request")

    def _arrived(self, arrival: LongArrival) -> None:
        if arrival.left:
            return
        self._arrival = None
        raw = arrival.whole()
        size = len(raw)
        if size < _LEAST_HELD:
            admission = self._connection.ground.admission
            try:
                admission.hold(_LEAST_HELD - size)
            except RequestError as error:
                admission.release(size)
                self._fail(error)
                return
            size = _LEAST_HELD
        self._came(Message(raw, size, self._packed == 1))

    def _came(self, message: Message) -> None:
        self._unread += message.size
        assert self.call is not None
        self.call.came(message)

    def _given_up(self) -> None:
        """Its upload was ended, to make room for others."""
        self._arrival = None
        self._fail(self._connection.ground.admission.full)

    def _fail(self, error: RequestError) -> None:
        if self._arrival is not None:
            self._arrival.close()
            self._arrival = None
        assert self.call is not None
        self.call.failed(error)

    # What goes

    def answer(self, message: bytes, trailing: Trailing | None = None) -> None:
        """Send the one message of a good answer, and end."""
        if self.over:
            return
        size = len(message)
        connection = self._connection
        whole = size + _PREFIX_SIZE
        if (
            size <= _COPIED - _PREFIX_SIZE and whole <= self.window and whole <= connection.window
            and not trailing and not connection.full
        ):  # fmt: skip
            connection.window -= whole
            number = self.number.to_bytes(4)
            connection.put(
                b"".join((
                    _ANSWER_HEAD, number, _ANSWER, frames.HEAD.pack(whole >> 8, whole & 255, 0, 0, self.number),
                    b"\0", size.to_bytes(4), message, _TRAILERS_HEAD, number, _GOOD,
                ))
            )  # fmt: skip
            self._end()
            return
        self.send(message)
        self.end(Status.OK, "", trailing or [])

    def send(self, message: bytes) -> None:
        """Send a message, as far as the windows allow it now."""
        if self.over:
            return
        if not self._sent_head:
            self._sent_head = True
            self._connection.put(_ANSWER_HEAD + self.number.to_bytes(4) + _ANSWER)
        self._out.append(_PREFIX.pack(0, len(message)))
        self._out.append(message if len(message) <= _COPIED else memoryview(message))
        self._left += _PREFIX_SIZE + len(message)
        self.pump()

    def end(self, status: Status, text: str, trailing: Trailing) -> None:
        """End the call with its status, behind what was sent, and ignore what still comes. The first status counts."""
        if self.over or self._trailers is not None:
            return
        self.ignore()
        fields = [(b"grpc-status", b"%d" % status)]
        if text:
            fields.append((b"grpc-message", message_text(text)))
        fields += [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in trailing]
        self._trailers = written(fields if self._sent_head else _CONTENT + fields)
        self._sent_head = True
        self.pump()

    def refuse(self, status: int) -> None:
        """Answer what is no call with a status of HTTP."""
        block = written([(b":status", b"%d" % status)])
        self._connection.put(
            frames.head(len(block), frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, self.number) + block
        )
        self._end()

    async def drained(self) -> None:
        """Wait until what was sent has left, as far as the client lets it."""
        if self._left and not self.over:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def pump(self) -> None:
        """Send what waits, as far as the windows and the socket allow."""
        connection, out = self._connection, self._out
        while self._left:
            size = min(self._left, self.window, connection.window, connection.most_frame)
            if size <= 0 or connection.full:
                connection.blocked[self] = None
                return
            self.window -= size
            connection.window -= size
            self._left -= size
            connection.put(frames.head(size, frames.DATA, 0, self.number))
            while size:
                piece = out[0]
                if len(piece) <= size:
                    connection.put(piece)
                    size -= len(piece)
                    out.popleft()
                else:
                    connection.put(piece[:size])
                    out[0] = piece[size:]
                    size = 0
        if self._trailers is not None:
            connection.put(
                frames.head(
                    len(self._trailers), frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, self.number
                ) + self._trailers
            )  # fmt: skip
            self._end()
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end(self) -> None:
        """All is sent."""
        if not self.ended:  # what it still sends is not wanted
            self._connection.put(frames.reset(self.number, ErrorCode.NO_ERROR))
        self._connection.forget(self)
        self.close()
