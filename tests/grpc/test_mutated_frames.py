"""Conversations of HTTP/2 with faults in them: whatever is answered as good is right for what was sent."""

import contextlib
import functools
import random
import select
import socket
from collections.abc import Iterator

import hpack
import numpy as np
import onnxruntime
import pytest
from tritonclient.grpc import service_pb2

from chaos import proc
from flambeau.bundle import storage
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
    Wire,
    assert_answers,
    framed,
)
from tests.support.tensor_bundles import Several

AT_ONCE = 50
_QUIET = 1.0  # seconds after which no more is expected of a conversation that does not end


def whole(server: GrpcServer) -> list[bytes]:
    """A conversation of two calls in its pieces."""
    with Wire(server) as wire:
        pieces = [frames.PREFACE, frames.settings({3: 100}), frames.window_update(0, 1000)]
        for stream in (1, 3):
            block, body = wire.block(), framed(ASKED)
            pieces += [
                frames.head(len(block), HEADERS, END_HEADERS, stream) + block,
                frames.head(30, DATA, 0, stream) + body[:30],
                frames.head(len(body) - 30, DATA, END_STREAM, stream) + body[30:],
            ]
    return [*pieces, frames.ping(b"12345678"), frames.reset(3, ErrorCode.CANCEL)]


def mutated(pieces: list[bytes], rng: random.Random) -> bytes:
    sent = list(pieces)
    if rng.random() < 0.5:
        sent.pop()  # the second call is not cancelled
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(sent))
        how = rng.randrange(5)
        if how == 0 and sent[place]:
            changed = bytearray(sent[place])
            changed[rng.randrange(min(len(changed), 40))] = rng.randrange(256)
            sent[place] = bytes(changed)
        elif how == 1:
            del sent[place]
        elif how == 2:
            sent.insert(place, sent[rng.randrange(len(sent))])
        elif how == 3:
            sent[place] = sent[place][: rng.randrange(len(sent[place]) + 1)]
        else:
            sent[place] += rng.randbytes(rng.randint(1, 12))
    return b"".join(sent)


def cut(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The whole frames in those bytes, without the padding of data."""
    while len(data) >= frames.HEAD_SIZE:
        high, low, kind, flags, stream = frames.HEAD.unpack_from(data)
        end = frames.HEAD_SIZE + (high << 8 | low)
        if end > len(data):
            return
        payload, data = data[frames.HEAD_SIZE : end], data[end:]
        if kind == DATA and flags & PADDED and payload:
            payload = payload[1 : len(payload) - payload[0]]
        yield kind, flags, stream & frames.LAST_STREAM, payload


def bodies(data: bytes) -> dict[int, bytes]:
    """What those bytes send or answer on each stream, until the stream ends."""
    found: dict[int, bytes] = {}
    over = set()
    for kind, flags, stream, payload in cut(data):
        if kind == DATA and stream not in over:
            found[stream] = found.get(stream, b"") + payload
            if flags & END_STREAM:
                over.add(stream)
    return found


def good(answer: bytes) -> Iterator[tuple[int, bytes]]:
    """The streams that were answered with status 0, and their messages."""
    decoder = hpack.Decoder()
    told = bodies(answer)
    for kind, flags, stream, payload in cut(answer):
        if kind == HEADERS:
            headers = {str(name): str(value) for name, value in decoder.decode(payload)}
            if flags & END_STREAM and headers.get("grpc-status") == "0":
                yield stream, told[stream]


def conversed(server: GrpcServer, all_sent: list[bytes]) -> list[bytes]:
    """What comes for each, sent at the same time on connections of their own."""
    host, _, port = server.target.rpartition(":")
    opened = [socket.create_connection((host, int(port)), timeout=30) for _ in all_sent]
    came = dict.fromkeys(opened, b"")
    for each, sent in zip(opened, all_sent, strict=True):
        with contextlib.suppress(ConnectionError):
            each.sendall(sent)
    talking = set(opened)
    while talking:
        ready, _, _ = select.select(talking, [], [], _QUIET)
        if not ready:
            break
        for each in ready:
            piece = b""
            with contextlib.suppress(ConnectionError):
                piece = each.recv(1 << 16)
            came[each] += piece
            if not piece:
                talking.remove(each)
    for each in opened:
        each.close()
    return list(came.values())


@pytest.mark.long
@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_mutation_of_frames_does_harm(server: GrpcServer, network: Several, right: bytes, count: int) -> None:
    """Each conversation has a fault or more. The calls in it that are answered as good are answered right."""

    graph = onnxruntime.InferenceSession(network.bundle.path / storage.ONNX)  # whose sums do not wrap as torch's do

    @functools.cache
    def scores(body: bytes) -> np.ndarray:
        assert int.from_bytes(body[1:5]) == len(body) - 5
        asked = service_pb2.ModelInferRequest.FromString(body[5:])
        a, b = asked.raw_input_contents
        given = {
            "a": np.frombuffer(a, np.float32).reshape(tuple(asked.inputs[0].shape)),
            "b": np.frombuffer(b, np.int64).reshape(tuple(asked.inputs[1].shape)),
        }
        found: np.ndarray = graph.run(["scores"], given)[0]
        return found

    rng = random.Random(14)
    pieces = whole(server)
    before = proc.resident(server.http.process.pid)
    answered = 0
    for _ in range(count // AT_ONCE):
        all_sent = [mutated(pieces, rng) for _ in range(AT_ONCE)]
        for sent, answer in zip(all_sent, conversed(server, all_sent), strict=True):
            asked = bodies(sent.removeprefix(frames.PREFACE))
            for stream, told in good(answer):
                answered += 1
                assert int.from_bytes(told[1:5]) == len(told) - 5
                found = service_pb2.ModelInferResponse.FromString(told[5:])
                numbers = np.frombuffer(found.raw_output_contents[1], np.float32)
                np.testing.assert_allclose(numbers, scores(asked[stream]).ravel(), rtol=1e-5, atol=1e-5)
    assert answered > count // 20
    assert server.http.process.poll() is None
    assert not server.lines("failed unexpectedly")
    assert not server.lines("Traceback")
    with Wire(server) as wire:
        assert_answers(wire, 1, right)
    assert proc.resident(server.http.process.pid) - before < 64 << 20
