"""What calls hold of the memory for messages is given back, however they end: by hand, and where it is little."""

import contextlib
from collections.abc import Iterator

import pytest

from chaos import proc
from flambeau.grpc import http2_frames as frames
from flambeau.grpc.http2_frames import ErrorCode
from tests.support.grpc_server import GrpcServer, grpc_serving
from tests.support.http2_wire import (
    ASKED,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    RST_STREAM,
    Wire,
    assert_answered,
    framed,
)
from tests.support.server import Serve

_MOST = 2 << 20  # bytes of all messages
_LONG = 900_000  # bytes of a message that comes in pieces
_HALF = 400_000


@pytest.fixture(scope="module")
def small(serve: Serve, grpc_models: tuple[str, object]) -> Iterator[GrpcServer]:
    limits = ("--max-body-bytes", 1 << 20, "--max-inflight-bytes", _MOST)
    with grpc_serving(serve, grpc_models[0], "--allow-code", *limits) as running:
        yield running
        assert not running.lines("Traceback")
        assert not running.lines("Fatal error")


def over_its_deadline(server: GrpcServer, wire: Wire) -> None:
    """A stream whose answer its client does not take, whose next message has come in half, and whose time is over."""
    before = len(server.lines("code=deadline_exceeded"))
    wire.send(HEADERS, END_HEADERS, 1, wire.block(method="ModelStreamInfer", grpc_timeout="200m"))
    wire.send(DATA, 0, 1, framed(ASKED))
    for kind, _, _, payload in wire.frames():
        if kind == HEADERS:
            wire.read_headers(payload)
            break
    wire.raw(frames.head(_LONG + 5, DATA, 0, 1) + framed(bytes(_HALF), size=_LONG))
    server.http.wait_until(lambda: len(server.lines("code=deadline_exceeded")) > before, within=30)


def assert_all_is_there(server: GrpcServer, right: bytes) -> None:
    """Two messages that leave no room for a third are taken, and a short one besides."""
    with Wire(server) as wire:
        for stream in (1, 3):
            wire.send(HEADERS, END_HEADERS, stream, wire.block())
            wire.send(DATA, 0, stream, framed(bytes(_LONG)))
        wire.ask(5)
        assert_answered(wire, 5, right)
        for stream in (1, 3):
            wire.send(DATA, END_STREAM, stream)
            assert wire.answer(stream)[1]["error-code"] == "body_too_large"  # of so many fields that it is no request


@pytest.mark.long
def test_a_message_that_ends_behind_its_call_is_not_held(small: GrpcServer, right: bytes) -> None:
    for _ in range(3):
        with Wire(small, {frames.INITIAL_WINDOW_SIZE: 0}) as wire:
            over_its_deadline(small, wire)
            with contextlib.suppress(ConnectionError):
                wire.raw(bytes(_LONG - _HALF) + frames.ping(b"12345678"))
            assert any(kind == frames.PING for kind, *_ in wire.frames())
    assert_all_is_there(small, right)


def test_what_is_refused_for_want_of_memory_is_not_kept(small: GrpcServer) -> None:
    with Wire(small) as first:
        for stream in (1, 3):
            first.send(HEADERS, END_HEADERS, stream, first.block())
            first.send(DATA, 0, stream, framed(bytes(_LONG)))
        first.send(frames.PING, 0, 0, b"12345678")
        assert any(kind == frames.PING for kind, *_ in first.frames())
        before = proc.resident(small.http.process.pid)
        for _ in range(100):
            with Wire(small) as wire:
                wire.send(HEADERS, END_HEADERS, 1, wire.block())
                wire.send(DATA, 0, 1, framed(bytes(_HALF), size=_LONG))
                assert wire.answer(1)[1]["error-code"] == "overloaded"
        assert proc.resident(small.http.process.pid) - before < 10 << 20


def test_half_a_message_is_given_up_with_its_call(small: GrpcServer, right: bytes) -> None:
    """Nobody else pays for what is held by a call that is over."""
    with Wire(small, {frames.INITIAL_WINDOW_SIZE: 0}) as wire:
        over_its_deadline(small, wire)
        assert_all_is_there(small, right)


def test_a_call_over_its_deadline_is_told_so_when_its_client_reads_on(small: GrpcServer) -> None:
    with Wire(small, {frames.INITIAL_WINDOW_SIZE: 0}) as wire:
        over_its_deadline(small, wire)
        wire.raw(bytes(_LONG - _HALF) + frames.window_update(1, 1 << 20))
        assert wire.answer(1)[1]["grpc-status"] == "4"


@pytest.mark.parametrize("message", [framed(bytes(100_000)), framed(b"") * 20_000], ids=["long", "empty"])
def test_what_follows_the_one_message_of_a_call_is_not_kept(small: GrpcServer, right: bytes, message: bytes) -> None:
    with Wire(small) as wire:
        wire.send(HEADERS, END_HEADERS, 1, wire.block(**{":path": "/grpc.health.v1.Health/Watch"}))
        wire.send(DATA, 0, 1, framed(b""))
        for _ in range(9):
            wire.send(DATA, 0, 1, message)
        assert_all_is_there(small, right)
        for _ in range(16):
            wire.send(DATA, 0, 1, message)
        assert reset_of(wire) == "FLOW_CONTROL_ERROR"


@pytest.mark.parametrize("pieces", [(framed(b""),), (framed(b"", size=1), b"x")], ids=["empty", "short, in pieces"])
def test_short_messages_that_nobody_reads_are_counted(
    small: GrpcServer, right: bytes, pieces: tuple[bytes, ...]
) -> None:
    """Behind an answer that is not taken. Each takes more memory than its bytes."""
    with Wire(small, {frames.INITIAL_WINDOW_SIZE: 0}) as wire, Wire(small) as other:
        wire.send(HEADERS, END_HEADERS, 1, wire.block(method="ModelStreamInfer"))
        wire.send(DATA, 0, 1, framed(ASKED))
        wire.raw(b"".join(frames.head(len(each), DATA, 0, 1) + each for each in pieces) * 20_000)
        wire.send(frames.PING, 0, 0, b"12345678")
        assert any(kind == frames.PING for kind, *_ in wire.frames())
        other.ask(1)
        assert other.answer(1)[1]["error-code"] == "overloaded"
        wire.raw(frames.reset(1, ErrorCode.CANCEL))
        for stream in range(3, 1003, 2):  # it takes some turns of the loop
            other.ask(stream)
            if other.answer(stream)[1]["grpc-status"] == "0":
                break
        assert_all_is_there(small, right)


def reset_of(wire: Wire) -> str:
    for kind, _, _, payload in wire.frames():
        if kind == HEADERS:
            wire.read_headers(payload)
        elif kind == RST_STREAM:
            return ErrorCode(int.from_bytes(payload)).name
    return "closed"


def test_too_many_resets_behind_a_long_message_are_told(small: GrpcServer) -> None:
    """The last is of a message that was read to its place, and is not as long as its call said."""
    with Wire(small) as wire:
        wire.send(HEADERS, END_HEADERS, 1, wire.block(content_length="999999"))
        wire.send(DATA, 0, 1, framed(bytes(300_000), size=_LONG))
        block, pieces = wire.block(), []
        for stream in range(3, 1003, 2):
            pieces.append(frames.head(len(block), HEADERS, END_HEADERS, stream) + block)
            pieces.append(frames.reset(stream, ErrorCode.CANCEL))
        pieces.append(frames.head(_LONG - 300_000, DATA, END_STREAM, 1) + bytes(_LONG - 300_000))
        with contextlib.suppress(ConnectionError):
            wire.raw(b"".join(pieces))
        assert wire.end() in ("ENHANCE_YOUR_CALM", "closed")  # a reset may overtake it
