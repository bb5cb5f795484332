"""HTTP/2 by hand: what the RFC allows is answered, what it forbids ends with its code, and floods end early."""

import contextlib
import gzip
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flambeau.grpc import http2_frames as frames
from flambeau.grpc.http2_frames import ErrorCode
from tests.support.grpc_server import GrpcServer
from tests.support.http2_wire import (
    ASKED,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PING,
    RST_STREAM,
    Wire,
    assert_answered,
    assert_answers,
    framed,
)

# What is allowed


def by_bytes(wire: Wire) -> None:
    block, body = wire.block(), framed(ASKED)
    for byte in frames.head(len(block), HEADERS, END_HEADERS, 1) + block:
        wire.raw(bytes([byte]))
    for place, byte in enumerate(body):
        wire.send(DATA, END_STREAM if place == len(body) - 1 else 0, 1, bytes([byte]))


def padded(wire: Wire) -> None:
    wire.send(
        HEADERS, END_HEADERS | PADDED | frames.PRIORITISED, 1, b"\x05" + bytes(4) + b"\x0f" + wire.block() + bytes(5)
    )
    body = framed(ASKED)
    wire.send(DATA, PADDED, 1, b"\xff" + body[:20] + bytes(255))
    wire.send(DATA, PADDED, 1, b"\x00" + body[20:40])
    head = frames.head(len(body[40:]) + 4, DATA, PADDED | END_STREAM, 1)
    for piece in (head, b"\x03", body[40:50], body[50:], b"\0", b"\0\0"):
        wire.raw(piece)


def continued(wire: Wire) -> None:
    block = wire.block()
    wire.send(HEADERS, 0, 1, block[:3])
    wire.send(frames.CONTINUATION, 0, 1, block[3:9])
    wire.send(frames.CONTINUATION, 0, 1)
    wire.send(frames.CONTINUATION, END_HEADERS, 1, block[9:])
    wire.send(DATA, 0, 1, framed(ASKED))
    wire.send(DATA, END_STREAM, 1)


def among_others(wire: Wire) -> None:
    wire.send(77, 255, 5, bytes(100_000))
    wire.send(frames.PRIORITY, 0, 9, bytes(5))
    wire.begin()
    wire.send(78, 0, 0, b"")
    wire.send(PING, 0, 0, b"12345678")
    wire.send(DATA, 0, 1, framed(ASKED))
    wire.send(HEADERS, END_HEADERS | END_STREAM, 1, wire.encoder.encode([("a-trailer", "x")]))


def with_a_smaller_table(wire: Wire) -> None:
    wire.encoder.header_table_size = 64
    wire.ask(1)


@pytest.mark.parametrize("how", [by_bytes, padded, continued, among_others, with_a_smaller_table])
def test_a_call_is_answered_however_its_frames_come(
    server: GrpcServer, right: bytes, how: Callable[[Wire], None]
) -> None:
    with Wire(server) as wire:
        how(wire)
        assert_answered(wire, 1, right)
        for stream in (3, 5, 7):  # with the headers that the table has by now
            assert_answers(wire, stream, right)


def test_an_answer_waits_for_the_clients_windows(server: GrpcServer, right: bytes) -> None:
    with Wire(server, {frames.INITIAL_WINDOW_SIZE: 10}) as wire:
        wire.ask(1)
        sizes, body = [], b""
        for kind, flags, _, payload in wire.frames():
            if kind == DATA:
                sizes.append(len(payload))
                body += payload
                wire.raw(frames.window_update(1, 7))
            elif kind == HEADERS and flags & END_STREAM:
                break
        assert sizes[0] == 10
        assert set(sizes[1:-1]) == {7}
        assert int.from_bytes(body[1:5]) == len(body) - 5
        wire.raw(frames.settings({frames.INITIAL_WINDOW_SIZE: 65_535}))
        assert_answers(wire, 3, right)


# What ends a call


@pytest.mark.parametrize(
    ("body", "more", "status"),
    [
        (framed(ASKED, size=(1 << 32) - 1), {}, "8"),
        (framed(ASKED, size=len(ASKED) + 1), {}, "3"),
        (framed(ASKED)[:3], {}, "3"),
        (framed(ASKED) * 2, {}, "3"),
        (framed(ASKED, packed=1), {}, "3"),
        (framed(ASKED, packed=9), {"grpc_encoding": "gzip"}, "3"),
        (framed(ASKED, packed=1), {"grpc_encoding": "gzip"}, "3"),
        (framed(gzip.compress(ASKED, mtime=0)[:-9], packed=1), {"grpc_encoding": "gzip"}, "3"),
        (framed(gzip.compress(bytes(2 << 20), mtime=0), packed=1), {"grpc_encoding": "gzip"}, "8"),
        (framed(ASKED, packed=1), {"grpc_encoding": "snappy"}, "12"),
        (framed(ASKED), {"method": "Nothing"}, "12"),
        (framed(ASKED), {"x_long": "y" * 33_000}, "8"),
        (framed(ASKED), {"x_long": "~" * 33_000}, "8"),  # longer as it comes
    ],
)  # fmt: skip
def test_a_message_that_lies_is_refused_alone(
    server: GrpcServer, right: bytes, body: bytes, more: dict[str, str], status: str
) -> None:
    with Wire(server) as wire:
        block = wire.block(**more)
        first, rest = block[:16_000], block[16_000:]
        wire.send(HEADERS, 0 if rest else END_HEADERS, 1, first)
        while rest:
            piece, rest = rest[:16_000], rest[16_000:]
            wire.send(frames.CONTINUATION, 0 if rest else END_HEADERS, 1, piece)
        wire.send(DATA, END_STREAM, 1, body)
        assert wire.answer(1)[1].get("grpc-status") == status
        assert_answers(wire, 3, right)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda wire: wire.send(frames.WINDOW_UPDATE, 0, 1, bytes(4)), "PROTOCOL_ERROR"),
        (lambda wire: [wire.raw(frames.window_update(1, (1 << 31) - 1)) for _ in range(2)], "FLOW_CONTROL_ERROR"),
        (lambda wire: wire.begin(), "PROTOCOL_ERROR"),
    ],
)  # fmt: skip
def test_a_stream_that_breaks_the_protocol_is_reset_alone(
    server: GrpcServer, right: bytes, spoil: Callable[[Wire], object], code: str
) -> None:
    with Wire(server) as wire:
        wire.begin()
        spoil(wire)
        assert wire.answer(1)[1] == {"reset": code}
        assert_answers(wire, 3, right)


def test_who_sends_more_than_is_read_is_reset(server: GrpcServer, right: bytes) -> None:
    with Wire(server) as wire:
        wire.send(HEADERS, END_HEADERS, 1, wire.block(**{":path": "/grpc.health.v1.Health/Watch"}))
        wire.send(DATA, 0, 1, framed(b""))
        for _ in range(9):
            wire.send(DATA, 0, 1, framed(bytes(300_000)))  # nobody reads them, and the window is a mebibyte
        found = [
            ErrorCode(int.from_bytes(payload)).name for kind, _, _, payload in until_reset(wire) if kind == RST_STREAM
        ]
        assert found == ["FLOW_CONTROL_ERROR"]
        assert_answers(wire, 3, right)


def until_reset(wire: Wire) -> Iterator[tuple[int, int, int, bytes]]:
    for each in wire.frames():
        if each[0] == HEADERS:
            wire.read_headers(each[3])
        yield each
        if each[0] == RST_STREAM:
            return


@pytest.mark.parametrize(
    "fields",
    [
        [(":method", "POST"), (":scheme", "http")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/"), ("Upper", "x")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/"), ("connection", "close")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/"), ("x", "y"), (":authority", "z")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":path", "/")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/"), ("x", "a\nb")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/"), ("grpc-timeout", "soon")],
    ],
)
def test_malformed_headers_reset_their_stream(server: GrpcServer, right: bytes, fields: list[tuple[str, str]]) -> None:
    with Wire(server) as wire:
        wire.send(HEADERS, END_HEADERS | END_STREAM, 1, wire.encoder.encode(fields))
        assert wire.answer(1)[1] == {"reset": "PROTOCOL_ERROR"}
        assert_answers(wire, 3, right)


@pytest.mark.parametrize(("more", "status"), [({"content_type": "text/html"}, "415"), ({":method": "GET"}, "405")])
def test_what_is_no_call_gets_a_status_of_http(server: GrpcServer, more: dict[str, str], status: str) -> None:
    with Wire(server) as wire:
        wire.send(HEADERS, END_HEADERS | END_STREAM, 1, wire.block(**more))
        assert wire.answer(1)[1][":status"] == status


# What ends a connection


def flood(wire: Wire, count: int, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        for _ in range(count // 100):
            wire.raw(data * 100)


def rapid_reset(wire: Wire) -> None:
    with contextlib.suppress(ConnectionError):
        for stream in range(1, 20_001, 2):
            wire.begin(stream)
            wire.raw(frames.reset(stream, ErrorCode.CANCEL))


def continuations(wire: Wire) -> None:
    wire.send(HEADERS, 0, 1, wire.block())
    flood(wire, 10_000, frames.head(10, frames.CONTINUATION, 0, 1) + bytes([0x0F, 1, 0] * 3 + [0]))


def in_between(wire: Wire) -> None:
    wire.send(HEADERS, 0, 1, wire.block())
    wire.send(PING, 0, 0, bytes(8))


def one_byte_for_kilobytes(wire: Wire) -> None:
    entry = ("x-long", "y" * 3900)
    wire.send(HEADERS, END_HEADERS | END_STREAM, 1, wire.encoder.encode([entry]))
    block = wire.encoder.encode([entry])
    assert len(block) == 1
    wire.send(HEADERS, END_HEADERS | END_STREAM, 3, wire.block() + 30_000 * block)


def too_much_again_and_again(wire: Wire) -> None:
    with contextlib.suppress(ConnectionError):
        for stream in range(1, 1001, 2):
            wire.send(HEADERS, END_HEADERS | END_STREAM, stream, wire.block() + b"\x82" * (1500 + stream))


def data_of_padding(wire: Wire) -> None:
    wire.begin()
    flood(wire, 30_000, frames.head(1, DATA, PADDED, 1) + b"\0")


FORBIDDEN: dict[str, tuple[Callable[[Wire], Any], str]] = {
    "a frame too long": (lambda wire: wire.raw(frames.head((1 << 24) - 1, DATA, 0, 1)), "FRAME_SIZE_ERROR"),
    "a long ping": (lambda wire: wire.send(PING, 0, 0, bytes(9)), "FRAME_SIZE_ERROR"),
    "half a setting": (lambda wire: wire.send(frames.SETTINGS, 0, 0, bytes(7)), "FRAME_SIZE_ERROR"),
    "a setting out of range": (lambda wire: wire.raw(frames.settings({5: 1})), "PROTOCOL_ERROR"),
    "a window too large": (lambda wire: wire.raw(frames.settings({4: 1 << 31})), "FLOW_CONTROL_ERROR"),
    "data of no stream": (lambda wire: wire.send(DATA, 0, 0, b"x"), "PROTOCOL_ERROR"),
    "data of a stream to come": (lambda wire: wire.send(DATA, 0, 9, b"x"), "PROTOCOL_ERROR"),
    "an even stream": (lambda wire: wire.begin(2), "PROTOCOL_ERROR"),
    "headers of no stream": (lambda wire: wire.begin(0), "PROTOCOL_ERROR"),
    "a reset of a stream to come": (lambda wire: wire.raw(frames.reset(9, ErrorCode.CANCEL)), "PROTOCOL_ERROR"),
    "a window of nothing": (lambda wire: wire.raw(frames.window_update(0, 0)), "PROTOCOL_ERROR"),
    "a window that overflows": (lambda wire: wire.raw(frames.window_update(0, (1 << 31) - 1)), "FLOW_CONTROL_ERROR"),
    "more padding than frame": (lambda wire: wire.send(HEADERS, END_HEADERS | PADDED, 1, b"\x09abc"), "PROTOCOL_ERROR"),
    "a push": (lambda wire: wire.send(frames.PUSH_PROMISE, END_HEADERS, 1, bytes(4)), "PROTOCOL_ERROR"),
    "a continuation of nothing": (lambda wire: wire.send(frames.CONTINUATION, 0, 1), "PROTOCOL_ERROR"),
    "a frame within headers": (in_between, "PROTOCOL_ERROR"),
    "an index beyond the table": (lambda wire: wire.send(HEADERS, END_HEADERS, 1, b"\xfe"), "COMPRESSION_ERROR"),
    "a table too large": (lambda wire: wire.send(HEADERS, END_HEADERS, 1, b"\x3f\xe2\x7f"), "COMPRESSION_ERROR"),
    "a code that ends early": (lambda wire: wire.send(HEADERS, END_HEADERS, 1, b"\0\x81\0\x01a"), "COMPRESSION_ERROR"),
    "headers without end": (continuations, "ENHANCE_YOUR_CALM"),
    "calls that are cancelled": (rapid_reset, "ENHANCE_YOUR_CALM"),
    "one byte for kilobytes": (one_byte_for_kilobytes, "COMPRESSION_ERROR"),
    "too much again and again": (too_much_again_and_again, "ENHANCE_YOUR_CALM"),
    "data of nothing but padding": (data_of_padding, "ENHANCE_YOUR_CALM"),
    "pings": (lambda wire: flood(wire, 100_000, frames.ping(bytes(8))), "ENHANCE_YOUR_CALM"),
    "settings": (lambda wire: flood(wire, 100_000, frames.settings({})), "ENHANCE_YOUR_CALM"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_is_forbidden_ends_the_connection_with_its_code(server: GrpcServer, right: bytes, what: str) -> None:
    spoil, code = FORBIDDEN[what]
    with Wire(server) as wire:
        spoil(wire)
        assert wire.end() in (code, "closed" if code == "ENHANCE_YOUR_CALM" else code)  # a reset may overtake it
    with Wire(server) as wire:
        assert_answers(wire, 1, right)


def test_what_is_not_http2_is_told_so(server: GrpcServer) -> None:
    host, _, port = server.target.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(24))
        found = b""
        while piece := plain.recv(4096):
            found += piece
    assert b"does not begin as one of HTTP/2 does" in found
