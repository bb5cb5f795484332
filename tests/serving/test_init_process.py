"""Flambeau as process 1 of a container, and as an ordinary user in one: signals, orphans, exit codes, the drain."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import requests

from tests.serving.test_processes import CONTAINER
from tests.support.server import FLAMBEAU, started
from tests.support.tensor_bundles import doubling

in_container = pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run([*CONTAINER, "true"], capture_output=True).returncode != 0,
    reason="no containers here",
)

SLOW = """
import os, subprocess, time
import flambeau

class Slow(flambeau.PythonModel):
    def load(self):
        # a process whose parent ends at once: it is left to process 1
        subprocess.run(["sh", "-c", "sleep 0.2 & exec true"])

    def predict(self, batch):
        if batch[0] == "zombies":
            return [sum(_state(each) == "Z" for each in os.listdir("/proc") if each.isdigit())]
        if batch[0] == "first":
            return [open("/proc/1/cmdline").read().split("\\0")[0] != "" and os.getppid()]
        open({begun!r}, "w").close()
        time.sleep(1.0)
        return ["slept"]

def _state(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0]
    except OSError:
        return ""
"""


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    file = tmp_path / "slow.py"
    file.write_text(SLOW.replace("{begun!r}", repr(str(tmp_path / "begun"))))
    return file


@in_container
@pytest.mark.parametrize(
    ("arguments", "code"), [(("--version",), 0), (("serve", "/nowhere"), 1), (("serve", "--port", "x"), 78)]
)
def test_its_exit_code_is_the_commands(arguments: tuple[str, ...], code: int) -> None:
    done = subprocess.run([*CONTAINER, *FLAMBEAU, *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code, done.stderr


@pytest.mark.long
@in_container
def test_it_reaps_orphans_forwards_signals_and_drains(slow: Path, tmp_path: Path) -> None:
    """SIGTERM reaches process 1, which has no default action for it, and the request that runs is answered."""
    command = [*CONTAINER, *FLAMBEAU, "serve", f"{slow}:Slow", "--allow-code", "--port", "0"]
    with started(command, tmp_path, ends_by=signal.SIGKILL) as server:
        assert server.post(json={"input": "first"}).json()["output"] != 1  # a worker's parent is not process 1
        deadline = time.monotonic() + 20
        while server.post(json={"input": "zombies"}).json()["output"]:
            assert time.monotonic() < deadline, "the orphan of the model was not reaped"
        answers: list[requests.Response] = []
        asking = threading.Thread(target=lambda: answers.append(server.post(json={"input": "sleep"})))
        asking.start()
        server.wait_until((tmp_path / "begun").exists)
        [first] = _children(server.process.pid)
        os.kill(first, signal.SIGTERM)
        asking.join()
        assert [answer.json()["output"] for answer in answers] == ["slept"]
        assert server.process.wait(20) == 0
        assert "SIGTERM" in server.log()


def _children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root can give up rights")
def test_a_drain_needs_no_rights(tmp_path: Path) -> None:
    """Some kernels let only the mighty filter a socket, with which new connections are kept out."""
    powerless = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    bundle = doubling(tmp_path / "bundle")
    with started([*powerless, *FLAMBEAU, "serve", "--port", "0", bundle], tmp_path) as server:
        assert server.post(json={"input": [1, 2, 3]}).json()["output"] == [2, 4, 6]
        server.process.terminate()
        assert server.process.wait(20) == 0
        assert "Traceback" not in server.log()


def test_elsewhere_it_does_nothing() -> None:
    steps = ("import os", "from flambeau.system.init_process import step_down", "step_down()", "print(os.getpid())")
    with subprocess.Popen([sys.executable, "-c", "\n".join(steps)], stdout=subprocess.PIPE, text=True) as process:
        assert process.communicate()[0].split() == [str(process.pid)]
