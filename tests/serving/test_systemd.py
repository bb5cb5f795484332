"""What systemd tells a service and hears from it: the socket that it listens on, readiness, the stop, the watchdog."""

import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import requests

from tests.support.server import FLAMBEAU, ServerProcess, free_port, started

# as systemd does it: the descriptor is 3, and the variables name the process that gets it
ACTIVATED = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=sys.argv[2])
os.execv(sys.executable, [sys.executable, "-m", "flambeau", *sys.argv[3:]])
"""


@pytest.fixture
def model(double_py: Path) -> tuple[str, ...]:
    return (f"{double_py}:Double", "--allow-code", "--replicas", "1")


@contextlib.contextmanager
def activated(given: socket.socket, *arguments: str, count: str = "1", ready: bool = True) -> Iterator[ServerProcess]:
    command = [sys.executable, "-c", ACTIVATED, str(given.fileno()), count, "serve", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        address = {} if ready else {"address": None}
        with started(command, Path(folder), descriptors=[given.fileno()], **address) as server:  # type: ignore[arg-type]
            yield server


@pytest.mark.parametrize("abstract", [False, True])
def test_it_tells_when_it_is_ready_lives_and_stops(model: Sequence[str], tmp_path: Path, abstract: bool) -> None:
    path = f"flambeau-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hears:
        hears.bind(f"\0{path}" if abstract else path)
        hears.settimeout(60)
        port = free_port()
        told = {"NOTIFY_SOCKET": f"@{path}" if abstract else path, "WATCHDOG_USEC": "200000"}
        command = [*FLAMBEAU, "serve", *model, "--port", port]
        with started(command, tmp_path, address=None, environment={**os.environ, **told}) as server:
            heard: list[bytes] = []
            while not heard or not heard[-1].startswith(b"READY=1"):
                heard.append(hears.recv(4096))
            assert requests.get(f"http://127.0.0.1:{port}/readyz", timeout=30).status_code == 200  # it listens
            assert {hears.recv(4096) for _ in range(3)} == {b"WATCHDOG=1"}
            server.process.send_signal(signal.SIGTERM)
            while (line := hears.recv(4096)) == b"WATCHDOG=1":
                pass
            assert line.startswith(b"STOPPING=1")
            assert server.process.wait(60) == 0


@pytest.mark.long
def test_a_watchdog_of_another_process_is_not_ours(model: Sequence[str], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hears:
        hears.bind(str(tmp_path / "notify"))
        hears.settimeout(60)
        told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000", "WATCHDOG_PID": "1"}
        command = [*FLAMBEAU, "serve", *model, "--port", free_port()]
        with started(command, tmp_path, environment={**os.environ, **told}):
            assert hears.recv(4096).startswith(b"READY=1")
            hears.settimeout(0.5)
            with pytest.raises(TimeoutError):
                hears.recv(4096)


@pytest.mark.long
@pytest.mark.parametrize("fronts", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_restarts_on_a_socket_of_systemd_lose_no_connection(model: Sequence[str], fronts: str) -> None:
    """Whoever connects while nobody serves waits for the next process."""
    model = (*model[:-1], fronts, "--fronts", fronts)
    counts: Counter[object] = Counter()
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as given:
        url = f"http://127.0.0.1:{given.getsockname()[1]}/predict"

        def ask() -> None:
            while not over.is_set():
                try:
                    found: object = requests.post(url, json={"input": 4}, timeout=60).json()["output"]
                except requests.RequestException as error:
                    found = repr(error)
                counts[found] += 1

        clients = [threading.Thread(target=ask) for _ in range(4)]
        for each in clients:
            each.start()
        for _ in range(2):
            with activated(given, *model) as server:
                assert server.url == url.removesuffix("/predict")
                least = counts.total() + 20
                server.wait_until(lambda least=least: counts.total() >= least)  # type: ignore[misc]
        over.set()
        with activated(given, *model):  # for those that wait
            for each in clients:
                each.join()
    assert set(counts) == {8.0}, counts


@pytest.mark.long
@pytest.mark.parametrize("fronts", ["1", "2"])
def test_a_unix_socket_of_systemd_is_served_and_left(model: Sequence[str], tmp_path: Path, fronts: str) -> None:
    model = (*model[:-1], fronts, "--fronts", fronts)
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as given:
        given.bind(str(path))
        given.listen()
        with (
            tempfile.TemporaryDirectory() as folder,
            started(
                [sys.executable, "-c", ACTIVATED, str(given.fileno()), "1", "serve", *model], Path(folder),
                address=r"(unix:\S+)", descriptors=[given.fileno()],
            ),
            socket.socket(socket.AF_UNIX) as client,
        ):  # fmt: skip
            client.connect(str(path))
            client.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
        assert path.exists()


@pytest.mark.parametrize(
    ("host", "count", "why"),
    [("0.0.0.0", "1", "would serve everybody"), ("127.0.0.1", "2", "LISTEN_FDS=2: name one address")],
)
def test_what_it_cannot_serve_is_refused(model: Sequence[str], host: str, count: str, why: str) -> None:
    with socket.create_server((host, 0)) as given, activated(given, *model, count=count, ready=False) as server:
        assert server.process.wait(60) == 78
        assert why in server.log() + server.output()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="Debian's systemd has it")
def test_systemds_own_tool_starts_it(model: Sequence[str], tmp_path: Path) -> None:
    port = free_port()
    command = ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", "-E", "PYTHONPATH", *FLAMBEAU, "serve", *model]
    with started(command, tmp_path, address=None) as server:
        server.wait_until(lambda: "Listening on" in server.log())
        assert requests.post(f"http://127.0.0.1:{port}/predict", json={"input": 4}, timeout=60).json()["output"] == 8
