"""The table of hostile requests (F-27 to F-40, T-11, T-17, T-20, T-21), and what a connection may take of us (F-09).

The rows and what is promised for each stand in `chaos.hostile`; `python -m chaos.hostile` prints them with the answers.
"""

import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos import hostile
from chaos.hostile_case import Case
from flambeau.bundle.storage import Bundle
from tests.support.server import Serve, ServerProcess

LIVE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory, cache: Path, default_bundle: Bundle) -> Iterator[dict[str, int]]:
    """The two services of the table; the default model is built once for the whole run."""
    with hostile.servers(tmp_path_factory.mktemp("hostile"), cache) as opened:
        yield {str(name): port for name, port in opened.items()}


@pytest.mark.parametrize("case", hostile.CASES, ids=lambda case: f"{case.fault}-{case.name}"[:60])
def test_what_is_hostile_gets_the_answer_that_is_promised(ports: dict[str, int], case: Case) -> None:
    assert hostile.judge(case, hostile.send(ports[case.target], case)) == ""


def test_the_services_still_answer(ports: dict[str, int]) -> None:
    good = Case("", "", LIVE, frozenset({(200, "")}))
    for port in ports.values():
        assert hostile.judge(good, hostile.send(port, good)) == ""


@pytest.fixture(scope="module")
def strict(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One with little room and less patience, and with answers as long as is asked for."""
    file = tmp_path_factory.mktemp("long") / "long.py"
    file.write_text(
        "import flambeau\n"
        "class Long(flambeau.PythonModel):\n"
        "    def predict(self, batch):\n"
        "        return ['x' * length for length in batch]\n"
    )
    with serve(
        f"{file}:Long", "--allow-code", "--max-connections", 6, "--max-connections-per-address", 3,
        "--idle-timeout", 0.2, "--header-timeout", 5, "--write-timeout", 0.2, "--max-header-bytes", 1000,
    ) as started:  # fmt: skip
        yield started


def connect(server: ServerProcess, source: str = "127.0.0.1") -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20, source_address=(source, 0))


def to_the_end(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


def test_an_idle_connection_is_closed_f09(strict: ServerProcess) -> None:
    with connect(strict) as sock:
        sock.sendall(LIVE)
        assert to_the_end(sock).startswith(b"HTTP/1.1 200")


def test_a_connection_that_says_nothing_is_closed_f09(strict: ServerProcess) -> None:
    with connect(strict) as sock:
        assert sock.recv(65536) == b""


def test_connections_are_bounded_by_address_and_in_all_t19(strict: ServerProcess) -> None:
    half = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n{"
    held = [connect(strict) for _ in range(3)]
    try:
        for each in held:
            each.sendall(half)
        with connect(strict) as one_more:
            assert b"429" in (answer := to_the_end(one_more)).split(b"\r\n")[0]
            assert b'"code":"rate_limited"' in answer
        held += [connect(strict, "127.0.0.2") for _ in range(3)]
        for each in held[3:]:
            each.sendall(half)
        with connect(strict, "127.0.0.3") as too_many:
            assert b"503" in (answer := to_the_end(too_many)).split(b"\r\n")[0]
            assert b'"code":"overloaded"' in answer
            assert b"retry-after" in answer
        for each in held:
            each.sendall(b'"input": 1}')
            assert each.recv(65536).startswith(b"HTTP/1.1 200")
    finally:
        for each in held:
            each.close()


def test_a_client_that_does_not_read_is_cut_off_f09(strict: ServerProcess) -> None:
    length = 20_000_000  # more than the kernel holds
    asked = b'{"input": %d}' % length
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with connect(strict) as sock:
        sock.sendall(head % len(asked) + asked)
        while "does not read" not in strict.log():
            select.select([], [], [], 0.05)
        assert len(to_the_end(sock)) < length


def test_refusals_are_counted_and_logged_in_one_line_each(strict: ServerProcess) -> None:
    with connect(strict) as sock:
        sock.sendall(LIVE[:-2] + b"X: " + b"a" * 1000 + b"\r\n\r\n")
        assert b"431" in sock.recv(65536).split(b"\r\n")[0]
    with connect(strict) as sock:
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        metrics = to_the_end(sock).decode()
    assert 'flambeau_refusals_total{code="headers_too_large"} 1.0' in metrics
    [line] = [line for line in strict.log().splitlines() if "headers_too_large" in line]
    assert "client=127.0.0.1" in line


@pytest.mark.parametrize(
    "bad",
    [b"POST /predict HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: 100000\r\n\r\n", b"nonsense\r\n\r\n"],
    ids=["two hosts", "no request"],
)
def test_a_client_that_sends_on_behind_a_bad_request_still_reads_what_it_is_owed_f28(
    strict: ServerProcess, bad: bytes
) -> None:
    """To close while there is something unread would reset the connection, and take what is under way with it."""
    size = 3_000_000
    body = b'{"input": %d}' % size
    owed = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with connect(strict) as sock:
        sock.sendall(owed % len(body) + body + bad)
        found = sock.recv(1000)
        sock.sendall(b"z" * 100_000)
        found += to_the_end(sock)
    head, _, answer = found.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert answer == b'{"output":"%b"}' % (b"x" * size)
