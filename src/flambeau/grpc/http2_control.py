"""The frames of a connection that begin and steer its streams: headers, windows, settings, resets, pings.

A block of headers that is the same as one before on this connection, while the table that it refers to has not
changed, is not decoded again: a client's calls have the same headers. What breaks the protocol ends the connection with
the RFC's code; what only costs time is counted, and too much of it does the same.
"""

from flambeau.grpc import http2_frames as frames
from flambeau.grpc.call_heads import CallHead, MalformedHeadError, are_trailers
from flambeau.grpc.header_blocks import Field, HeaderReader
from flambeau.grpc.http2_frames import ConnectionFault, ErrorCode
from flambeau.grpc.http2_link import STOPPING, Ground, Http2Link
from flambeau.grpc.streams import Stream
from flambeau.system.known_bytes import KnownBytes

_CONTROL_OF_A_CALL = 16  # for each call
_GOAWAY_SIZE = 8  # bytes at least
_STREAMS_OF_A_FRAME = 16  # whose windows are changed in the time of a frame that carries nothing
_MOST_CONTINUATIONS = 32
_MOST_HEADS = 32  # in each of two generations
_TOO_LARGE_COSTS = 20  # resets: the time that it takes to read headers only to refuse them
_LONGEST_HEAD = 4096  # bytes of one that is kept, as it comes and as it is read


class Http2Control(Http2Link):
    """A connection that takes every frame but DATA."""

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self._first_window = frames.FIRST_WINDOW
        self._reader = HeaderReader(ground.most_headers)
        self._heads: KnownBytes[CallHead] = KnownBytes(_MOST_HEADS)
        self._block: list[bytes] | None = None  # of headers that go on
        self._block_size = self._block_of = self._block_flags = 0

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
        if self._block_size > self.ground.most_block or len(self._block) > _MOST_CONTINUATIONS:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a block of headers does not end")
        if flags & frames.END_HEADERS:
            block, self._block = b"".join(self._block), None
            self._block_over(block, self._block_flags, self._block_of)

    def _block_over(self, block: bytes, flags: int, number: int) -> None:
        """A block of headers has come whole: a call begins, or its trailers end it."""
        stream = self._streams.get(number)
        if stream is not None or number <= self._last:
            fields = self._decoded(block)
            if stream is not None:
                self._trailers(stream, fields, flags)
            elif not self._may_be_late(number):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a stream begins with a number that was passed")
            return
        self._last = number
        if self._stopped:
            self._decoded(block)
            return  # its client knows that it is not answered
        head = self._heads.get(block)
        if head is None:
            head = self._new_head(block, number)
            if head is None:
                return
        if len(self._streams) >= self.ground.most_streams:
            self._turn_away(number, ErrorCode.REFUSED_STREAM)
            return
        stream = Stream(self, number, head, self._first_window)
        self._streams[number] = stream
        self._control = max(0, self._control - _CONTROL_OF_A_CALL)
        self.ground.begin(stream)
        if flags & frames.END_STREAM and not stream.over:
            stream.finish()

    def _trailers(self, stream: Stream, fields: list[Field] | None, flags: int) -> None:
        """Headers behind a call's messages, which end it. They mean nothing in a request of gRPC."""
        if stream.ended:
            self.reset(stream, ErrorCode.STREAM_CLOSED)
        elif fields is None:
            self._count_reset(_TOO_LARGE_COSTS)
            self.reset(stream, ErrorCode.ENHANCE_YOUR_CALM)
        elif not flags & frames.END_STREAM or not are_trailers(fields):
            self.reset(stream, ErrorCode.PROTOCOL_ERROR)
        else:
            stream.finish()

    def _turn_away(self, number: int, code: ErrorCode) -> None:
        """End a stream before it begins."""
        self._count_reset()
        self._cuts_short(number)
        self.put(frames.reset(number, code))

    def _decoded(self, block: bytes) -> list[Field] | None:
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
        if fields is None:
            self._count_reset(_TOO_LARGE_COSTS)
        try:
            head = CallHead(fields)
        except MalformedHeadError:
            self._turn_away(number, ErrorCode.PROTOCOL_ERROR)
            return None
        size = len(block) + sum(len(name) + len(value) for name, value in fields or ())
        if self._reader.changes == before and size <= _LONGEST_HEAD:
            self._heads.keep(block, head)
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
                if payload == STOPPING and self._stopping is not None:
                    self._stop()
            else:
                self.put(frames.ping(payload, ack=True))
        elif kind == frames.SETTINGS:
            self._client_settings(payload, flags, number)
        elif kind == frames.PRIORITY:
            _expect(payload, 5, number, on_stream=True)
        elif kind == frames.GOAWAY:
            if number:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a GOAWAY frame is of the connection")
            if len(payload) < _GOAWAY_SIZE:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a GOAWAY frame that is too short")
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
        last = dict(frames.settings_in(payload))  # a frame holds thousands, and each may concern all calls
        for name, value in last.items():
            if name == frames.INITIAL_WINDOW_SIZE:
                self._count_control(len(self._streams) // _STREAMS_OF_A_FRAME)
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


def _unpadded(payload: bytes, flags: int) -> bytes:
    """The block in a HEADERS frame with padding, or a priority, which means nothing any more."""
    padded, prioritised = bool(flags & frames.PADDED), bool(flags & frames.PRIORITISED)
    start, end = padded + 5 * prioritised, len(payload)
    if end < start:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a HEADERS frame is shorter than what is in it")
    if padded:
        end -= payload[0]
    if end < start:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "more padding than the frame has bytes")
    return payload[start:end]


def _expect(payload: bytes, size: int, number: int, *, on_stream: bool) -> None:
    if len(payload) != size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a frame has not the length of its kind")
    if (number != 0) != on_stream:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame is on a stream that it cannot be on")
