"""The log of a real server in JSON: one object a line, whoever writes and whatever a client sends."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fleet import children, wait_for
from tests.support.server import FLAMBEAU, Serve, ServerProcess, run_anew

HOSTILE = [
    "a\n2026-01-01T00:00:00.000 INFO    forged", '{"time":"2026","level":"info","event":"forged"}', "\x1b[31mred",
    "nul\x00nul", "\x9b31mred", "line\u2028end\u2029and\x85more",
    'quote" level=error "', "half \ud800 pair", "\u202eright",
]  # fmt: skip
MODEL = """
import ctypes, os, subprocess, sys, warnings
import flambeau


class Loud(flambeau.PythonModel):
    def predict(self, batch):
        for item in batch:
            if item == "segv":
                ctypes.string_at(0)
            if item == "raise":
                raise ValueError(HOSTILE)
            print(item.encode("utf-8", "surrogatepass").decode("utf-8", "replace"))
            sys.stderr.write("no end of line yet, ")
            os.write(2, item.encode("utf-8", "surrogatepass") + b"\\xff\\n")
            warnings.warn("forged " + repr(item))
            subprocess.run(["sh", "-c", "echo from a child >&2"])
        return batch
"""


@pytest.fixture(scope="module")
def server(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A model that prints what it is sent, under a server whose log is JSON."""
    folder = tmp_path_factory.mktemp("logs")
    (folder / "loud.py").write_text(f"HOSTILE = {HOSTILE[0]!r}\n{MODEL}")
    with serve("loud.py:Loud", "--allow-code", "--log-format", "json", "--log-level", "debug", cwd=folder) as started:
        yield started


def events(server: ServerProcess) -> list[dict[str, Any]]:
    """The whole log so far; fails where a line is not an object with time, level and event."""
    found = []
    raw = server.log()
    assert raw.isprintable() or set(re.findall(r"[^ -~]", raw)) - {"\n"} == set(re.findall(r"[^\x00-\x7f]", raw))
    for line in raw.split("\n")[:-1]:
        assert line.isprintable(), line
        event = json.loads(line)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["time"])
        assert event["level"] in ("debug", "info", "warning", "error", "critical")
        assert isinstance(event["event"], str)
        found.append(event)
    return found


def of(server: ServerProcess, **wanted: object) -> list[dict[str, Any]]:
    """The events that have all these."""
    return [each for each in events(server) if wanted.items() <= each.items()]


def test_a_request_is_one_object_with_numbers_as_numbers(server: ServerProcess) -> None:
    assert server.post(json={"input": "hello"}, headers={"X-Request-ID": "look-for-me"}).status_code == 200
    [event] = of(server, id="look-for-me")
    assert (event["event"], event["model"], event["status"]) == ("POST /predict", "Loud", 200)
    assert isinstance(event["ms"], float)


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_user_text_cannot_forge_a_line_t27(server: ServerProcess, text: str) -> None:
    """T-27: in a body that the model prints, raises and warns with, in a name, a path, a query and headers."""
    before = len(of(server, event="output", text="from a child"))
    body = json.dumps({"input": text}).encode()
    server.post(data=body, headers={"Content-Type": "application/json"})  # half a pair is no JSON: 400
    server.post(files={"file": (text.encode("utf-8", "replace").decode("latin-1"), b"x")})
    quoted = "".join(f"%{byte:02x}" for byte in text.encode("utf-8", "surrogatepass"))
    server.get(f"/{quoted}?{quoted}")
    server.post(f"/predict/{quoted}", json={"input": 1})
    refused = server.post(
        json={"input": 1}, headers={"X-Request-ID": re.sub(r"[^ -~]", "?", text), "User-Agent": "forged"}
    )
    assert re.fullmatch("[0-9a-f]{16}", refused.headers["X-Request-ID"])
    if text.isascii() or "\ud800" not in text:
        wait_for(lambda: len(of(server, event="output", text="from a child")) > before)
    for event in events(server):
        assert "forged" not in event["event"]
        assert not {"forged", "\x1b"} & set(event)
    assert all(each["text"] != "" for each in of(server, event="output"))
    assert not of(server, event="forged")


def test_what_a_dying_worker_says_is_wrapped(server: ServerProcess) -> None:
    assert server.post(json={"input": "segv"}).json()["code"] == "model_crashed"
    wait_for(lambda: any("Segmentation fault" in each["text"] for each in of(server, event="output")))
    [lost] = of(server, event="worker lost")
    assert (lost["level"], lost["how"]) == ("warning", "crashed")


def test_a_traceback_is_part_of_its_object(server: ServerProcess) -> None:
    assert server.post(json={"input": "raise"}).status_code == 500
    assert any("ValueError: a\n2026" in each.get("traceback", "") for each in events(server))
    failures = of(server, event="the model failed on an input")
    assert any(each["error"].startswith("ValueError: a\n2026") for each in failures)


def test_what_is_no_http_is_an_object_too(server: ServerProcess) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as sock:
        sock.sendall(b"FORGED\x1b\r\n\r\n")
        assert b" 400 " in sock.recv(1000)
    events(server)


@pytest.mark.long
def test_the_last_words_are_read_to_the_end(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(MODEL)
    with serve("loud.py:Loud", "--allow-code", "--log-format", "json", cwd=tmp_path) as server:
        os.kill(children(server.process.pid)[0], signal.SIGKILL)
        server.post(json={"input": "x"})
    assert of(server, event="worker lost", how="killed")
    assert events(server)[-1]["event"] == "stopped"


def test_a_server_that_cannot_start_says_so_in_an_object(tmp_path: Path) -> None:
    done = run_anew("serve", str(tmp_path / "absent.pth"), "--port", "0", "--log-format", "json")
    assert done.returncode == 1
    last = json.loads(done.stderr.splitlines()[-1])
    assert (last["level"], last["exit"]) == ("error", 1)
    assert "absent.pth does not exist" in last["event"]


@pytest.mark.parametrize(("terminal", "is_json"), [(True, False), (False, True)])
def test_auto_is_text_on_a_terminal_and_json_elsewhere(terminal: bool, is_json: bool, tmp_path: Path) -> None:
    ours, theirs = pty.openpty() if terminal else os.pipe()
    command = [*FLAMBEAU, "serve", str(tmp_path / "absent.pth"), "--port", "0"]
    done = subprocess.run(command, stderr=theirs, env=os.environ | {"FLAMBEAU_LOG_FORMAT": "auto"}, check=False)
    os.close(theirs)
    with open(ours, "rb", closefd=True) as stream:
        line = stream.readline()
    assert done.returncode == 1
    assert line.startswith(b'{"time":') is is_json
    assert (b"flambeau: " in line) is terminal


def test_in_text_a_traceback_cannot_look_like_a_line() -> None:
    code = (
        "from flambeau.telemetry import logs; logs.configure('debug', 'text')\n"
        "try: raise ValueError('x\\n2026-01-01T00:00:00.000 INFO    forged\\x1b[31m')\n"
        "except ValueError as error: logs.failure('failed', error, name='a\" id=forged')\n"
        "import logging; logging.getLogger('other').warning('two\\nlines')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "\x1b" not in done.stderr
    own = [line for line in done.stderr.splitlines() if re.match(r"\d{4}-", line)]
    assert [line.split(maxsplit=2)[2].split(" ")[0] for line in own] == ["failed", "failed", "two\\nlines"]
    assert 'name="a\\" id=forged"' in own[0]
    assert all(line.startswith("    | ") for line in done.stderr.splitlines() if line not in own)
