"""A server that cannot open files any more: it ends as any, and answers what it has received."""

import os
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.support.server import Serve, ServerProcess

MODEL = """
import time
from pathlib import Path
import flambeau

class Slow(flambeau.PythonModel):
    def predict(self, batch):
        Path({begun!r}).touch()
        time.sleep(max(batch))
        return ["answered" for _ in batch]
"""


@pytest.fixture
def slow(serve: Serve, tmp_path: Path) -> Iterator[ServerProcess]:
    file = tmp_path / "slow.py"
    file.write_text(MODEL.format(begun=str(tmp_path / "begun")))
    with serve(f"{file}:Slow", "--allow-code") as started:
        yield started


def test_a_server_without_files_ends_and_answers_what_it_has(slow: ServerProcess, tmp_path: Path) -> None:
    """Those that are not accepted yet are lost: there is no file for them."""
    found: list[requests.Response] = []
    asking = threading.Thread(target=lambda: found.append(slow.post(json={"input": 2.0})))
    asking.start()
    slow.wait_until((tmp_path / "begun").exists, within=30)
    pid = slow.process.pid
    taken = {*map(int, os.listdir(f"/proc/{pid}/fd"))}
    none_left = min({*range(len(taken) + 1)} - taken)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (none_left, none_left))
    host, port = slow.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30):
        slow.process.send_signal(signal.SIGTERM)
        assert slow.process.wait(30) == 0
    asking.join()
    assert found[0].json() == {"output": "answered"}
    assert "Traceback" not in slow.log()
