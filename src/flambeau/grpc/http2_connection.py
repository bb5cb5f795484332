"""A client's connection over HTTP/2 (RFC 9113): frames become streams, within bounds, and what streams send is written.

Everything that one turn of the loop sends is written at once. A block of headers that is the same as one before, while
the table that it refers to has not changed, is not decoded again: a client's calls have the same headers. What breaks
the protocol ends the connection with the RFC's code; what only costs time is counted, and too much of it does the same.
It knows no gRPC but the headers of its calls.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, cast

from flambeau.grpc import http2_frames as frames
from flambeau.grpc.admission import Admission
from flambeau.grpc.call_heads import CallHead, MalformedHeadError
from flambeau.grpc.header_blocks import HeaderReader
from flambeau.grpc.http2_frames import ConnectionFault, ErrorCode
from flambeau.grpc.streams import Stream

_READ_AT_ONCE = 256 * 1024
_WRITTEN_AT_ONCE = 64 * 1024
_FRAME = 1 << 20  # bytes of DATA that a client may send in one frame
_MOST_CONTROL = 2000  # frames between two checks that carry no call and no data, beside
_CONTROL_OF_A_CALL = 16  # for each call
_MOST_RESETS = 500  # calls between two checks that their client cancels
_MOST_CONTINUATIONS = 32
_MOST_HEADS = 64
_IDLE_SECONDS = 300  # without a call; clients keep a channel and log its end, so --idle-timeout would be too short
_SILENT_SECONDS = 60  # after which a client that sends nothing is asked whether it is there
_ANSWER_SECONDS = 20  # to that
_LAST_CALLS_SECONDS = 1.0  # for a client to acknowledge that the server stops
_STOPPING = b"stopping"  # the ping behind the word that no more calls are taken: what was sent before it comes before
_ALIVE = b"are you?"
_SMALL = 1024  # bytes of a DATA frame that nobody wants
_CONTROL_SIZE = 1 << 14  # bytes of a frame that is neither headers nor data


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
    connections: "set[Http2Connection]" = field(default_factory=set)
    buffer: memoryview = field(default_factory=lambda: memoryview(bytearray(_READ_AT_ONCE)))
    outgoing: "list[Http2Connection]" = field(default_factory=list)

    def flush(self) -> None:
        """Write what all connections have sent in this turn."""
        outgoing, self.outgoing = self.outgoing, []
        for each in outgoing:
            each.flush()


class Http2Connection(asyncio.BufferedProtocol):
    """One connection. `window`: the bytes that may be sent on all its streams; `full`: whether its socket takes no more."""

    transport: asyncio.Transport

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.peer = ""
        self.window = frames.FIRST_WINDOW
        self.most_frame = frames.LEAST_FRAME
        self.full = False
        self.blocked: dict[Stream, None] = {}
        self._streams: dict[int, Stream] = {}
        self._last = 0
        self._first_window = frames.FIRST_WINDOW
        self._credit = ground.connection_window
        self._used = 0
        self._rest = b""
        self._greeted = self._settled = False
        self._closing = False
        self._content = self._padding = 0  # bytes of a DATA frame that have not come
        self._filling: Stream | None = None
        self._ends = self._direct = False
        self._reader = HeaderReader(ground.most_headers)
        self._heads: dict[bytes, CallHead] = {}
        self._block: list[bytes] | None = None  # of headers that go on
        self._block_size = self._block_of = self._block_flags = 0
        self._control = self._resets = 0
        self._out: list[bytes | memoryview] = []
        self._out_size = 0
        self._began = self._heard = self._idle = time.monotonic()
        self._quiet = True  # whether nothing came since the last check
        self._asked: float | None = None  # when the client was asked whether it is there
        self._left: tuple[float, int] | None = None  # since when the socket holds so many bytes that are not sent
        self._stopping: float | None = None  # when the client was told that no more calls are taken
        self._stopped = False  # whether no more are taken

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
                frames.MAX_FRAME_SIZE: _FRAME,
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
        self._unblock()

    def get_buffer(self, sizehint: int) -> memoryview:
        room = self._filling.room() if self._content and self._filling is not None else None
        self._direct = room is not None
        return self.ground.buffer if room is None else room[: self._content]

    def buffer_updated(self, nbytes: int) -> None:
        self._quiet = False
        if not self._direct:
            self._received(bytes(self.ground.buffer[:nbytes]))
            return
        self._content -= nbytes
        if self._filling is not None:
            self._filling.filled(nbytes)
        if not self._content and not self._padding:
            self._data_over()

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
        if len(out) == 1:
            self.transport.write(out[0])
        elif size <= _WRITTEN_AT_ONCE:
            self.transport.write(b"".join(out))
        else:
            self.transport.writelines(out)

    def forget(self, stream: Stream) -> None:
        """The stream is over."""
        self._streams.pop(stream.number, None)
        self.blocked.pop(stream, None)
        if self._stopped and not self._streams:
            self._close()

    def _unblock(self) -> None:
        for each in list(self.blocked):
            if self.full or self.window <= 0:
                return
            self.blocked.pop(each, None)
            each.pump()

    # What comes

    def _received(self, data: bytes) -> None:
        if self._closing:
            return
        if self._rest:
            data = self._rest + data
            self._rest = b""
        try:
            place = self._frames(data)
        except ConnectionFault as fault:
            self.fail(fault.code, str(fault))
            return
        if place < len(data):
            self._rest = data[place:]

    def _frames(self, data: bytes) -> int:
        """Take the frames in `data`. Returns how far."""
        place, end = 0, len(data)
        if not self._greeted:
            preface = frames.PREFACE
            if data[: len(preface)] != preface[:end]:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the connection does not begin as one of HTTP/2 does")
            if end < len(preface):
                return 0
            self._greeted, place = True, len(preface)
        while True:
            if self._content or self._padding:
                place = self._more_data(data, place)
                if self._content or self._padding:
                    return place
            start = place + frames.HEAD_SIZE
            if start > end:
                return place
            high, low, kind, flags, number = frames.HEAD.unpack_from(data, place)
            length = high << 8 | low
            number &= frames.LAST_STREAM
            if length > _FRAME:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            if self._block is not None and (kind != frames.CONTINUATION or number != self._block_of):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame comes between those of a block of headers")
            if kind == frames.DATA:
                if flags & frames.PADDED and start == end and length:
                    return place
                place = self._data(data, start, length, flags, number)
                continue
            if not self._settled and kind != frames.SETTINGS:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            if kind > frames.CONTINUATION:
                self._count_control()
                self._padding = length
                self._filling = None
                self._ends = False
                place = start
                continue
            headers = kind in (frames.HEADERS, frames.CONTINUATION)
            if length > (self.ground.most_headers if headers else _CONTROL_SIZE):
                code = ErrorCode.ENHANCE_YOUR_CALM if headers else ErrorCode.FRAME_SIZE_ERROR
                raise ConnectionFault(code, f"a frame of {length} bytes")
            if start + length > end:
                return place
            place = start + length
            if kind == frames.HEADERS:
                self._headers(data[start:place], flags, number)
            else:
                self._control_frame(kind, data[start:place], flags, number)

    # DATA

    def _data(self, data: bytes, place: int, length: int, flags: int, number: int) -> int:
        """Take a DATA frame, as far as it has come. Returns how far."""
        self._credit -= length
        if self._credit < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more data than the connection's window allows")
        self._used += length
        if 2 * self._used >= self.ground.connection_window:
            self.put(frames.window_update(0, self._used))
            self._credit += self._used
            self._used = 0
        stream = self._streams.get(number)
        if stream is None:
            if not number or number > self._last:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "data of a stream that has not begun")
            if length < _SMALL:  # it was ended, and its client may not know yet
                self._count_control()
        elif stream.ended:
            self.reset(stream, ErrorCode.STREAM_CLOSED)
            stream = None
        else:
            stream.credit -= length
            if stream.credit < 0:
                self.reset(stream, ErrorCode.FLOW_CONTROL_ERROR)
                stream = None
            elif not length:
                self._count_control()
        ends = flags & frames.END_STREAM != 0
        if not flags & frames.PADDED and length <= len(data) - place:  # nearly always
            if stream is not None:
                if length:
                    stream.take(data, place, place + length)
                    if not ends:
                        stream.replenish(length)
                if ends:
                    stream.finish()
            return place + length
        self._content, self._padding = length, 0
        if flags & frames.PADDED:
            if not length or data[place] >= length:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "more padding than the frame has bytes")
            self._padding = data[place]
            self._content = length - 1 - self._padding
            place += 1
        self._filling, self._ends = stream, ends
        if stream is not None and not ends:
            stream.replenish(length)
        if not self._content and not self._padding:
            self._data_over()
        return place

    def _more_data(self, data: bytes, place: int) -> int:
        """Take more of a frame that came in part. Returns how far."""
        size = min(self._content, len(data) - place)
        if size:
            if self._filling is not None and not self._filling.deaf:
                self._filling.take(data, place, place + size)
            self._content -= size
            place += size
        size = min(self._padding, len(data) - place)
        self._padding -= size
        place += size
        if not self._content and not self._padding:
            self._data_over()
        return place

    def _data_over(self) -> None:
        stream, self._filling = self._filling, None
        if stream is not None and self._ends and not stream.over:
            stream.finish()

    # HEADERS and CONTINUATION

    def _headers(self, payload: bytes, flags: int, number: int) -> None:
        if not number & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client's streams have odd numbers")
        if flags & (frames.PADDED | frames.PRIORITISED):
            payload = _unpadded(payload, flags)
        if flags & frames.END_HEADERS:
            self._block_over(payload, flags, number)
        else:
            self._block, self._block_size = [payload], len(payload)
            self._block_of, self._block_flags = number, flags

    def _continuation(self, payload: bytes, flags: int) -> None:
        if self._block is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._block.append(payload)
        self._block_size += len(payload)
        if self._block_size > self.ground.most_headers or len(self._block) > _MOST_CONTINUATIONS:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a block of headers does not end")
        if flags & frames.END_HEADERS:
            block, self._block = b"".join(self._block), None
            self._block_over(block, self._block_flags, self._block_of)

    def _block_over(self, block: bytes, flags: int, number: int) -> None:
        """A block of headers has come whole: a call begins, or its trailers end it."""
        stream = self._streams.get(number)
        if stream is not None or number <= self._last:
            self._decoded(block)
            if stream is None:
                return  # trailers of a call that was ended
            if stream.ended or not flags & frames.END_STREAM:
                self.reset(stream, ErrorCode.STREAM_CLOSED if stream.ended else ErrorCode.PROTOCOL_ERROR)
                return
            stream.finish()
            return
        if self._stopped:
            self._decoded(block)
            return  # its client knows that it is not answered
        self._last = number
        head = self._heads.get(block)
        if head is None:
            head = self._new_head(block, number)
            if head is None:
                return
        if len(self._streams) >= self.ground.most_streams:
            self._count_reset()
            self.put(frames.reset(number, ErrorCode.REFUSED_STREAM))
            return
        stream = Stream(self, number, head, self._first_window)
        self._streams[number] = stream
        self._control = max(0, self._control - _CONTROL_OF_A_CALL)
        self.ground.begin(stream)
        if flags & frames.END_STREAM and not stream.over:
            stream.finish()

    def _decoded(self, block: bytes) -> "list[tuple[bytes, bytes]] | None":
        before = self._reader.changes
        try:
            fields = self._reader.read(block)
        except ValueError as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, str(error)) from None
        if self._reader.changes != before:
            self._heads.clear()
        return fields

    def _new_head(self, block: bytes, number: int) -> CallHead | None:
        before = self._reader.changes
        fields = self._decoded(block)
        try:
            head = CallHead(fields)
        except MalformedHeadError:
            self._count_reset()
            self.put(frames.reset(number, ErrorCode.PROTOCOL_ERROR))
            return None
        if self._reader.changes == before:
            if len(self._heads) >= _MOST_HEADS:
                self._heads.clear()
            self._heads[block] = head
        return head

    # Everything else

    def _control_frame(self, kind: int, payload: bytes, flags: int, number: int) -> None:
        self._count_control()
        if kind == frames.CONTINUATION:
            self._continuation(payload, flags)
        elif kind == frames.WINDOW_UPDATE:
            self._window_update(payload, number)
        elif kind == frames.RST_STREAM:
            self._client_resets(payload, number)
        elif kind == frames.PING:
            _expect(payload, 8, number, on_stream=False)
            if flags & frames.ACK:
                if payload == _STOPPING and self._stopping is not None:
                    self._stop()
            else:
                self.put(frames.ping(payload, ack=True))
        elif kind == frames.SETTINGS:
            self._client_settings(payload, flags, number)
        elif kind == frames.PRIORITY:
            _expect(payload, 5, number, on_stream=True)
        elif kind == frames.GOAWAY:
            if number or len(payload) < 8:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a GOAWAY frame that is none")
        else:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client may not push")

    def _client_settings(self, payload: bytes, flags: int, number: int) -> None:
        if number:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS are of the connection")
        if flags & frames.ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "an acknowledgement has no settings")
            return
        self._settled = True
        for name, value in frames.settings_in(payload):
            if name == frames.INITIAL_WINDOW_SIZE:
                more, self._first_window = value - self._first_window, value
                for each in self._streams.values():
                    each.window += more
                    if each.window > frames.MOST_WINDOW:
                        raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a window is too large")
            elif name == frames.MAX_FRAME_SIZE:
                self.most_frame = value
        self.put(frames.SETTINGS_ACK)
        self._unblock()

    def _window_update(self, payload: bytes, number: int) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a WINDOW_UPDATE frame has four bytes")
        size = frames.number_in(payload)
        if not number:
            if not size:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a window grows by nothing")
            self.window += size
            if self.window > frames.MOST_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window is too large")
            self._unblock()
            return
        if number > self._last:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a window of a stream that has not begun")
        stream = self._streams.get(number)
        if stream is None:
            return
        stream.window += size
        if not size or stream.window > frames.MOST_WINDOW:
            self.reset(stream, ErrorCode.FLOW_CONTROL_ERROR if size else ErrorCode.PROTOCOL_ERROR)
        elif stream in self.blocked:
            del self.blocked[stream]
            stream.pump()

    def _client_resets(self, payload: bytes, number: int) -> None:
        _expect(payload, 4, number, on_stream=True)
        if number > self._last:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a stream is reset that has not begun")
        stream = self._streams.pop(number, None)
        if stream is not None:
            self._count_reset()
            self._drop(stream)
            if self._stopped and not self._streams:
                self._close()

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

    def _count_control(self) -> None:
        self._control += 1
        if self._control > _MOST_CONTROL:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that carry nothing")

    def _count_reset(self) -> None:
        self._resets += 1
        if self._resets > _MOST_RESETS:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many calls were cancelled")

    # The end, and what is overdue

    def shutdown(self) -> None:
        """Take no more calls than those that were sent before the client knew, and close when all are answered."""
        if self._stopping is None and not self._closing:
            self._stopping = time.monotonic()
            self.put(frames.goaway(frames.LAST_STREAM, ErrorCode.NO_ERROR) + frames.ping(_STOPPING))

    def _stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            self.put(frames.goaway(self._last, ErrorCode.NO_ERROR))
            if not self._streams:
                self._close()

    def _close(self) -> None:
        self._closing = True
        self.flush()
        self.transport.close()

    def _make_room(self) -> bool:
        """Close the connection that has had no call for the longest, if there is one without."""
        idle = [each for each in self.ground.connections if each is not self and not each._streams and not each._closing]
        if idle:
            oldest = min(idle, key=lambda each: each._idle)
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
        if self._streams:
            self._idle = now
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
        """Whether the client does not read what it is sent."""
        left = self.transport.get_write_buffer_size() + sum(each.owes for each in self.blocked)
        if not left:
            self._left = None
            return False
        if self._left is None:
            self._left = now, left
            return False
        since, before = self._left
        timeouts = self.ground.timeouts
        if now - since <= timeouts.write:
            return False
        self._left = now, left
        return before - left < timeouts.rate * timeouts.write

    def fail(self, code: ErrorCode, why: str) -> None:
        """End the connection, and tell why."""
        self._closing = True
        self.put(frames.goaway(self._last, code, why))
        self.flush()
        self.transport.close()


def _unpadded(payload: bytes, flags: int) -> bytes:
    """The block in a HEADERS frame with padding, or a priority, which means nothing any more."""
    start, end = 0, len(payload)
    if flags & frames.PADDED:
        start = 1
        end -= payload[0] if payload else 1
    if flags & frames.PRIORITISED:
        start += 5
    if end < start:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a HEADERS frame is shorter than what is in it")
    return payload[start:end]


def _expect(payload: bytes, size: int, number: int, *, on_stream: bool) -> None:
    if len(payload) != size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a frame has not the length of its kind")
    if (number != 0) != on_stream:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame is on a stream that it cannot be on")
