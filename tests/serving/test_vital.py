"""What tells how the server is, is answered whatever else is full (A6, P10); and what makes way for whom."""

import contextlib
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fleet import wait_for
from tests.support.server import Serve, ServerProcess

VITAL = ("/livez", "/readyz", "/metrics", "/dashboard", "/static/style.css")
HALF = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Half: "
LIVE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
PLACES = 40
SLOW = """
import time
import flambeau

class Slow(flambeau.PythonModel):
    def predict(self, batch):
        time.sleep(max(batch))
        return batch
"""


@pytest.fixture(scope="module")
def server(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A model that sleeps for as many seconds as it is told, and forty places for connections."""
    file = tmp_path_factory.mktemp("slow") / "slow.py"
    file.write_text(SLOW)
    with serve(
        f"{file}:Slow", "--allow-code", "--replicas", 1, "--max-batch-size", 1, "--max-connections", PLACES,
        "--header-timeout", 60, "--body-timeout", 60, "--idle-timeout", 60,
    ) as started:  # fmt: skip
        yield started


def connect(server: ServerProcess) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def to_the_end(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


@contextlib.contextmanager
def held(server: ServerProcess, count: int, data: bytes) -> Iterator[list[socket.socket]]:
    """So many connections over which that was sent."""
    sockets = []
    try:
        for _ in range(count):
            sockets.append(connect(server))
            sockets[-1].sendall(data)
        yield sockets
    finally:
        for each in sockets:
            each.close()


def post(body: bytes, *, length: int | None = None) -> bytes:
    head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return (head % (len(body) if length is None else length)).encode() + body


def assert_vital(server: ServerProcess) -> None:
    for path in VITAL:
        assert server.get(path).status_code == 200, path


def test_a_flood_of_half_heads_takes_nothing_from_anybody_a6(server: ServerProcess) -> None:
    with held(server, 5 * PLACES, HALF) as half:
        assert_vital(server)  # at once, over spare connections
        wait_for(lambda: server.post(json={"input": 0}).status_code == 200)  # once they have had their time
        assert_vital(server)
        ended = [each for each in half if _has_answer(each)]
        assert ended  # the oldest made way, and were told
        assert b"503" in ended[0].recv(65536).split(b"\r\n")[0]


def _has_answer(sock: socket.socket) -> bool:
    sock.settimeout(0.01)
    try:
        return sock.recv(1, socket.MSG_PEEK) != b""
    except (TimeoutError, ConnectionError):
        return False


def test_with_every_place_at_work_health_is_answered_and_nothing_else_a6(server: ServerProcess) -> None:
    """Half bodies do not make way: they are requests."""
    with held(server, PLACES, post(b'{"input":', length=100)) as busy:
        assert_vital(server)
        with connect(server) as spare:  # over a spare connection there is one answer
            spare.sendall(LIVE * 2)
            assert to_the_end(spare).count(b"HTTP/1.1 200 ") == 1
        refused = server.post(json={"input": 0})
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        assert refused.headers["Retry-After"] == "1"
        assert server.get("/openapi.json").status_code == 503
        with held(server, 100, HALF):  # the spare ones, too, are taken: whoever asks at once goes before
            assert_vital(server)
        with connect(server) as silent:
            assert to_the_end(silent).startswith(b"HTTP/1.1 503 ")
        for sock in busy:
            sock.sendall(b" 0}" + b" " * 88)
        assert all(sock.recv(65536).startswith(b"HTTP/1.1 200 ") for sock in busy)


def test_idle_connections_make_way_when_there_is_no_place_left_a6(server: ServerProcess) -> None:
    with held(server, PLACES, LIVE) as idle:
        for each in idle:
            assert each.recv(65536).startswith(b"HTTP/1.1 200 ")
        wait_for(lambda: server.post(json={"input": 0}).status_code == 200)
    assert_vital(server)


def test_the_limit_of_an_address_leaves_health_alone_a6(serve: Serve, double_py: Path) -> None:
    with (
        serve(f"{double_py}:Double", "--allow-code", "--max-connections-per-address", 2) as server,
        held(server, 2, post(b'{"input":', length=100)),
    ):
        assert server.get("/livez").status_code == 200
        refused = server.post(json={"input": 1})
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")


@pytest.mark.long
def test_forms_that_wait_for_a_slow_model_leave_the_page_and_the_figures_alone_p10(
    serve: Serve, tmp_path: Path
) -> None:
    """Twelve are more than Flask has threads for; the model answers none of them before the gate is opened."""
    gate = tmp_path / "open"
    (tmp_path / "gate.py").write_text(
        "import time\nfrom pathlib import Path\nimport flambeau\n"
        "class Gate(flambeau.PythonModel):\n"
        "    def predict(self, batch):\n"
        f"        while not Path({str(gate)!r}).exists(): time.sleep(0.01)\n"
        "        return batch\n"
    )
    flags = ("--allow-code", "--replicas", 1, "--max-batch-size", 1, "--compute-timeout", 600, "--deadline", 600)
    with serve(f"{tmp_path}/gate.py:Gate", *flags) as server:
        answers: list[int] = []

        def submit() -> None:
            answers.append(server.post("/", files={"input": (None, "1")}).status_code)

        threads = [threading.Thread(target=submit) for _ in range(12)]
        for each in threads:
            each.start()
        wait_for(lambda: 'flambeau_queue_items{model="Gate",version="1"} 11.0' in server.get("/metrics").text)
        assert_vital(server)
        assert server.get("/").status_code == 200
        assert answers == []
        gate.touch()
        for each in threads:
            each.join()
    assert answers == [200] * 12


@pytest.mark.long
def test_the_queue_bounds_the_forms_that_wait_p10(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    with serve(
        f"{tmp_path}/slow.py:Slow", "--allow-code", "--replicas", 1, "--max-batch-size", 1, "--max-queue-size", 2
    ) as server:
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda: answers.append(server.post("/", files={"input": (None, "1")}).status_code))
            for _ in range(8)
        ]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert sorted(set(answers)) == [200, 503]


@pytest.mark.long
def test_the_limit_of_open_files_is_raised_for_the_connections_that_may_come_a6(serve: Serve, double_py: Path) -> None:
    """Shells and systemd begin with 1,024, which is as many as --max-connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with serve(f"{double_py}:Double", "--allow-code", "--header-timeout", 60) as server:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            with held(server, 400, HALF):
                assert_vital(server)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
