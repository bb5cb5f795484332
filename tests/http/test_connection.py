"""Predictions that the connection of `flambeau serve` answers without the ASGI front: the answers are the same.

Requests are written to the socket byte for byte. A chunked body takes the way through the ASGI front.
"""

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import Serve, ServerProcess

LONG_WAY = (
    b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
)


@pytest.fixture(scope="module")
def server(serve: Serve, double_py: Path) -> Iterator[ServerProcess]:
    with serve(f"{double_py}:Double", "--allow-code", "--max-body-bytes", 200) as started:
        yield started


def short(body: bytes, *, path: str = "/predict", version: str = "1.1", headers: str = "") -> bytes:
    head = f"POST {path} HTTP/{version}\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def chunked(body: bytes) -> bytes:
    return LONG_WAY + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


class Line:
    """A connection, and the answers that come back over it."""

    def __init__(self, server: ServerProcess) -> None:
        host, port = server.url.removeprefix("http://").split(":")
        self.sock = socket.create_connection((host, int(port)), timeout=60)
        self._file = self.sock.makefile("rb")

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.sock.close()

    def answer(self) -> tuple[int, dict[str, str], object]:
        """Status, headers and JSON of the next answer, read from one buffer so that none is lost between two.

        A client that has half-closed is asked by a 100 whether it still waits, where its answer takes long.
        """
        status = 100
        while status == 100:
            status = int(self._file.readline().split()[1])
            headers = {name.lower(): value for name, value in http.client.parse_headers(self._file).items()}
        return status, headers, json.loads(self._file.read(int(headers["content-length"])))

    def at_end(self) -> bool:
        """Whether the server has closed the connection."""
        return self._file.read(1) == b""


@pytest.mark.parametrize(
    "body", [b'{"input": 4}', b'{"input": "text"}', b"nonsense", b'{"input": 1, "x": [[[]]]}', b""]
)
def test_the_connection_and_the_asgi_front_answer_alike(server: ServerProcess, body: bytes) -> None:
    with Line(server) as line:
        answers = []
        for request in (short(body), chunked(body) if body else LONG_WAY + b"0\r\n\r\n"):
            line.sock.sendall(request)
            answers.append(line.answer())
    (status, headers, found), (asgi_status, asgi_headers, asgi_found) = answers
    for each in (found, asgi_found):
        assert isinstance(each, dict)
        each.pop("request_id", None)
    assert (status, found) == (asgi_status, asgi_found)
    assert headers.keys() == asgi_headers.keys()
    assert {"date", "content-type", "x-request-id", "cache-control", "x-content-type-options"} <= headers.keys()


def test_requests_that_are_sent_ahead_are_answered_in_their_order(server: ServerProcess) -> None:
    live = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
    requests = [short(b'{"input": 1}'), short(b'{"input": 2}'), live, chunked(b'{"input": 3}'), short(b'{"input": 4}')]
    with Line(server) as line:
        line.sock.sendall(b"".join(requests))
        found = [line.answer()[2] for _ in requests]
    assert found == [{"output": 2.0}, {"output": 4.0}, {"status": "live"}, {"output": 6.0}, {"output": 8.0}]


@pytest.mark.parametrize(
    "bad",
    [
        chunked(b'{"input": 2}')[:-5] + b"zz\r\n",
        LONG_WAY + b"400\r\n",
        b"POST /predict HTTP/1.1\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
    ids=["a chunk without a size", "half a body", "no host", "no request"],
)
def test_an_answer_that_is_owed_is_not_lost_to_a_bad_request_behind_it(server: ServerProcess, bad: bytes) -> None:
    with Line(server) as line:
        line.sock.sendall(short(b'{"input": 1}') + bad)
        if bad.endswith(b"400\r\n"):
            line.sock.shutdown(socket.SHUT_WR)
        assert line.answer()[2] == {"output": 2.0}
        rest = line._file.read()
    assert rest.count(b"HTTP/1.1 ") <= 1
    assert b"HTTP/1.1 200" not in rest


def test_a_refusal_is_told_in_its_turn_even_if_the_client_sends_nothing_more(server: ServerProcess) -> None:
    head, _, _ = short(b" " * 4000, headers="Expect: 100-continue\r\n").partition(b"\r\n\r\n")
    with Line(server) as line:
        line.sock.sendall(short(b'{"input": 1}') + head + b"\r\n\r\n")
        line.sock.shutdown(socket.SHUT_WR)
        assert [line.answer()[0], line.answer()[0]] == [200, 413]
        assert line.at_end()


def test_a_head_stands_for_itself_and_not_for_one_that_followed_it(server: ServerProcess) -> None:
    """The first is answered before the parser has seen the second, whose head has as many lines and another length."""
    known, refused, longer = short(b'{"input": 3}'), short(b'{"input": ?}'), short(b'{"input": 5' + b" " * 28 + b"}")
    with Line(server) as attacker, Line(server) as victim:
        attacker.sock.sendall(refused + longer)
        assert [attacker.answer()[::2][0], attacker.answer()[2]] == [400, {"output": 10.0}]
        victim.sock.settimeout(10)
        victim.sock.sendall(known)
        assert victim.answer()[2] == {"output": 6.0}


def test_a_request_for_which_there_must_be_room_first_counts_once(serve: Serve, double_py: Path) -> None:
    limits = ("--rate-limit", "3/hour", "--max-body-bytes", 200, "--max-inflight-bytes", 200)
    with serve(f"{double_py}:Double", "--allow-code", *limits) as limited, Line(limited) as line:
        line.sock.sendall(short(b'{"input": 3}'))
        assert line.answer()[2] == {"output": 6.0}
        with Line(limited) as upload:
            upload.sock.sendall(short(b" " * 200)[:-4])
            limited.get("/livez")  # what was sent before has been read
            line.sock.sendall(short(b'{"input": 4}'))
            assert line.answer()[::2] == (200, {"output": 8.0})
            assert upload.answer()[0] == 503


def test_a_request_that_comes_byte_by_byte_is_answered(server: ServerProcess) -> None:
    with Line(server) as line:
        line.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in (5, 6):
            for byte in short(b'{"input": %d}' % number):
                line.sock.sendall(bytes([byte]))
            assert line.answer()[2] == {"output": 2.0 * number}


@pytest.mark.parametrize(("version", "headers"), [("1.0", ""), ("1.1", "Connection: close\r\n")])
def test_a_client_that_wants_no_further_answer_is_let_go(server: ServerProcess, version: str, headers: str) -> None:
    with Line(server) as line:
        line.sock.sendall(short(b'{"input": 7}', version=version, headers=headers))
        assert line.answer()[2] == {"output": 14.0}
        assert line.at_end()


def test_a_client_that_asks_first_is_told_to_go_on(server: ServerProcess) -> None:
    head, _, body = short(b'{"input": 8}', headers="Expect: 100-continue\r\n").partition(b"\r\n\r\n")
    with Line(server) as line:
        line.sock.sendall(head + b"\r\n\r\n")
        assert line._file.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert line._file.readline() == b"\r\n"
        line.sock.sendall(body)
        assert line.answer()[2] == {"output": 16.0}


def test_models_are_found_by_name_however_it_is_written(server: ServerProcess) -> None:
    [name] = server.get("/readyz").json()["models"]
    escaped = f"%{ord(name[0]):02x}{name[1:]}"
    with Line(server) as line:
        for path in (f"/predict/{name}", f"/predict/{escaped}", f"/predict/{name}/1", "/predict?any=1"):
            line.sock.sendall(short(b'{"input": 9}', path=path))
            assert line.answer()[::2] == (200, {"output": 18.0})


def test_a_body_over_the_limit_is_refused_and_the_line_closed(server: ServerProcess) -> None:
    with Line(server) as line:
        line.sock.sendall(short(b'{"input": 1}' + b" " * 200))
        status, headers, found = line.answer()
        assert (status, headers["connection"]) == (413, "close")
        assert isinstance(found, dict)
        assert found["code"] == "body_too_large"
        assert line.at_end()


def test_a_broken_request_is_refused(server: ServerProcess) -> None:
    with Line(server) as line:
        line.sock.sendall(b"POST /predict HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc")
        assert line._file.readline().startswith(b"HTTP/1.1 400")
