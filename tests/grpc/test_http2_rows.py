"""The rows of h2spec, the test suite of HTTP/2's servers, by hand: generic, http2 and hpack, by its numbers.

One row has another outcome, because RFC 9113 has given up priorities: a stream that depends on itself (5.3.1). Rows of
forbidden frames that `test_hostile_frames` has are there.
"""

from collections.abc import Callable
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from flambeau.grpc import http2_frames as frames
from flambeau.grpc.http2_frames import ErrorCode
from tests.support.grpc_server import SERVICE, GrpcServer
from tests.support.http2_wire import (
    ASKED,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    RST_STREAM,
    Wire,
    assert_answered,
    framed,
)

CONTINUATION, PRIORITY, SETTINGS = frames.CONTINUATION, frames.PRIORITY, frames.SETTINGS
ENDS = END_HEADERS | END_STREAM
CALL = [(":method", "POST"), (":scheme", "http"), (":path", SERVICE + "ModelInfer"), ("te", "trailers"),
        ("content-type", "application/grpc")]  # fmt: skip


def opened(wire: Wire, stream: int = 1) -> None:
    wire.send(HEADERS, END_HEADERS, stream, wire.block())


def said(wire: Wire, stream: int = 1) -> None:
    """The message of a call that has begun."""
    wire.send(DATA, END_STREAM, stream, framed(ASKED))


def settle(wire: Wire) -> None:
    """Wait until all that was sent before has been read."""
    wire.send(PING, 0, 0, b"settled?")
    for kind, flags, _, payload in wire.frames():
        if kind == HEADERS:
            wire.read_headers(payload)
        elif kind == PING and flags & frames.ACK and payload == b"settled?":
            return
    raise AssertionError("the server has closed")


def plain(name: str, value: str, how: int) -> bytes:
    """A literal that is not in the Huffman code, with a name of its own."""
    return bytes((how, len(name))) + name.encode() + bytes((len(value),)) + value.encode()


def block_of(*more: bytes) -> bytes:
    """The headers of a call without a table, and others behind."""
    return b"".join([*(plain(*field, 0) for field in CALL), *more])


# What is allowed: the call on stream 1 is answered


def with_priority(weight: int, depends: int, *, alone: bool = False) -> Callable[[Wire], None]:
    def sent(wire: Wire) -> None:
        told = (depends | alone << 31).to_bytes(4) + bytes((weight - 1,))
        wire.send(HEADERS, END_HEADERS | frames.PRIORITISED, 1, told + wire.block())
        wire.send(PRIORITY, 0, 1, told)
        said(wire)

    return sent


def priority_of_a_stream_to_come(wire: Wire) -> None:
    wire.send(PRIORITY, 0, 9, bytes(4) + b"\xff")
    wire.ask(1)


def frames_of_half_a_stream(wire: Wire) -> None:
    wire.ask(1)
    wire.raw(frames.window_update(1, 100))
    wire.send(PRIORITY, 0, 1, bytes(5))


def frames_of_a_stream_that_is_over(wire: Wire) -> None:
    opened(wire, 1)
    wire.raw(frames.reset(1, ErrorCode.CANCEL))
    wire.send(PRIORITY, 0, 1, bytes(5))
    wire.raw(frames.window_update(1, 100) + frames.reset(1, ErrorCode.CANCEL))
    wire.ask(3)


def two_frames_of_data(wire: Wire) -> None:
    opened(wire)
    body = framed(ASKED)
    wire.send(DATA, 0, 1, body[:10])
    wire.send(DATA, PADDED, 1, b"\x05" + body[10:30] + bytes(5))
    wire.send(DATA, END_STREAM, 1, body[30:])


def trailers(wire: Wire) -> None:
    opened(wire)
    wire.send(DATA, 0, 1, framed(ASKED))
    wire.send(HEADERS, ENDS, 1, wire.encoder.encode([("x-trailer", "test")]))


def length_that_is_right(wire: Wire) -> None:
    wire.send(HEADERS, END_HEADERS, 1, wire.block(content_length=str(len(framed(ASKED)))))
    wire.send(DATA, PADDED, 1, b"\x03" + framed(ASKED)[:20] + bytes(3))
    wire.send(DATA, END_STREAM, 1, framed(ASKED)[20:])


def undefined_flags(wire: Wire) -> None:
    wire.send(PING, 0xFE, 0, bytes(8))
    wire.send(HEADERS, END_HEADERS | 0x10 | 0x40, 1, wire.block())
    said(wire)


def reserved_bits(wire: Wire) -> None:
    wire.send(PING, 0, 1 << 31, bytes(8))
    wire.send(HEADERS, END_HEADERS, 1 | 1 << 31, wire.block())
    wire.raw(frames.head(4, frames.WINDOW_UPDATE, 0, 0) + (1 << 31 | 5).to_bytes(4))
    said(wire)


def longest_frame(wire: Wire) -> None:
    opened(wire)
    wire.send(DATA, PADDED, 1, b"\xff" + framed(ASKED) + bytes(255))
    wire.send(DATA, PADDED | END_STREAM, 1, b"\0")
    wire.send(77, 0, 0, bytes(1 << 14))


def settings_nobody_knows(wire: Wire) -> None:
    wire.raw(frames.settings({0xFF: 1, 0: 7, 0xABCD: (1 << 32) - 1}))
    wire.ask(1)


def acknowledged_ping(wire: Wire) -> None:
    wire.send(PING, frames.ACK, 0, b"nobodys!")
    wire.ask(1)


def codes_nobody_knows(wire: Wire) -> None:
    opened(wire, 1)
    wire.send(RST_STREAM, 0, 1, (0xFF).to_bytes(4))
    wire.send(GOAWAY, 0, 0, bytes(4) + (0xFF).to_bytes(4) + b"debug")
    wire.ask(3)


def literals(how: int) -> Callable[[Wire], None]:
    """Fields with a new name, and with a name of the static and of the dynamic table."""

    def sent(wire: Wire) -> None:
        known = bytes((how | 0x0F, 43)) if how < 0x40 else bytes((how | 58,))  # user-agent
        more = plain("x-new", "a", how), known + b"\x01b", plain("x-other", "c", how)
        wire.send(HEADERS, END_HEADERS, 1, block_of(*more))
        said(wire)

    return sent


def kept_fields(wire: Wire) -> None:
    """What the first block adds to the table the second refers to by number."""
    wire.send(HEADERS, END_HEADERS, 1, block_of(plain("x-kept", "a", 0x40), b"\xbe", b"\x7e\x01b", b"\xbe\xbf"))
    said(wire)


def two_sizes_of_the_table(wire: Wire) -> None:
    wire.send(HEADERS, END_HEADERS, 1, b"\x20\x3f\xe1\x1f" + block_of(plain("x-kept", "a", 0x40), b"\xbe"))
    said(wire)


def a_larger_window(wire: Wire) -> None:
    wire.raw(frames.window_update(0, 1))
    wire.ask(1)


ALLOWED: dict[str, tuple[Callable[[Wire], None], int]] = {
    "generic 2/1 PRIORITY of a stream to come": (priority_of_a_stream_to_come, 1),
    "generic 2/2-3 WINDOW_UPDATE and PRIORITY of a half-closed stream": (frames_of_half_a_stream, 1),
    "generic 2/5 frames of a closed stream": (frames_of_a_stream_that_is_over, 3),
    "generic 3.1 several DATA frames, with padding": (two_frames_of_data, 1),
    "generic 3.3/1 priority 1": (with_priority(1, 0), 1),
    "generic 3.3/2 priority 256": (with_priority(256, 0), 1),
    "generic 3.3/3 a dependency": (with_priority(8, 3), 1),
    "generic 3.3/4 an exclusive one": (with_priority(8, 3, alone=True), 1),
    "http2 5.3.1 a stream that depends on itself": (with_priority(8, 1), 1),
    "generic 3.9 windows": (a_larger_window, 1),
    "generic 4/4 POST with trailers": (trailers, 1),
    "generic 5 literals that are kept": (literals(0x40), 1),
    "generic 5 literals that are not": (literals(0), 1),
    "generic 5 literals that never are": (literals(0x10), 1),
    "generic 5 fields of the table": (kept_fields, 1),
    "generic 5 Huffman": (lambda wire: wire.ask(1), 1),
    "generic 5 sizes of the table": (two_sizes_of_the_table, 1),
    "http2 4.1/2 flags that nobody knows": (undefined_flags, 1),
    "http2 4.1/3 reserved bits": (reserved_bits, 1),
    "http2 4.2/1 the longest frame": (longest_frame, 1),
    "http2 6.5.2/5 settings that nobody knows": (settings_nobody_knows, 1),
    "http2 6.7/2 a PING with ACK": (acknowledged_ping, 1),
    "http2 7/1-2 error codes that nobody knows": (codes_nobody_knows, 3),
    "http2 8.1.2.6 a content-length that is right": (length_that_is_right, 1),
}


@pytest.mark.parametrize("row", ALLOWED)
def test_what_is_allowed_is_answered(server: GrpcServer, right: bytes, row: str) -> None:
    send, stream = ALLOWED[row]
    with Wire(server) as wire:
        send(wire)
        assert_answered(wire, stream, right)
        wire.ask(stream + 2)
        assert_answered(wire, stream + 2, right)


@pytest.mark.parametrize("payload", [b"12345678", bytes(8)])
def test_a_ping_is_answered_with_its_bytes_and_an_acknowledged_one_is_not(server: GrpcServer, payload: bytes) -> None:
    """h2spec http2 6.7/1-2, 6.5.3/2."""
    with Wire(server) as wire:
        wire.send(PING, frames.ACK, 0, b"no word!")
        wire.send(PING, 0, 0, payload)
        came = wire.frames()
        found: list[tuple[int, int, bytes]] = []
        while not found or found[-1][0] != PING:
            kind, flags, _, text = next(came)
            found.append((kind, flags & frames.ACK, text))
        assert found[-1] == (PING, frames.ACK, payload)
        assert (SETTINGS, frames.ACK, b"") in found


def test_windows_that_shrink_below_nothing_stop_the_answer(server: GrpcServer, right: bytes) -> None:
    """h2spec http2 6.5.3/1, 6.9.1/1, 6.9.2/1-2: the last value of a setting counts, and for all streams."""
    with Wire(server, {frames.INITIAL_WINDOW_SIZE: 3}) as wire:
        wire.ask(1)
        body = b""
        for kind, _, _, payload in wire.frames():
            if kind == HEADERS:
                wire.read_headers(payload)
            if kind == DATA:
                body = payload
                break
        assert len(body) == 3
        two = b"".join(frames.settings({frames.INITIAL_WINDOW_SIZE: value})[9:] for value in (1 << 20, 0))
        wire.send(SETTINGS, 0, 0, two)  # the stream has -3
        wire.raw(frames.window_update(1, 3))
        settle(wire)  # and nothing came: an answer would have failed to be read in order
        wire.raw(frames.window_update(1, 1))
        kind, _, _, payload = next(wire.frames())
        assert (kind, len(payload)) == (DATA, 1)
        wire.raw(frames.settings({frames.INITIAL_WINDOW_SIZE: 1 << 20}))
        rest, told = wire.answer(1)
        assert told["grpc-status"] == "0"
        whole = body + payload + rest
        assert int.from_bytes(whole[1:5]) == len(whole) - 5
        wire.ask(3)
        assert_answered(wire, 3, right)


# What ends the connection


def closed_by_its_client(then: Callable[[Wire], object], *, reset: bool) -> Callable[[Wire], None]:
    def sent(wire: Wire) -> None:
        if reset:
            opened(wire)
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
    wire.send(HEADERS, END_HEADERS, 3, wire.block())


DATA_AGAIN, HEADERS_AGAIN = frame(DATA, END_STREAM, 1, b"x"), (lambda wire: opened(wire, 1))
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
    "http2 6.1/3 padding longer than DATA": (behind(opened, frame(DATA, PADDED, 1, b"\x05abcd")), "PROTOCOL_ERROR"),
    "RFC 4.2 padding in DATA of no byte": (behind(opened, frame(DATA, PADDED, 1)), "FRAME_SIZE_ERROR"),
    "RFC 4.2 HEADERS too short for their priority": (
        frame(HEADERS, ENDS | frames.PRIORITISED, 1, bytes(4)), "FRAME_SIZE_ERROR"),
    "http2 6.3/1 PRIORITY of no stream": (frame(PRIORITY, 0, 0, bytes(5)), "PROTOCOL_ERROR"),
    "http2 6.3/2 a short PRIORITY": (behind(opened, frame(PRIORITY, 0, 1, bytes(4))), "FRAME_SIZE_ERROR"),
    "http2 6.4/1 RST_STREAM of no stream": (frame(RST_STREAM, 0, 0, bytes(4)), "PROTOCOL_ERROR"),
    "http2 6.4/3 a short RST_STREAM": (behind(opened, frame(RST_STREAM, 0, 1, bytes(3))), "FRAME_SIZE_ERROR"),
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
        behind(opened, raw(frames.window_update(1, (1 << 31) - 65_536), frames.settings({4: (1 << 31) - 1}))),
        "FLOW_CONTROL_ERROR",
    ),
    "http2 6.10/2 another frame behind CONTINUATION": (
        within_a_block((CONTINUATION, 0, 1, b""), (DATA, 0, 1, b"")), "PROTOCOL_ERROR"),
    "http2 6.10/3 CONTINUATION of no stream": (within_a_block((CONTINUATION, END_HEADERS, 0, b"")), "PROTOCOL_ERROR"),
    "http2 6.10/4 CONTINUATION behind the end": (behind(opened, CONTINUED), "PROTOCOL_ERROR"),
    "http2 6.10/5 CONTINUATION behind the end of another": (
        behind(behind(lambda wire: wire.send(HEADERS, 0, 1, wire.block()), CONTINUED), CONTINUED), "PROTOCOL_ERROR"),
    "http2 6.10/6 CONTINUATION behind DATA": (
        behind(behind(opened, frame(DATA, 0, 1, b"\0")), CONTINUED), "PROTOCOL_ERROR"),
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
        wire.ask(1)
        assert_answered(wire, 1, right)


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
        opened(wire)
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
    "http2 5.1/6 HEADERS of a half-closed stream": (half_closed_and(opened), "STREAM_CLOSED"),
}  # fmt: skip


@pytest.mark.parametrize("row", RESET)
def test_what_breaks_a_stream_resets_it_alone(server: GrpcServer, right: bytes, row: str) -> None:
    send, code = RESET[row]
    with Wire(server) as wire:
        send(wire)
        assert wire.answer(1)[1] == {"reset": code}
        wire.ask(3)
        assert_answered(wire, 3, right)


def test_what_comes_late_for_a_call_that_was_ended_here_is_no_fault(server: GrpcServer, right: bytes) -> None:
    """A call is refused while its client still sends."""
    with Wire(server) as wire:
        for stream in range(1, 41, 2):
            wire.send(HEADERS, END_HEADERS, stream, wire.block(method="Nothing"))
            assert wire.answer(stream)[1]["grpc-status"] == "12"
        for stream in range(1, 41, 2):
            wire.send(DATA, 0, stream, bytes(9))
            wire.send(HEADERS, ENDS, stream, wire.encoder.encode([("x-trailer", "late")]))
        wire.ask(41)
        assert_answered(wire, 41, right)
