"""How several fronts end, each and all of them, and what is said where none can start."""

import contextlib
import http.client
import itertools
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flambeau.errors import EngineError
from tests.support import fleet
from tests.support.server import FLAMBEAU, Serve, run_anew, started
from tests.support.several_fronts import KeepAlive, alive, all_ready, children, end, eventually


def test_a_drain_loses_nothing_f19(serve: Serve, obedient: Path) -> None:
    """Clients ask without a pause; whatever was sent over a connection that came about is answered."""
    lost: list[object] = []
    good = itertools.count()
    with serve(obedient, "--allow-code", "--fronts", "2") as server:

        def client(number: int) -> None:
            mine = KeepAlive(server)
            for turn in itertools.count():
                try:
                    if mine.connection.sock is None:
                        mine.connection.connect()
                except OSError:
                    return  # nobody listens any more
                try:
                    status, found = mine.ask(turn)
                except (OSError, http.client.HTTPException) as error:
                    lost.append(error)
                    mine.close()
                    return
                if (status, found) == (200, turn):
                    next(good)
                elif status != 503:
                    lost.append(found)
                if number % 2:  # every other client opens a connection for each request
                    mine.again()

        with ThreadPoolExecutor(16) as pool:
            running = [pool.submit(client, number) for number in range(16)]
            time.sleep(0.5)
            server.process.send_signal(signal.SIGTERM)
            for each in running:
                each.result()
        assert server.process.wait(30) == 0
    assert not lost
    assert next(good) > 50
    log = server.log()
    assert "front=1" in log
    assert "front=2" in log


def test_when_the_supervisor_is_killed_everything_ends_and_the_port_is_free(serve: Serve, obedient: Path) -> None:
    with contextlib.suppress(RuntimeError), serve(obedient, "--allow-code", "--fronts", "2") as server:
        port = int(server.url.rpartition(":")[2])
        fronts = children(server.process.pid)
        workers = [each for front in fronts for each in children(front)]
        assert (len(fronts), len(workers)) == (2, 2)
        end(fronts[0], signal.SIGSTOP)  # even one that is stopped
        server.process.kill()
        server.process.wait(30)
        eventually(lambda: not any(map(alive, (*fronts, *workers))))
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", port))


@pytest.mark.slow
def test_a_unix_socket_and_a_front_that_is_asked_to_leave(serve: Serve, obedient: Path, tmp_path: Path) -> None:
    """SIGTERM to one front: it answers what it has, and another takes its place; nobody else notices."""
    path = tmp_path / "s"
    command = [*FLAMBEAU, "serve", obedient, "--allow-code", "--fronts", "2", "--host", f"unix:{path}"]
    with started(command, tmp_path, address=r"(unix:\S+)") as server:

        def ask() -> bytes:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                sock.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                return b"".join(iter(lambda: sock.recv(65536), b""))

        assert b'"fronts":{"ready":2,"of":2}' in ask()
        first = children(server.process.pid)[0]
        end(first, signal.SIGTERM)
        eventually(lambda: not alive(first))
        eventually(lambda: "front ready" in server.log())
        assert b'"fronts":{"ready":2,"of":2}' in ask()
        assert "reason=ended" in server.log()
    assert not path.exists()


@pytest.mark.slow
def test_where_no_front_can_start_clients_are_told_so_until_one_can(serve: Serve, tmp_path: Path) -> None:
    fleet.make_bundle(tmp_path)
    with serve(tmp_path, "--allow-code", "--fronts", "2") as server:
        (tmp_path / "broken").touch()
        for pid in children(server.process.pid):
            end(pid, signal.SIGKILL)
        began = time.monotonic()
        refused = server.post(json={"input": {"do": "echo", "value": 1}})
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        assert refused.headers["Retry-After"] == "1"
        assert time.monotonic() - began > 3
        assert server.get("/readyz").status_code == 503
        (tmp_path / "broken").unlink()
        eventually(lambda: all_ready(server), within=120)
        assert server.post(json={"input": {"do": "echo", "value": 1}}).json() == {"output": 1}


@pytest.mark.slow
def test_a_model_that_cannot_start_ends_the_start(obedient: Path) -> None:
    (obedient / "broken").touch()
    try:
        found = run_anew("serve", obedient, "--allow-code", "--fronts", "2", "--port", "0")
    finally:
        (obedient / "broken").unlink()
    assert found.returncode == EngineError.exit_code
    assert "weights.bin is not here" in found.stderr


def test_a_small_limit_on_the_size_of_files_is_named(obedient: Path) -> None:
    """Fronts share memory, which counts as a file. One front needs none."""
    command = [*FLAMBEAU, "serve", str(obedient), "--allow-code", "--fronts", "2", "--port", "0"]
    limited = ["sh", "-c", 'export PYTHONDONTWRITEBYTECODE=1; ulimit -f 128; exec "$@"', "sh", *command]
    found = subprocess.run(limited, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 1
    assert "ulimit -f" in found.stderr.splitlines()[-1]
    assert "Traceback" not in found.stderr
