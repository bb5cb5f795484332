"""The rows of h2spec, the test suite of HTTP/2's servers, by hand: what is allowed, by its numbers.

Generic, http2 and hpack. One row has another outcome, because RFC 9113 has given up priorities: a stream that depends
on itself (5.3.1). What is forbidden is in `test_http2_rows_refused`.
"""

from collections.abc import Callable

import pytest

from flambeau.grpc import http2_frames as frames
from flambeau.grpc.http2_frames import ErrorCode
from tests.support.grpc_server import GrpcServer
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
    assert_answers,
    block_of,
    framed,
    plain,
)

CONTINUATION, PRIORITY, SETTINGS = frames.CONTINUATION, frames.PRIORITY, frames.SETTINGS
ENDS = END_HEADERS | END_STREAM


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
    wire.begin()
    wire.raw(frames.reset(1, ErrorCode.CANCEL))
    wire.send(PRIORITY, 0, 1, bytes(5))
    wire.raw(frames.window_update(1, 100) + frames.reset(1, ErrorCode.CANCEL))
    wire.ask(3)


def two_frames_of_data(wire: Wire) -> None:
    wire.begin()
    body = framed(ASKED)
    wire.send(DATA, 0, 1, body[:10])
    wire.send(DATA, PADDED, 1, b"\x05" + body[10:30] + bytes(5))
    wire.send(DATA, END_STREAM, 1, body[30:])


def trailers(wire: Wire) -> None:
    wire.begin()
    wire.send(DATA, 0, 1, framed(ASKED))
    wire.send(HEADERS, ENDS, 1, wire.encoder.encode([("x-trailer", "test")]))


def length_that_is_right(wire: Wire) -> None:
    wire.begin(content_length=str(len(framed(ASKED))))
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
    wire.begin()
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
    wire.begin()
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
        assert_answers(wire, stream + 2, right)


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
        assert_answers(wire, 3, right)
