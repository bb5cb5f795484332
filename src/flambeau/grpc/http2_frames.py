"""The frames of HTTP/2 (RFC 9113): their kinds, flags, errors, and how those that a server sends are written."""

from enum import IntEnum
from struct import Struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client's connection begins with."""

HEAD = Struct(">HBBBI")
"""A frame's head: its length in two parts, its kind, its flags, its stream."""

HEAD_SIZE = HEAD.size

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM = ACK = 1
END_HEADERS = 4
PADDED = 8
PRIORITISED = 32

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = (
    range(1, 7)
)

FIRST_WINDOW = 65_535
"""Bytes that may be sent before anything else was agreed, on a connection and on a stream."""

LEAST_FRAME, MOST_FRAME = 1 << 14, (1 << 24) - 1
"""Bytes of a frame that everybody takes, and that a setting may allow at most."""

MOST_WINDOW = (1 << 31) - 1
LAST_STREAM = (1 << 31) - 1

_SETTING = Struct(">HI")
_NUMBER = Struct(">I")


class ErrorCode(IntEnum):
    """Why a stream or a connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class ConnectionFault(Exception):
    """The client breaks the protocol in a way that ends its connection."""

    def __init__(self, code: ErrorCode, why: str) -> None:
        super().__init__(why)
        self.code = code


def head(length: int, kind: int, flags: int, stream: int) -> bytes:
    """The head of a frame."""
    return HEAD.pack(length >> 8, length & 255, kind, flags, stream)


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return head(6 * len(values), SETTINGS, 0, 0) + b"".join(_SETTING.pack(*each) for each in values.items())


SETTINGS_ACK = head(0, SETTINGS, ACK, 0)


def ping(payload: bytes, *, ack: bool = False) -> bytes:
    """A PING frame, with eight bytes."""
    return head(8, PING, ACK if ack else 0, 0) + payload


def goaway(last_stream: int, code: ErrorCode, why: str = "") -> bytes:
    """A GOAWAY frame: streams up to `last_stream` are still answered."""
    text = why.encode()
    return head(8 + len(text), GOAWAY, 0, 0) + _NUMBER.pack(last_stream) + _NUMBER.pack(code) + text


def reset(stream: int, code: ErrorCode) -> bytes:
    """An RST_STREAM frame."""
    return head(4, RST_STREAM, 0, stream) + _NUMBER.pack(code)


def window_update(stream: int, size: int) -> bytes:
    """A WINDOW_UPDATE frame: so many more bytes may be sent, on the connection if the stream is 0."""
    return head(4, WINDOW_UPDATE, 0, stream) + _NUMBER.pack(size)


def settings_in(payload: bytes) -> list[tuple[int, int]]:
    """The settings in a frame. Raises `ConnectionFault` for values that may not be."""
    if len(payload) % _SETTING.size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a SETTINGS frame ends within a setting")
    found = list(_SETTING.iter_unpack(payload))
    for name, value in found:
        if name == ENABLE_PUSH and value > 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")
        if name == INITIAL_WINDOW_SIZE and value > MOST_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE is too large")
        if name == MAX_FRAME_SIZE and not LEAST_FRAME <= value <= MOST_FRAME:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "MAX_FRAME_SIZE is out of its range")
    return found


def number_in(payload: bytes, place: int = 0) -> int:
    """The 31 bits of a number in a frame."""
    return int.from_bytes(payload[place : place + 4]) & MOST_WINDOW
