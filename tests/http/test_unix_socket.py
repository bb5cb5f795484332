"""`flambeau serve --host unix:PATH`: listened on, replaced when stale, kept by its owner, gone in the end (U19)."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flambeau.errors import PortInUse
from flambeau.http.listening import bind
from tests.support.server import FLAMBEAU, ServerProcess, run_flambeau, started

SLOW = """
import pathlib, time
import flambeau

class Slow(flambeau.PythonModel):
    def load(self):
        while not pathlib.Path({gate!r}).exists():
            time.sleep(0.02)
    def predict(self, batch):
        pathlib.Path({begun!r}).touch()
        time.sleep(1)
        return batch
"""


@contextlib.contextmanager
def serving(path: Path, *arguments: object, ready: bool = True) -> Iterator[ServerProcess]:
    command = [*FLAMBEAU, "serve", *arguments, "--host", f"unix:{path}"]
    address = rf": (unix:{re.escape(str(path))})\n"
    with (
        tempfile.TemporaryDirectory() as folder,
        started(command, Path(folder), address=address if ready else None, anew=False) as server,
    ):
        yield server


class Connection(http.client.HTTPConnection):
    """http.client over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(str(self._path))


def ask(path: Path, value: object, **headers: str) -> tuple[int, Any]:
    connection = Connection(path)
    with contextlib.closing(connection):
        connection.request(
            "POST", "/predict", json.dumps({"input": value}), {"Content-Type": "application/json", **headers}
        )
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def test_it_is_listened_on_and_gone_in_the_end_u19(tmp_path: Path, double_py: Path) -> None:
    path = tmp_path / "x.sock"
    os.umask(before := os.umask(0o027))
    with serving(path, f"{double_py}:Double", "--allow-code") as server:
        assert ask(path, 3) == (200, {"output": 6.0})
        assert stat.S_IMODE(path.stat().st_mode) == 0o777 & ~before  # as the umask says
        assert ask(path, 3, Host="evil.test")[1]["code"] == "bad_host"  # as on loopback
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_server_left_is_replaced_u19(tmp_path: Path, double_py: Path) -> None:
    path = tmp_path / "x.sock"
    source = (f"{double_py}:Double", "--allow-code")
    with serving(path, *source) as server:
        server.process.kill()
        server.process.wait(30)
        assert path.exists()
        with serving(path, *source):
            assert ask(path, 4) == (200, {"output": 8.0})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_one_that_loads_its_model_keeps_its_socket_and_what_is_on_its_way_is_answered_u19(tmp_path: Path) -> None:
    """Nothing listens while a model loads, so a connection tells no stale file from one that waits for its owner."""
    path, gate, begun = tmp_path / "x.sock", tmp_path / "gate", tmp_path / "begun"
    (tmp_path / "slow.py").write_text(SLOW.format(gate=str(gate), begun=str(begun)))
    source = (f"{tmp_path / 'slow.py'}:Slow", "--allow-code")
    with serving(path, *source, ready=False) as server:
        server.wait_until(path.exists)
        second = run_flambeau("serve", *source, "--host", f"unix:{path}")
        assert second.returncode == 69
        assert "another server has it" in second.stderr
        gate.touch()
        server.wait_until(server.output)
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(ask(path, 7)))
        asking.start()
        while not begun.exists():
            asking.join(0.05)
            assert not answers
        server.process.send_signal(signal.SIGTERM)
        asking.join(60)
        assert answers == [(200, {"output": 7})]
        assert server.process.wait(30) == 0
    assert not path.exists()


def test_what_is_no_free_address_is_told_with_a_remedy_u19(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(PortInUse, match="it is not a socket"):
        bind(f"unix:{file}", 0)
    assert file.read_text() == "mine"
    with pytest.raises(PortInUse, match="No such file or directory"):
        bind(f"unix:{tmp_path / 'absent' / 'x.sock'}", 0)
    with pytest.raises(PortInUse, match="longer than 107 bytes"):
        bind(f"unix:{tmp_path / ('x' * 120)}", 0)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "other.sock"))
        other.listen()
        with pytest.raises(PortInUse, match="another program listens there"):
            bind(f"unix:{tmp_path / 'other.sock'}", 0)
        assert (tmp_path / "other.sock").exists()


def test_two_starts_and_a_stop_leave_one_owner_u19(tmp_path: Path) -> None:
    host = f"unix:{tmp_path / 'x.sock'}"
    first = bind(host, 0)
    with pytest.raises(PortInUse, match="another server has it"):
        bind(host, 0)
    first.close()
    second = bind(host, 0)
    assert second.url("http") == host
    second.close()
    assert list(tmp_path.iterdir()) == []
