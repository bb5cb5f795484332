"""The rows of h2spec, the test suite of HTTP/2's servers, by hand: what is forbidden, by its numbers.

Generic, http2 and hpack. Rows of forbidden frames that `test_hostile_frames` has are there, and those of what is
allowed are in `test_http2_rows`.
"""

from collections.abc import Callable
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from flambeau.grpc import http2_frames as frames
from flambeau.grpc.http2_frames import ErrorCode
from tests.support.grpc_server import GrpcServer
from tests.support.http2_wire import (
    ASKED,
    CALL,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    RST_STREAM,
    Wire,
    assert_answers,
    block_of,
    framed,
)

CONTINUATION, PRIORITY, SETTINGS = frames.CONTINUATION, frames.PRIORITY, frames.SETTINGS
ENDS = END_HEADERS | END_STREAM


# What ends the connection


def closed_by_its_client(then: Callable[[Wire], object], *, reset: bool) -> Callable[[Wire], None]:
    def sent(wire: Wire) -> None:
        if reset:
            wire.begin()
            wire.raw(frames.reset(1, ErrorCode.CANCEL))
        else:
            wire.ask(1)
            assert wire.answer(1)[1]["grpc-status"] == "0"
        then(wire)

    return sent


def raw(*pieces: bytes) -> Callable[[Wire], None]:
    return lambda wire: wire.raw(b"".join(pieces))


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> Callable[[Wire], None]:
    return lambda wire: wire.send(kind, flags, stream, payload)


def within_a_block(*more: tuple[int, int, int, bytes]) -> Callable[[Wire], None]:
    def sent(wire: Wire) -> None:
        wire.send(HEADERS, 0, 1, wire.block()[:10])
        for each in more:
            wire.send(*each)

    return sent


def behind(first: Callable[[Wire], object], then: Callable[[Wire], object]) -> Callable[[Wire], None]:
    def sent(wire: Wire) -> None:
        first(wire)
        then(wire)

    return sent


def headers(block: bytes) -> Callable[[Wire], None]:
    return lambda wire: wire.send(HEADERS, ENDS, 1, block)


def a_smaller_number(wire: Wire) -> None:
    wire.ask(5)
    assert wire.answer(5)[1]["grpc-status"] == "0"
    wire.begin(3)


DATA_AGAIN, HEADERS_AGAIN = frame(DATA, END_STREAM, 1, b"x"), Wire.begin
CONTINUED = frame(CONTINUATION, END_HEADERS, 1)

FORBIDDEN: dict[str, tuple[Callable[[Wire], Any], str]] = {
    "http2 4.2/3 HEADERS longer than any frame": (
        raw(frames.head((1 << 20) + 1, HEADERS, ENDS, 1)), "FRAME_SIZE_ERROR"),
    "http2 4.3/1 a block that is none": (headers(b"\xff\xff\xff\xff\xff\xff"), "COMPRESSION_ERROR"),
    "http2 4.3/2 PRIORITY within a block": (within_a_block((PRIORITY, 0, 1, bytes(5))), "PROTOCOL_ERROR"),
    "http2 4.3/3 HEADERS of another stream within a block": (
        within_a_block((HEADERS, ENDS, 3, b"\x82")), "PROTOCOL_ERROR"),
    "http2 5.1/1 DATA of an idle stream": (DATA_AGAIN, "PROTOCOL_ERROR"),
    "http2 5.1/2 RST_STREAM of an idle stream": (raw(frames.reset(1, ErrorCode.CANCEL)), "PROTOCOL_ERROR"),
    "http2 5.1/3 WINDOW_UPDATE of an idle stream": (raw(frames.window_update(1, 9)), "PROTOCOL_ERROR"),
    "http2 5.1/4 CONTINUATION of an idle stream": (CONTINUED, "PROTOCOL_ERROR"),
    "http2 5.1/7 CONTINUATION of a half-closed stream": (behind(lambda wire: wire.ask(1), CONTINUED), "PROTOCOL_ERROR"),
    "http2 5.1/8 DATA behind RST_STREAM": (closed_by_its_client(DATA_AGAIN, reset=True), "STREAM_CLOSED"),
    "http2 5.1/9 HEADERS behind RST_STREAM": (closed_by_its_client(HEADERS_AGAIN, reset=True), "PROTOCOL_ERROR"),
    "http2 5.1/10 CONTINUATION behind RST_STREAM": (closed_by_its_client(CONTINUED, reset=True), "PROTOCOL_ERROR"),
    "http2 5.1/11 DATA behind END_STREAM": (closed_by_its_client(DATA_AGAIN, reset=False), "STREAM_CLOSED"),
    "http2 5.1/12 HEADERS behind END_STREAM": (closed_by_its_client(HEADERS_AGAIN, reset=False), "PROTOCOL_ERROR"),
    "http2 5.1/13 CONTINUATION behind END_STREAM": (closed_by_its_client(CONTINUED, reset=False), "PROTOCOL_ERROR"),
    "http2 5.1.1/2 a number that was passed": (a_smaller_number, "PROTOCOL_ERROR"),
    "http2 5.5/2 an unknown frame within a block": (within_a_block((77, 0, 0, b"x")), "PROTOCOL_ERROR"),
    "http2 6.1/3 padding longer than DATA": (behind(Wire.begin, frame(DATA, PADDED, 1, b"\x05abcd")), "PROTOCOL_ERROR"),
    "RFC 4.2 padding in DATA of no byte": (behind(Wire.begin, frame(DATA, PADDED, 1)), "FRAME_SIZE_ERROR"),
    "RFC 4.2 HEADERS too short for their priority": (
        frame(HEADERS, ENDS | frames.PRIORITISED, 1, bytes(4)), "FRAME_SIZE_ERROR"),
    "http2 6.3/1 PRIORITY of no stream": (frame(PRIORITY, 0, 0, bytes(5)), "PROTOCOL_ERROR"),
    "http2 6.3/2 a short PRIORITY": (behind(Wire.begin, frame(PRIORITY, 0, 1, bytes(4))), "FRAME_SIZE_ERROR"),
    "http2 6.4/1 RST_STREAM of no stream": (frame(RST_STREAM, 0, 0, bytes(4)), "PROTOCOL_ERROR"),
    "http2 6.4/3 a short RST_STREAM": (behind(Wire.begin, frame(RST_STREAM, 0, 1, bytes(3))), "FRAME_SIZE_ERROR"),
    "http2 6.5/1 SETTINGS with ACK and more": (frame(SETTINGS, frames.ACK, 0, bytes(6)), "FRAME_SIZE_ERROR"),
    "http2 6.5/2 SETTINGS of a stream": (frame(SETTINGS, 0, 1), "PROTOCOL_ERROR"),
    "http2 6.5.2/1 ENABLE_PUSH": (raw(frames.settings({2: 2})), "PROTOCOL_ERROR"),
    "http2 6.5.2/3 MAX_FRAME_SIZE too small": (raw(frames.settings({5: (1 << 14) - 1})), "PROTOCOL_ERROR"),
    "http2 6.5.2/4 MAX_FRAME_SIZE too large": (raw(frames.settings({5: 1 << 24})), "PROTOCOL_ERROR"),
    "http2 6.7/3 PING of a stream": (frame(PING, 0, 1, bytes(8)), "PROTOCOL_ERROR"),
    "http2 6.7/4 a short PING": (frame(PING, 0, 0, bytes(6)), "FRAME_SIZE_ERROR"),
    "http2 6.8/1 GOAWAY of a stream": (frame(GOAWAY, 0, 1, bytes(8)), "PROTOCOL_ERROR"),
    "RFC 4.2 a short GOAWAY": (frame(GOAWAY, 0, 0, bytes(7)), "FRAME_SIZE_ERROR"),
    "http2 6.9/3 a short WINDOW_UPDATE": (frame(frames.WINDOW_UPDATE, 0, 0, bytes(3)), "FRAME_SIZE_ERROR"),
    "http2 6.9.2 a setting that overflows a window": (
        behind(Wire.begin, raw(frames.window_update(1, (1 << 31) - 65_536), frames.settings({4: (1 << 31) - 1}))),
        "FLOW_CONTROL_ERROR",
    ),
    "http2 6.10/2 another frame behind CONTINUATION": (
        within_a_block((CONTINUATION, 0, 1, b""), (DATA, 0, 1, b"")), "PROTOCOL_ERROR"),
    "http2 6.10/3 CONTINUATION of no stream": (within_a_block((CONTINUATION, END_HEADERS, 0, b"")), "PROTOCOL_ERROR"),
    "http2 6.10/4 CONTINUATION behind the end": (behind(Wire.begin, CONTINUED), "PROTOCOL_ERROR"),
    "http2 6.10/5 CONTINUATION behind the end of another": (
        behind(behind(lambda wire: wire.send(HEADERS, 0, 1, wire.block()), CONTINUED), CONTINUED), "PROTOCOL_ERROR"),
    "http2 6.10/6 CONTINUATION behind DATA": (
        behind(behind(Wire.begin, frame(DATA, 0, 1, b"\0")), CONTINUED), "PROTOCOL_ERROR"),
    "hpack 2.3.3/2 a name beyond the table": (headers(block_of(b"\x7f\x40\x01a")), "COMPRESSION_ERROR"),
    "hpack 4.2/1 a size at the end": (headers(block_of(b"\x20")), "COMPRESSION_ERROR"),
    "RFC 7541 4.2 three sizes": (headers(b"\x20\x20\x20" + block_of()), "COMPRESSION_ERROR"),
    "hpack 5.2/1 padding of a byte": (headers(block_of(b"\0\x82\x1f\xff\x01a")), "COMPRESSION_ERROR"),
    "hpack 5.2/2 padding of zeros": (headers(block_of(b"\0\x81\x18\x01a")), "COMPRESSION_ERROR"),
    "hpack 5.2/3 the end within a string": (headers(block_of(b"\0\x84\xff\xff\xff\xff\x01a")), "COMPRESSION_ERROR"),
    "hpack 6.1/1 the index 0": (headers(block_of(b"\x80")), "COMPRESSION_ERROR"),
    "hpack 6.3/1 a size that was not agreed": (headers(b"\x3f\xe2\x1f" + block_of()), "COMPRESSION_ERROR"),
    "a string longer than its block": (headers(b"\x00\x7f\xff\x7fabc"), "COMPRESSION_ERROR"),
}  # fmt: skip


@pytest.mark.parametrize("row", FORBIDDEN)
def test_what_is_forbidden_ends_the_connection(server: GrpcServer, right: bytes, row: str) -> None:
    send, code = FORBIDDEN[row]
    with Wire(server) as wire:
        send(wire)
        assert wire.end() == code
    with Wire(server) as wire:
        assert_answers(wire, 1, right)


# What ends the stream alone


def fields(*given: tuple[str, str]) -> Callable[[Wire], None]:
    return lambda wire: wire.send(HEADERS, ENDS, 1, wire.encoder.encode(list(given)))


def length(value: str, *pieces: bytes) -> Callable[[Wire], None]:
    """A call with that content-length, and its data."""

    def sent(wire: Wire) -> None:
        wire.send(HEADERS, END_HEADERS | (0 if pieces else END_STREAM), 1, wire.block(content_length=value))
        for each in pieces:
            wire.send(DATA, END_STREAM if each is pieces[-1] else 0, 1, each)

    return sent


def trailers_of(*given: tuple[str, str]) -> Callable[[Wire], None]:
    def sent(wire: Wire) -> None:
        wire.begin()
        wire.send(DATA, 0, 1, framed(ASKED))
        wire.send(HEADERS, ENDS, 1, wire.encoder.encode(list(given)))

    return sent


def half_closed_and(then: Callable[[Wire], object]) -> Callable[[Wire], None]:
    """A call that is whole and takes a second, and what its client sends meanwhile."""

    def sent(wire: Wire) -> None:
        slow = service_pb2.ModelInferRequest(model_name="sleepy")
        slow.inputs.add(name="input", datatype="BYTES", shape=[1])
        slow.inputs[0].contents.bytes_contents.append(b'{"seconds": 1, "name": "x"}')
        wire.ask(1, slow.SerializeToString())
        then(wire)

    return sent


WHOLE = framed(ASKED)
RESET: dict[str, tuple[Callable[[Wire], Any], str]] = {
    "http2 8.1.2/1 upper case": (fields(*CALL, ("X-TEST", "ok")), "PROTOCOL_ERROR"),
    "http2 8.1.2.1/1 an unknown pseudo-header": (fields((":test", "ok"), *CALL), "PROTOCOL_ERROR"),
    "http2 8.1.2.1/2 a response's pseudo-header": (fields((":status", "200"), *CALL), "PROTOCOL_ERROR"),
    "http2 8.1.2.1/3 pseudo-headers in trailers": (trailers_of((":method", "POST")), "PROTOCOL_ERROR"),
    "http2 8.1.2.1/4 a pseudo-header behind others": (fields(*CALL[1:], CALL[0]), "PROTOCOL_ERROR"),
    "RFC 8441 :protocol, which was not offered": (fields((":protocol", "websocket"), *CALL), "PROTOCOL_ERROR"),
    "http2 8.1.2.2/1 a connection's header": (fields(*CALL, ("connection", "keep-alive")), "PROTOCOL_ERROR"),
    "http2 8.1.2.2/2 te": (fields(*CALL[:3], ("te", "trailers, deflate;q=0.5"), *CALL[4:]), "PROTOCOL_ERROR"),
    "http2 8.1.2.3/1 no path": (fields(*CALL[:2], (":path", ""), *CALL[3:]), "PROTOCOL_ERROR"),
    "http2 8.1.2.3/2 :method is left out": (fields(*CALL[1:]), "PROTOCOL_ERROR"),
    "http2 8.1.2.3/3 :scheme is left out": (fields(CALL[0], *CALL[2:]), "PROTOCOL_ERROR"),
    "http2 8.1.2.3/4 :path is left out": (fields(*CALL[:2], *CALL[3:]), "PROTOCOL_ERROR"),
    "http2 8.1.2.3/5 :method twice": (fields(CALL[0], *CALL), "PROTOCOL_ERROR"),
    "http2 8.1.2.3/6 :scheme twice": (fields(CALL[1], *CALL), "PROTOCOL_ERROR"),
    "http2 8.1.2.3/7 :path twice": (fields(CALL[2], *CALL), "PROTOCOL_ERROR"),
    "http2 8.1.2.6/1 a content-length of less": (length("1", WHOLE), "PROTOCOL_ERROR"),
    "http2 8.1.2.6/2 a content-length of more": (length(str(len(WHOLE) + 1), WHOLE[:9], WHOLE[9:]), "PROTOCOL_ERROR"),
    "a content-length and nothing": (length("5"), "PROTOCOL_ERROR"),
    "a content-length that is none": (length("-1", WHOLE), "PROTOCOL_ERROR"),
    "upper case in trailers": (trailers_of(("X-TEST", "ok")), "PROTOCOL_ERROR"),
    "http2 5.1/5 DATA of a half-closed stream": (half_closed_and(frame(DATA, 0, 1, b"x")), "STREAM_CLOSED"),
    "http2 5.1/6 HEADERS of a half-closed stream": (half_closed_and(Wire.begin), "STREAM_CLOSED"),
}  # fmt: skip


@pytest.mark.parametrize("row", RESET)
def test_what_breaks_a_stream_resets_it_alone(server: GrpcServer, right: bytes, row: str) -> None:
    send, code = RESET[row]
    with Wire(server) as wire:
        send(wire)
        assert wire.answer(1)[1] == {"reset": code}
        assert_answers(wire, 3, right)


def test_what_comes_late_for_a_call_that_was_ended_here_is_no_fault(server: GrpcServer, right: bytes) -> None:
    """A call is refused while its client still sends."""
    with Wire(server) as wire:
        for stream in range(1, 41, 2):
            wire.send(HEADERS, END_HEADERS, stream, wire.block(method="Nothing"))
            assert wire.answer(stream)[1]["grpc-status"] == "12"
        for stream in range(1, 41, 2):
            wire.send(DATA, 0, stream, bytes(9))
            wire.send(HEADERS, ENDS, stream, wire.encoder.encode([("x-trailer", "late")]))
        assert_answers(wire, 41, right)
