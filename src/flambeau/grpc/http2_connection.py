"""A client's connection over HTTP/2 (RFC 9113): frames are cut out of what comes, and data goes to its streams.

A long message is read from the socket straight to its place. It knows no gRPC but the headers of its calls.
"""

from flambeau.grpc import http2_frames as frames
from flambeau.grpc.http2_control import Http2Control
from flambeau.grpc.http2_frames import ConnectionFault, ErrorCode
from flambeau.grpc.http2_link import MOST_FRAME, Ground
from flambeau.grpc.streams import Stream

_CONTROL_SIZE = 1 << 14  # bytes of a frame that is neither headers nor data
_SMALL = 1024  # bytes of a DATA frame that nobody wants


class Http2Connection(Http2Control):
    """One connection."""

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self._credit = ground.connection_window
        self._used = 0
        self._rest = b""
        self._greeted = False
        self._content = self._padding = 0  # bytes of a DATA frame that have not come
        self._filling: Stream | None = None
        self._ends = self._direct = False

    def get_buffer(self, sizehint: int) -> memoryview:
        room = self._filling.room() if self._content and self._filling is not None else None
        self._direct = room is not None
        return self.ground.buffer if room is None else room[: self._content]

    def buffer_updated(self, nbytes: int) -> None:
        self._quiet = False
        if self._closing:
            return
        try:
            if self._direct:
                self._filled(nbytes)
            else:
                self._received(bytes(self.ground.buffer[:nbytes]))
        except ConnectionFault as fault:
            self.fail(fault.code, str(fault))

    # What comes

    def _filled(self, size: int) -> None:
        """So many bytes of a message were read to their place."""
        self._content -= size
        if self._filling is not None:
            self._filling.filled(size)
        if not self._content and not self._padding:
            self._data_over()

    def _received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
            self._rest = b""
        place = self._frames(data)
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
            if length > MOST_FRAME:
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
            if length > (self.ground.most_block if headers else _CONTROL_SIZE):
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
            if not self._may_be_late(number):
                raise ConnectionFault(ErrorCode.STREAM_CLOSED, "data of a stream that its client has ended")
            if length < _SMALL:
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
                if stream.lacks is not None:
                    stream.lacks -= length
                if length:
                    stream.take(data, place, place + length)
                    if not ends:
                        stream.replenish(length)
                if ends:
                    stream.finish()
            return place + length
        self._content, self._padding = length, 0
        if flags & frames.PADDED:
            if not length:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "padding in a frame that has no byte")
            if data[place] >= length:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "more padding than the frame has bytes")
            self._padding = data[place]
            self._content = length - 1 - self._padding
            if not self._content:
                self._count_control()
            place += 1
        self._filling, self._ends = stream, ends
        if stream is not None and stream.lacks is not None:
            stream.lacks -= self._content
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
