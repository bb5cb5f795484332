"""Bodies that are read straight to their place, and heads that were seen before: what arrives is what was sent."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator

import pytest

from tests.http.test_connection import Line, chunked, short
from tests.support.server import Serve, ServerProcess

MODEL = """
import hashlib
import flambeau

class Digest(flambeau.PythonModel):
    def predict(self, batch):
        return [hashlib.sha256(item.encode()).hexdigest() for item in batch]
"""


@pytest.fixture(scope="module")
def server(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    file = tmp_path_factory.mktemp("digest") / "digest.py"
    file.write_text(MODEL)
    with serve(f"{file}:Digest", "--allow-code", "--max-body-bytes", 20_000_000) as started:
        yield started


def text_of(size: int) -> str:
    return "".join(f"{number:x}," for number in range(size // 4))[:size]


def body_of(text: str) -> bytes:
    return json.dumps({"input": text}).encode()


def digest(text: str) -> dict[str, str]:
    return {"output": hashlib.sha256(text.encode()).hexdigest()}


@pytest.mark.parametrize("size", [10, 5_000, 300_000, 1_000_000, 6_000_000])
def test_a_body_of_any_length_arrives_whole_with_a_new_head_and_a_known_one(server: ServerProcess, size: int) -> None:
    text = text_of(size)
    request = short(body_of(text))
    with Line(server) as line:
        for _ in range(3):  # a head is parsed once
            line.sock.sendall(request)
            assert line.answer()[::2] == (200, digest(text))
        half = len(request) - size // 2
        line.sock.sendall(request[:half])
        line.sock.sendall(request[half:])
        assert line.answer()[2] == digest(text)


@pytest.mark.parametrize("size", [100, 1_000_000])
def test_what_follows_a_body_is_the_next_request(server: ServerProcess, size: int) -> None:
    texts = [text_of(size), text_of(size - 3), text_of(7)]
    with Line(server) as line:
        for _ in range(2):
            line.sock.sendall(b"".join(short(body_of(text)) for text in texts))
            assert [line.answer()[2] for _ in texts] == [digest(text) for text in texts]


@pytest.mark.parametrize("at_once", [False, True])
def test_any_request_may_follow_a_long_body(server: ServerProcess, at_once: bool) -> None:
    """After a long body what comes is read another way: short bodies, joined, in chunks, with pages of their own."""
    texts = [text_of(size) for size in (1_000_000, 10, 100_000, 300_000, 40_000, 5_000)]
    requests = [form(body_of(text)) for text in texts for form in (short, chunked)]
    right = [digest(text) for text in texts for _ in range(2)]
    with Line(server) as line:
        for _ in range(2):
            if at_once:
                sending = threading.Thread(target=line.sock.sendall, args=(b"".join(requests),))
                sending.start()
                assert [line.answer()[2] for _ in requests] == right
                sending.join()
                continue
            for request, each in zip(requests, right, strict=True):
                line.sock.sendall(request)
                assert line.answer()[2] == each
        line.sock.sendall(short(body_of("last")))
        line.sock.shutdown(1)
        assert line.answer()[::2] == (200, digest("last"))
        assert line.at_end()


def test_pieces_of_several_connections_do_not_mix(server: ServerProcess) -> None:
    """After long bodies, what comes over all connections is read to the same memory, here in turns."""
    sizes = (1_000_000, 20, 300_000, 40_000, 270_000)
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(Line(server)) for _ in range(4)]
        for turn, size in enumerate(sizes):
            texts = [f"{number}{turn}{text_of(size)}" for number in range(len(lines))]
            requests = [short(body_of(text)) for text in texts]
            step = len(requests[0]) // 5 + 1
            for start in range(0, len(requests[0]), step):
                for line, request in zip(lines, requests, strict=True):
                    line.sock.sendall(request[start : start + step])
            assert [line.answer()[2] for line in lines] == [digest(text) for text in texts]


@pytest.mark.parametrize("known", [False, True])
def test_a_client_that_leaves_within_a_body_is_told_and_others_go_on(server: ServerProcess, known: bool) -> None:
    text = text_of(900_000 + known)
    request = short(body_of(text))
    with Line(server) as other, Line(server) as line:
        if known:
            other.sock.sendall(request)
            assert other.answer()[2] == digest(text)
        line.sock.sendall(request[:600_000])
        line.sock.shutdown(1)
        status, headers, found = line.answer()
        assert (status, headers["connection"]) == (400, "close")
        assert isinstance(found, dict)
        assert found["code"] == "bad_http"
        other.sock.sendall(request)
        assert other.answer()[2] == digest(text)


def test_a_half_closed_client_gets_an_answer_that_is_made_at_once(server: ServerProcess) -> None:
    for _ in range(20):
        with Line(server) as line:
            line.sock.sendall(short(b"nonsense"))
            line.sock.shutdown(1)
            assert line.answer()[0] == 400
            assert line.at_end()


def test_a_known_head_with_another_body_is_another_request(server: ServerProcess) -> None:
    with Line(server) as line:
        for text in ("one", "two", "six", "ten"):
            line.sock.sendall(short(body_of(text)))
            status, headers, found = line.answer()
            assert (status, found) == (200, digest(text))
        line.sock.sendall(short(b'{"input": 123}!'[:14]))
        assert line.answer()[0] in (400, 500)
        assert headers["x-request-id"]
