"""A client's connection over HTTP/2 from its start to its end: how many there may be, what is written when, what is
overdue, and how it ends so that no call is lost.

Everything that one turn of the loop sends is written at once. It reads no frame.
"""

import asyncio
import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, cast

from flambeau.grpc import http2_frames as frames
from flambeau.grpc.admission import Admission
from flambeau.grpc.http2_frames import ConnectionFault, ErrorCode
from flambeau.grpc.streams import Stream

_READ_AT_ONCE = 256 * 1024
_WRITTEN_AT_ONCE = 64 * 1024
_MOST_CONTROL = 2000  # frames between two checks that carry no call and no data, beside
_MOST_RESETS = 500  # calls between two checks that their client cancels
_IDLE_SECONDS = 300  # without a call; clients keep a channel and log its end, so --idle-timeout would be too short
_SILENT_SECONDS = 60  # after which a client that sends nothing is asked whether it is there
_ANSWER_SECONDS = 20  # to that
_LAST_CALLS_SECONDS = 1.0  # for a client to acknowledge that the server stops
_MOST_CUT_SHORT = 1000  # calls whose clients may still send, remembered one by one
_MOST_UNREAD = 1 << 20  # bytes that a client leaves in its socket, above which it is not listened to
STOPPING = b"stopping"
"""The ping behind the word that no more calls are taken: what was sent before it comes before."""
_ALIVE = b"are you?"
MOST_FRAME = 1 << 20
"""Bytes of DATA that a client may send in one frame."""


class Timeouts(NamedTuple):
    """Seconds: for a connection to begin, for an answer to be read, and the bytes a second of an answer at least."""

    begin: float
    write: float
    rate: int


@dataclass(slots=True)
class Ground:
    """What the connections of a server have in common."""

    begin: Callable[[Stream], None]
    admission: Admission
    most_message: int
    most_headers: int
    most_streams: int
    most_connections: int
    timeouts: Timeouts
    draining: bool = False
    window: int = 1 << 20  # bytes that a client may send on a stream before they are read
    connection_window: int = 4 << 20
    connections: "set[Http2Link]" = field(default_factory=set)
    buffer: memoryview = field(default_factory=lambda: memoryview(bytearray(_READ_AT_ONCE)))
    outgoing: "list[Http2Link]" = field(default_factory=list)

    @property
    def most_block(self) -> int:
        """Bytes of a block of headers, as it comes. Up to here a call whose headers are too long is refused alone, for
        a proxy's other calls are on the same connection; proxies take some 60 KiB."""
        return 2 * self.most_headers

    def flush(self) -> None:
        """Write what all connections have sent in this turn."""
        outgoing, self.outgoing = self.outgoing, []
        for each in outgoing:
            each.flush()


class Http2Link(asyncio.BufferedProtocol):
    """One connection. `window`: the bytes that may be sent on all its streams. `full`: whether its socket takes none.
    `blocked`: the streams that wait for either."""

    transport: asyncio.Transport

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.peer = ""
        self.window = frames.FIRST_WINDOW
        self.most_frame = frames.LEAST_FRAME
        self.full = False
        self.blocked: dict[Stream, None] = {}
        self._streams: dict[int, Stream] = {}
        self._last = 0  # the last stream that its client began
        self._promised = frames.LAST_STREAM  # no stream after that one is answered
        self._cut_short: dict[int, None] = {}  # streams that ended here before their client had sent all
        self._long_ago = 0  # the last of those that are not remembered any more
        self._settled = False  # whether the client has begun
        self._closing = False
        self._control = self._resets = 0
        self._out: list[bytes | memoryview] = []
        self._out_size = 0
        self._written = 0
        self._deaf = False  # whether nothing is read, because the client does not read
        self._began = self._heard = self._idle = time.monotonic()
        self._seen = 0  # the last stream that had begun at the last check
        self._quiet = True  # whether nothing came since then
        self._asked: float | None = None  # when the client was asked whether it is there
        self._left: tuple[float, int] | None = None  # since when there is more to send, and what had left by then
        self._stopping: float | None = None  # when the client was told that no more calls are taken
        self._stopped = False  # whether no more are taken

    @abstractmethod
    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to read to."""

    @abstractmethod
    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes came."""

    # The transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        there = transport.get_extra_info("peername")
        self.peer = str(there[0]) if isinstance(there, tuple) else ""
        self.ground.connections.add(self)
        self.put(
            frames.settings({
                frames.MAX_CONCURRENT_STREAMS: self.ground.most_streams,
                frames.INITIAL_WINDOW_SIZE: self.ground.window,
                frames.MAX_FRAME_SIZE: MOST_FRAME,
                frames.MAX_HEADER_LIST_SIZE: self.ground.most_headers,
            })
            + frames.window_update(0, self.ground.connection_window - frames.FIRST_WINDOW)
        )  # fmt: skip
        if len(self.ground.connections) > self.ground.most_connections and not self._make_room():
            self.fail(ErrorCode.ENHANCE_YOUR_CALM, "there are too many connections to this server")
        elif self.ground.draining:
            self.shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ground.connections.discard(self)
        self._closing = True
        streams, self._streams = list(self._streams.values()), {}
        self.blocked.clear()
        for each in streams:
            self._drop(each)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        if self._deaf:
            self._deaf = False
            self.transport.resume_reading()
        self._unblock()

    # What goes

    def put(self, data: bytes | memoryview) -> None:
        """Send these bytes when this turn of the loop ends, or when they are many."""
        if not self._out:
            outgoing = self.ground.outgoing
            if not outgoing:
                asyncio.get_running_loop().call_soon(self.ground.flush)
            outgoing.append(self)
        self._out.append(data)
        self._out_size += len(data)
        if self._out_size > _WRITTEN_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write what was sent."""
        out, size = self._out, self._out_size
        if not out:
            return
        self._out, self._out_size = [], 0
        if self.transport.is_closing():
            return
        self._written += size
        if len(out) == 1:
            self.transport.write(out[0])
        elif size <= _WRITTEN_AT_ONCE:
            self.transport.write(b"".join(out))
        else:
            self.transport.writelines(out)
        if self.full and not self._deaf and self.transport.get_write_buffer_size() > _MOST_UNREAD:
            self._deaf = True  # else the short answers to whatever it sends would fill the memory
            self.transport.pause_reading()

    def forget(self, stream: Stream) -> None:
        """The stream is over."""
        self._streams.pop(stream.number, None)
        self.blocked.pop(stream, None)
        if not stream.ended:
            self._cuts_short(stream.number)
        if self._stopped and not self._streams:
            self._close()

    def _cuts_short(self, number: int) -> None:
        """The stream ended here, and its client does not know that yet."""
        self._cut_short[number] = None
        if len(self._cut_short) > _MOST_CUT_SHORT:
            oldest = next(iter(self._cut_short))
            del self._cut_short[oldest]
            self._long_ago = max(self._long_ago, oldest)

    def _may_be_late(self, number: int) -> bool:
        """Whether what comes for a stream that is over may have been sent before its client knew."""
        return number in self._cut_short or number <= self._long_ago or number > self._promised

    def _unblock(self) -> None:
        for each in list(self.blocked):
            if self.full or self.window <= 0:
                return
            if each.window > 0:  # else its own WINDOW_UPDATE wakes it
                self.blocked.pop(each, None)
                each.pump()

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """End a stream whose client breaks the protocol."""
        self._count_reset()
        self.put(frames.reset(stream.number, code))
        self.forget(stream)
        self._drop(stream)

    def _drop(self, stream: Stream) -> None:
        self.blocked.pop(stream, None)
        stream.close()
        if stream.call is not None:
            stream.call.gone()

    def _count_control(self, cost: int = 1) -> None:
        self._control += cost
        if self._control > _MOST_CONTROL:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that carry nothing")

    def _count_reset(self, cost: int = 1) -> None:
        self._resets += cost
        if self._resets > _MOST_RESETS:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many calls were cancelled")

    # The end, and what is overdue

    def shutdown(self) -> None:
        """Take no more calls than those that were sent before the client knew, and close when all are answered."""
        if self._stopping is None and not self._closing:
            self._stopping = time.monotonic()
            self.put(frames.goaway(frames.LAST_STREAM, ErrorCode.NO_ERROR) + frames.ping(STOPPING))

    def _stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            self._promised = self._last
            self.put(frames.goaway(self._promised, ErrorCode.NO_ERROR))
            if not self._streams:
                self._close()

    def _close(self) -> None:
        self._closing = True
        self.flush()
        self.transport.close()

    def _make_room(self) -> bool:
        """Close the connection that has had no call for the longest, if there is one without."""
        idle = [
            each for each in self.ground.connections if each is not self and not each._streams and not each._closing
        ]
        if idle:
            oldest = min(idle, key=lambda each: (each._last != each._seen, each._idle))
            oldest.put(frames.goaway(oldest._last, ErrorCode.NO_ERROR))
            oldest._close()
        return bool(idle)

    def check(self, now: float) -> None:
        """Act on whatever is overdue, twice a second. `now` is `time.monotonic()`."""
        self._control = self._resets = 0
        for each in list(self._streams.values()):
            if each.call is not None:
                each.call.overdue(now)
        if not self._quiet:
            self._quiet, self._heard, self._asked = True, now, None
        if self._streams or self._last != self._seen:  # most calls are over long before the next check
            self._idle, self._seen = now, self._last
        if self.transport.is_closing():
            if now - self._heard > self.ground.timeouts.write:
                self.transport.abort()
        elif self._writes_too_long(now) or (not self._settled and now - self._began > self.ground.timeouts.begin):
            self.transport.abort()
        elif self._stopping is not None and now - self._stopping > _LAST_CALLS_SECONDS:
            self._stop()
        elif self._asked is not None and now - self._asked > _ANSWER_SECONDS:
            self.transport.abort()
        elif self._asked is None and now - self._heard > _SILENT_SECONDS:
            self._asked = now
            self.put(frames.ping(_ALIVE))
        elif now - self._idle > _IDLE_SECONDS:
            self.shutdown()

    def _writes_too_long(self, now: float) -> bool:
        """Whether the client does not read what it is sent. What counts is what left, for more may come meanwhile."""
        unsent = self.transport.get_write_buffer_size()
        if not unsent and not any(each.owes for each in self.blocked):
            self._left = None
            return False
        left = self._written - unsent
        if self._left is None:
            self._left = now, left
            return False
        since, before = self._left
        timeouts = self.ground.timeouts
        if now - since <= timeouts.write:
            return False
        self._left = now, left
        return left - before < timeouts.rate * timeouts.write

    def fail(self, code: ErrorCode, why: str) -> None:
        """End the connection, and tell why."""
        self._closing = True
        self.put(frames.goaway(min(self._last, self._promised), code, why))
        self.flush()
        self.transport.close()
