"""The servers of these rooms are forked from a process that has imported all; they are what a user's processes are."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import fleet
from tests.support.fleet import children, ended, wait_for
from tests.support.server import Serve, ServerProcess

NOT_ALIKE = ("pid", "modules", "descriptors")
"""What they say of themselves and need not have in common: the null device is in a front's other descriptors."""


def about(server: ServerProcess) -> dict[str, Any]:
    found: dict[str, Any] = server.post(json={"input": {"do": "about"}}).json()["output"]
    return found


@pytest.fixture
def obedient(tmp_path: Path) -> Path:
    fleet.make_bundle(tmp_path)
    return tmp_path


@pytest.mark.long
def test_a_forked_worker_is_what_a_spawned_one_is(
    serve: Serve, serve_anew: Serve, obedient: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its environment, signals, limits and command line; and no more of its front than it is to have."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret of the front alone")
    monkeypatch.setenv("CUDA_SOMETHING", "1")
    found = []
    for start in (serve, serve_anew):
        with start(obedient, "--allow-code") as server:
            [worker] = children(server.process.pid)  # by its command line
            assert about(server)["pid"] == worker
            found.append({name: value for name, value in about(server).items() if name not in NOT_ALIKE})
            assert os.getpgid(worker) == worker
            assert server.process.poll() is None
    assert found[0] == found[1]
    assert found[0]["environment"]["CUDA_SOMETHING"] == "1"
    assert server.process.returncode == 0


def test_a_forked_server_lives_and_ends_as_another(serve: Serve, obedient: Path, tmp_path: Path) -> None:
    with serve(obedient, "--allow-code") as server:
        [worker] = children(server.process.pid)
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: ended(worker))
        assert about(server)["pid"] != worker
        [worker] = children(server.process.pid)
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(0.01)
        server.process.kill()
        assert server.process.wait(60) == -signal.SIGKILL
        wait_for(lambda: not Path(f"/proc/{worker}").exists())  # the kernel ends it with its front
    assert server.process.poll() == -signal.SIGKILL


def test_a_forked_server_that_cannot_start_is_told(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    fleet.make_bundle(tmp_path)
    with pytest.raises(RuntimeError, match=r"the server ended with 1: (.|\n)*weights\.bin is not here"):
        serve(tmp_path, "--allow-code").__enter__()
