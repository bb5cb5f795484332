"""Clients that take no answers, or slowly, by hand: what they hold is bounded, and who reads is not taken for them."""

import contextlib
import re
import select
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tritonclient.grpc import service_pb2

from chaos import proc
from flambeau.grpc import http2_frames as frames
from flambeau.grpc.header_blocks import written
from tests.support.grpc_server import GrpcServer, grpc_serving, message, rows
from tests.support.http2_wire import (
    ASKED,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    Wire,
    assert_answers,
    framed,
)
from tests.support.server import Serve

_CALLS = 60_000


@pytest.fixture(scope="module")
def strict(serve: Serve, grpc_models: tuple[str, object]) -> Iterator[GrpcServer]:
    """A server with little patience, which takes four calls at a time."""
    limits = ("--max-connections", 4, "--write-timeout", 1, "--max-body-bytes", 1 << 20)
    with grpc_serving(serve, grpc_models[0], "--allow-code", *limits) as running:
        yield running


def unread_by_server(wire: Wire) -> int:
    """The bytes of that client in the socket of the server."""
    name = [f":{wire.name()[place][1]:04X}" for place in (1, 0)]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(name[0]) and fields[2].endswith(name[1]):
            return int(fields[4].partition(":")[2], 16)
    raise AssertionError("the server has closed")


@pytest.mark.long
def test_who_reads_no_answer_is_not_listened_to(server: GrpcServer, right: bytes) -> None:
    """The answers to calls of no method are short, and no window bounds them."""
    with Wire(server) as wire:
        method = "x" * 90
        wire.send(HEADERS, END_HEADERS | END_STREAM, 1, wire.block(method=method))
        block = wire.block(method=method)
        assert len(block) < 20
        asked = b"".join(
            frames.head(len(block), HEADERS, END_HEADERS | END_STREAM, 2 * call + 3) + block for call in range(_CALLS)
        )
        wire.raw(asked)
        before = -1
        while before != (now := unread_by_server(wire)):  # what is read changes while another is answered
            before = now
            for _ in range(3):
                with Wire(server) as other:
                    assert_answers(other, 1, right)
        assert before > 0
        ended = 0
        for kind, flags, _, _ in wire.frames():
            ended += kind == HEADERS and flags & END_STREAM != 0
            if ended == _CALLS + 1:
                break
        assert ended == _CALLS + 1


def test_long_headers_are_not_kept(server: GrpcServer) -> None:
    before = proc.resident(server.http.process.pid)
    with contextlib.ExitStack() as opened:
        for _ in range(12):
            wire = opened.enter_context(Wire(server))
            for call in range(64):
                fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/x"), (b"x", b"%030000d" % call)]
                block = written([*fields, (b"content-type", b"application/grpc")])
                wire.send(HEADERS, END_HEADERS | END_STREAM, 2 * call + 1, block)
            assert wire.answer(2 * call + 1)[1]["grpc-status"] == "12"
        assert proc.resident(server.http.process.pid) - before < 24 << 20


def test_answers_that_nobody_takes_count_as_calls(strict: GrpcServer) -> None:
    with Wire(strict, {frames.INITIAL_WINDOW_SIZE: 0}) as wire:
        found: Counter[str] = Counter()
        for stream in (1, 3, 5, 7, 9, 11):
            wire.ask(stream)
            if stream > 7:
                found[wire.answer(stream)[1]["grpc-status"]] += 1
            else:  # until its answer has begun
                for kind, _, number, payload in wire.frames():
                    if kind == HEADERS and number == stream:
                        wire.read_headers(payload)
                        break
        assert found == {"14": 2}
        wire.raw(frames.settings({frames.INITIAL_WINDOW_SIZE: 0}) + frames.settings({frames.INITIAL_WINDOW_SIZE: 9999}))
        ended = {number for _, number in zip(range(4), ends(wire), strict=False)}
        assert ended == {1, 3, 5, 7}
        wire.ask(13)
        assert wire.answer(13)[1]["grpc-status"] == "0"


def ends(wire: Wire) -> Iterator[int]:
    for kind, flags, number, payload in wire.frames():
        if kind == HEADERS:
            wire.read_headers(payload)
            if flags & END_STREAM:
                yield number


def test_who_reads_one_answer_after_the_other_is_not_cut_off(strict: GrpcServer) -> None:
    """At any time two answers wait, as for a client with a slow line."""
    body = message(rows(64)).SerializeToString()
    with Wire(strict, {frames.INITIAL_WINDOW_SIZE: 0}) as wire:
        wire.ask(1, body)
        for stream in range(3, 63, 2):
            wire.ask(stream, body)
            select.select([], [], [], 0.1)
            wire.raw(frames.window_update(stream - 2, 1 << 16))
            assert next(ends(wire)) == stream - 2


def test_who_takes_nothing_of_a_stream_is_cut_off(strict: GrpcServer) -> None:
    with Wire(strict, {frames.INITIAL_WINDOW_SIZE: 0}) as wire:
        wire.send(HEADERS, END_HEADERS, 1, wire.block(method="ModelStreamInfer"))
        wire.send(DATA, 0, 1, framed(ASKED))
        assert wire.end() == "closed"


def test_messages_before_one_that_is_too_long_are_answered(server: GrpcServer) -> None:
    with Wire(server) as wire:
        wire.send(HEADERS, END_HEADERS, 1, wire.block(method="ModelStreamInfer"))
        asked = [message(rows(1), id=str(number)).SerializeToString() for number in range(20)]
        wire.send(DATA, 0, 1, b"".join(map(framed, asked)) + framed(b"x", size=1 << 21))
        body, trailers = wire.answer(1)
    found = []
    while body:
        size = int.from_bytes(body[1:5])
        found.append(service_pb2.ModelStreamInferResponse.FromString(body[5 : 5 + size]))
        body = body[5 + size :]
    assert sorted(int(each.infer_response.id) for each in found) == list(range(20))
    assert not any(each.error_message for each in found)
    assert (trailers["grpc-status"], trailers["error-code"]) == ("8", "body_too_large")


def test_a_call_behind_the_end_costs_no_other_f19(serve: Serve, grpc_models: tuple[str, object]) -> None:
    """Its client did not know yet. Frames of calls that are not taken are no fault."""
    slow = service_pb2.ModelInferRequest(model_name="sleepy")
    slow.inputs.add(name="input", datatype="BYTES", shape=[1])
    text = b'{"seconds": 3, "name": "x"}'
    slow.raw_input_contents.append(len(text).to_bytes(4, "little") + text)
    with grpc_serving(serve, grpc_models[0], "--allow-code") as running, Wire(running) as wire:
        wire.ask(1, slow.SerializeToString())
        wire.send(frames.PING, 0, 0, b"12345678")
        last = []
        for kind, flags, _, payload in wire.frames():
            if kind == frames.PING and flags & frames.ACK:
                running.http.process.send_signal(signal.SIGTERM)
            elif kind == GOAWAY:
                last.append(int.from_bytes(payload[:4]))
                if len(last) == 2:
                    break
        assert last == [frames.LAST_STREAM, 1]
        wire.ask(3)
        wire.raw(frames.window_update(3, 10) + frames.reset(3, frames.ErrorCode.CANCEL))
        body, trailers = wire.answer(1)
        assert trailers["grpc-status"] == "0"
        assert re.search(rb"x", body)
        assert running.http.process.wait(30) == 0
