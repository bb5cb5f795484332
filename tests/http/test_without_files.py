"""A server that cannot open files any more: it ends as any, and answers what it has received."""

import os
import resource
import signal
import socket
import subprocess
import threading
import time
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


def allow_no_more(pid: int) -> tuple[int, int]:
    """Have a process open no more files; gives its limits before."""
    taken = {*map(int, os.listdir(f"/proc/{pid}/fd"))}
    none_left = min({*range(len(taken) + 1)} - taken)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    return resource.prlimit(pid, resource.RLIMIT_NOFILE, (none_left, before[1]))


@pytest.mark.long
def test_encrypted_connections_that_wait_for_a_file_are_a_line_of_the_log(
    serve_anew: Serve, double_py: Path, tmp_path: Path
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", key, "-out", cert, "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    files = ("--tls-certificate", cert, "--tls-key", key)
    with serve_anew(f"{double_py}:Double", "--allow-code", *files) as started:
        before = allow_no_more(started.process.pid)
        host, port = started.url.removeprefix("https://").split(":")
        with socket.create_connection((host, int(port)), timeout=30):
            started.wait_until(lambda: "Too many open files" in started.log(), within=30)
            time.sleep(2.5)  # two more attempts, of which nothing is said
            assert started.log().count("a connection cannot be accepted") == 1
        resource.prlimit(started.process.pid, resource.RLIMIT_NOFILE, before)
        answer = requests.post(started.url + "/predict", json={"input": 4}, verify=str(cert), timeout=30)
        assert answer.json() == {"output": 8.0}


def test_a_server_without_files_ends_and_answers_what_it_has(slow: ServerProcess, tmp_path: Path) -> None:
    """Those that are not accepted yet are lost: there is no file for them."""
    found: list[requests.Response] = []
    asking = threading.Thread(target=lambda: found.append(slow.post(json={"input": 2.0})))
    asking.start()
    slow.wait_until((tmp_path / "begun").exists, within=30)
    allow_no_more(slow.process.pid)
    host, port = slow.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30):
        slow.process.send_signal(signal.SIGTERM)
        assert slow.process.wait(30) == 0
    asking.join()
    assert found[0].json() == {"output": "answered"}
    assert "Traceback" not in slow.log()
