"""P2/A21: whatever becomes of standard error, no answer is lost, nothing waits, and SIGTERM ends the process."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import termios
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.support.fleet import children, wait_for
from tests.support.server import FLAMBEAU, Process, free_port, started

MODEL = """
import os, sys
import flambeau


class Loud(flambeau.PythonModel):
    def predict(self, batch):
        for item in batch:
            for _ in range(item["lines"]):
                print("x" * 500)
            sys.stderr.write("no end of line yet, ")
            os.write(2, b"now\\n")
        return [item["number"] for item in batch]
"""
SLOW = """
import time
import flambeau


class Loud(flambeau.PythonModel):
    def predict(self, batch):
        time.sleep(1)
        return batch
"""
CLIENTS = 4
REQUESTS = 60
LINES = 300  # that the model prints for each request: in all more than any pipe and the log's buffer hold
GENEROUS = 60.0  # seconds: others work on this machine, too


class Stderr:
    """A standard error in some state: where the server's goes, and what to do when it is ready."""

    def __init__(self, descriptor: int | None, *, prefix: str = "", later: Callable[[], None] = lambda: None) -> None:
        self.descriptor = descriptor
        self.prefix = prefix
        self.later = later


@contextlib.contextmanager
def full(folder: Path) -> Iterator[Stderr]:
    """A volume without room."""
    descriptor = os.open("/dev/full", os.O_WRONLY)
    yield Stderr(descriptor)
    os.close(descriptor)


@contextlib.contextmanager
def unread(folder: Path) -> Iterator[Stderr]:
    """A reader that is alive and does not read."""
    reading, writing = os.pipe()
    yield Stderr(writing)
    os.close(reading)
    os.close(writing)


@contextlib.contextmanager
def left(folder: Path) -> Iterator[Stderr]:
    """A reader that leaves."""
    reading, writing = os.pipe()
    yield Stderr(writing, later=lambda: os.close(reading))
    os.close(writing)


@contextlib.contextmanager
def closed(folder: Path) -> Iterator[Stderr]:
    """Closed before the start."""
    yield Stderr(None, prefix='exec "$@" 2>&-')


@contextlib.contextmanager
def limited(folder: Path) -> Iterator[Stderr]:
    """A file that may not grow beyond 64 KiB."""
    with (folder / "limited").open("wb") as file:
        yield Stderr(file.fileno(), prefix='export PYTHONDONTWRITEBYTECODE=1; ulimit -f 128; exec "$@"')


@contextlib.contextmanager
def stopped(folder: Path) -> Iterator[Stderr]:
    """A terminal that somebody has stopped with ^S."""
    ours, theirs = pty.openpty()
    termios.tcflow(theirs, termios.TCOOFF)
    yield Stderr(theirs)
    os.close(ours)
    os.close(theirs)


FORMS = [pytest.param("text", marks=pytest.mark.slow), "json"]

KINDS = {each.__name__: each for each in (full, unread, left, closed, limited, stopped)}


@contextlib.contextmanager
def loud(folder: Path, stderr: Stderr, *arguments: str, model: str = MODEL) -> Iterator[tuple[Process, str]]:
    """A server of the loud model with that standard error, ready, and its address."""
    (folder / "loud.py").write_text(model)
    command = [*FLAMBEAU, "serve", "loud.py:Loud", "--allow-code", "--port", "0", *arguments]
    if stderr.prefix:
        command = ["sh", "-c", stderr.prefix, "sh", *command]
    with started(command, folder, cwd=folder, stderr=stderr.descriptor, ends_by=signal.SIGKILL) as server:
        stderr.later()
        yield server.process, server.url


def ask(url: str, numbers: list[int], *, lines: int = 1) -> list[int]:
    """The answers to these numbers, one after the other on one connection."""
    with requests.Session() as session:
        found = []
        for number in numbers:
            body = {"input": {"number": number, "lines": lines}}
            answer = session.post(f"{url}/predict", json=body, timeout=GENEROUS)
            assert answer.status_code == 200, answer.text
            found.append(answer.json()["output"])
        return found


def dropped(url: str) -> int:
    """What the service says that it lost of its log."""
    text = requests.get(f"{url}/metrics", timeout=GENEROUS).text
    found = re.search(r"^flambeau_log_dropped_total (\S+)$", text, re.MULTILINE)
    assert found, "no flambeau_log_dropped_total"
    return int(float(found[1]))


@pytest.mark.long
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_losing_the_log_costs_no_answer_p2_a21(kind: str, form: str, tmp_path: Path) -> None:
    with KINDS[kind](tmp_path) as stderr, loud(tmp_path, stderr, "--log-format", form) as (process, url):
        all_are_answered(url, lines=LINES if kind in ("unread", "stopped") else 2)
        assert dropped(url) > 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(GENEROUS) == 0


@pytest.mark.long
@pytest.mark.parametrize("form", FORMS)
def test_a_model_in_the_server_itself_prints_without_waiting_p2(form: str, tmp_path: Path) -> None:
    """On standard output, too, which nobody reads either."""
    with (
        unread(tmp_path) as stderr,
        loud(tmp_path, stderr, "--log-format", form, "--runner", "threads") as (process, url),
    ):
        all_are_answered(url)
        assert dropped(url) > 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(GENEROUS) == 0


def all_are_answered(url: str, *, lines: int = LINES) -> None:
    """Several clients ask, the model prints so many lines for each request, and the service lives."""
    shares = [list(range(first, REQUESTS, CLIENTS)) for first in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as threads:
        assert list(threads.map(lambda share: ask(url, share, lines=lines), shares)) == shares
    assert requests.get(f"{url}/livez", timeout=GENEROUS).status_code == 200


@pytest.mark.long
@pytest.mark.parametrize("form", FORMS)
def test_after_a_gap_one_line_says_how_many_were_dropped_p2(form: str, tmp_path: Path) -> None:
    """The reader reads again: every line is whole, those of the gap are counted, and the log goes on."""
    reading, writing = os.pipe()
    received: list[bytes] = []

    def read() -> None:
        while data := os.read(reading, 65536):
            received.append(data)

    with loud(tmp_path, Stderr(writing), "--log-format", form) as (process, url):
        all_are_answered(url)
        reader = threading.Thread(target=read)
        reader.start()
        wait_for(lambda: b"were dropped" in b"".join(received), seconds=GENEROUS)
        requests.post(f"{url}/predict", json={"input": 1}, headers={"X-Request-ID": "later"}, timeout=GENEROUS)
        lost = dropped(url)
        process.send_signal(signal.SIGTERM)
        assert process.wait(GENEROUS) == 0
        os.close(writing)
        reader.join(GENEROUS)
    os.close(reading)
    text = b"".join(received).decode()
    assert text.endswith("\n")
    lines = text.splitlines()
    if form == "json":
        told = [json.loads(line) for line in lines]
        gaps = [each["dropped"] for each in told if each["event"] == "lines of the log were dropped"]
    else:
        gaps = [
            int(found[1]) for line in lines if (found := re.search(r"WARNING lines .* dropped dropped=(\d+)$", line))
        ]
    assert sum(gaps) == lost
    assert len(gaps) == 1, gaps
    assert any("later" in line for line in lines)
    assert "stopped" in lines[-1]


@pytest.mark.long
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["file", "pipe", "terminal"])
def test_nothing_is_lost_where_somebody_reads_p2(kind: str, form: str, tmp_path: Path) -> None:
    """32 clients, and each finds its own lines in order."""
    received: list[bytes] = []
    reading = -1
    if kind == "file":
        writing = os.open(tmp_path / "log", os.O_CREAT | os.O_RDWR)
    elif kind == "pipe":
        reading, writing = os.pipe()
    else:
        reading, writing = pty.openpty()

    def read() -> None:
        with contextlib.suppress(OSError):  # EIO: how a terminal says that its other end is closed
            while data := os.read(reading, 65536):
                received.append(data)

    reader = threading.Thread(target=read)
    clients, each = 32, 20
    with loud(tmp_path, Stderr(writing), "--log-format", form, "--max-batch-size", "8") as (process, url):
        if kind != "file":
            reader.start()
        with ThreadPoolExecutor(clients) as threads:
            list(threads.map(lambda client: named(url, client, each), range(clients)))
        assert dropped(url) == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(GENEROUS) == 0
    os.close(writing)
    if kind != "file":
        reader.join(GENEROUS)
        os.close(reading)
    text = (tmp_path / "log").read_text() if kind == "file" else b"".join(received).decode()
    found = re.findall(r"client-(\d+)-(\d+)", text)
    for client in range(clients):
        assert [int(number) for name, number in found if int(name) == client] == list(range(each))
    assert text.count("x" * 500) == 2 * clients * each
    assert "stopped" in text.splitlines()[-1]
    if form == "json":
        assert all(json.loads(line) for line in text.splitlines())


def named(url: str, client: int, count: int) -> None:
    """One client's requests, each of a name that the log shows."""
    with requests.Session() as session:
        for number in range(count):
            answer = session.post(
                f"{url}/predict", json={"input": {"number": number, "lines": 2}}, timeout=GENEROUS,
                headers={"X-Request-ID": f"client-{client}-{number}"},
            )  # fmt: skip
            assert answer.json()["output"] == number


@pytest.mark.long
@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", ">&-", ">/dev/full"])
def test_it_starts_whatever_is_closed_or_full_u19(streams: str, tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(MODEL)
    port = free_port()
    command = [*FLAMBEAU, "serve", "loud.py:Loud", "--allow-code", "--port", port, "--log-format", "text"]
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(
        ["sh", "-c", f'exec "$@" {streams}', "sh", *command],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, cwd=tmp_path,
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: process.poll() is not None or answers(url), seconds=GENEROUS)
        assert ask(url, [1, 2]) == [1, 2]
        for descriptor in range(3):  # none of them became a socket, or a file of ours
            target = os.readlink(f"/proc/{process.pid}/fd/{descriptor}")
            assert target == "/dev/null" or target.startswith("pipe:"), target
        process.send_signal(signal.SIGTERM)
        assert process.wait(GENEROUS) == 0
    finally:
        process.kill()
        process.wait()
        log.close()
    if "2>&-" not in streams:
        assert f"standard output does not take the address url={url}" in (tmp_path / "log").read_text()


def answers(url: str) -> bool:
    """Whether somebody listens there."""
    try:
        return requests.get(f"{url}/livez", timeout=GENEROUS).status_code == 200
    except requests.ConnectionError:
        return False


@pytest.mark.long
@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_goes_away_drains_unless_under_nohup_u19(ignored: bool, tmp_path: Path) -> None:
    """SIGHUP, twice as shells send it, while a request is computed."""
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        prefix = 'trap "" HUP; exec "$@"' if ignored else 'exec "$@"'
        with (
            loud(tmp_path, Stderr(stderr.fileno(), prefix=prefix), model=SLOW) as (process, url),
            ThreadPoolExecutor() as one,
        ):
            asked = one.submit(ask, url, [3], lines=0)
            wait_for(lambda: busy(url), seconds=GENEROUS)
            for pid in (process.pid, *children(process.pid), process.pid):
                os.kill(pid, signal.SIGHUP)
            assert asked.result() == [{"number": 3, "lines": 0}]
            if ignored:
                assert ask(url, [4], lines=0) == [{"number": 4, "lines": 0}]
                process.send_signal(signal.SIGTERM)
            assert process.wait(GENEROUS) == 0
    assert ("signal=SIGHUP" in log.read_text()) is not ignored


def busy(url: str) -> bool:
    """Whether a worker computes."""
    return bool(
        re.search(r'flambeau_workers\{.*state="busy".*\} 1', requests.get(f"{url}/metrics", timeout=GENEROUS).text)
    )


@pytest.mark.long
@pytest.mark.parametrize("streams", ["2>/dev/full", ">&- 2>&-"])
def test_answers_for_a_file_come_without_standard_error_u19(streams: str, tmp_path: Path) -> None:
    """`flambeau predict` tells there how far it is."""
    (tmp_path / "loud.py").write_text("\n".join(line for line in MODEL.splitlines() if "os.write" not in line))
    (tmp_path / "items.jsonl").write_text("".join(json.dumps({"number": each, "lines": 1}) + "\n" for each in range(3)))
    command = [*FLAMBEAU, "predict", "loud.py:Loud", "--allow-code", "items.jsonl", "-o", "answers.jsonl"]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {streams}', "sh", *command],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=tmp_path, timeout=GENEROUS, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [row["output"] for row in rows] == [0, 1, 2]
