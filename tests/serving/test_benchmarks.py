"""The benchmarks: the load generator accounts for what it sends, a server's processes are all found and ended, the
judgement is of the right rows, and in the slow test a short run comes to its end."""

import contextlib
import json
import math
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from benchmarks import load, processes, report
from benchmarks.__main__ import _chosen
from benchmarks.environments import NotInstalledError, install
from benchmarks.load import Window
from benchmarks.measure import Turn
from benchmarks.peers import PEERS
from benchmarks.processes import Server
from benchmarks.results import Result, Row
from benchmarks.targets import judge
from tests.support import ROOT

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="the load generator is written in C")

BODY = b'{"output": [7.5]}'
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n" + BODY


@contextlib.contextmanager
def answering(answer: bytes, *, close: bool = False, pause: float = 0.0) -> Iterator[tuple[int, list[int]]]:
    """A server that gives one answer to every request: its port, and a list with an entry for each request."""
    served: list[int] = []

    def talk(connection: socket.socket) -> None:
        with connection:
            while connection.recv(65536):
                served.append(1)
                time.sleep(pause)
                connection.sendall(answer)
                if close:
                    return

    def accept(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=suppressed, args=(talk, connection), daemon=True).start()

    def suppressed(call: Callable[[socket.socket], None], connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the client has what it wanted
            call(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, args=(listener,), daemon=True)
        thread.start()
        yield listener.getsockname()[1], served
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def loaded(tmp_path: Path, port: int, *, clients: int = 4, seconds: float = 0.2, **more: float) -> Window:
    """A window of the load generator."""
    (tmp_path / "request").write_bytes(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
    return load.run(tmp_path / "request", port=port, clients=clients, text="7.5", seconds=seconds, warmup=0.0, **more)  # type: ignore[arg-type]  # fewest is a whole number


@needs_compiler
@pytest.mark.parametrize(
    ("answer", "close"),
    [
        (PLAIN, False),
        (PLAIN, True),  # without saying so: a server may end a connection that is idle
        (PLAIN.replace(b"Content-Length: 17", b"Content-Length: 17\r\nConnection: close"), True),
        (b"HTTP/1.0 200 OK\r\n\r\n" + BODY, True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n11\r\n" + BODY + b"\r\n0\r\n\r\n", False),
    ],
    ids=["kept", "closed", "closed as said", "until the end", "chunked"],
)
def test_every_answer_is_counted(tmp_path: Path, answer: bytes, close: bool) -> None:
    with answering(answer, close=close) as (port, served):
        window = loaded(tmp_path, port)
    assert window.good > 0
    assert window.wrong == 0, window.complaint
    assert window.good <= len(served) <= window.good + 2 * window.clients  # those under way when the window ended
    assert 0 < window.p50_ms <= window.p99_ms


@needs_compiler
@pytest.mark.parametrize(
    ("answer", "status", "text"),
    [
        (PLAIN.replace(b"200 OK", b"500 No"), True, False),
        (PLAIN.replace(b"7.5", b"8.5"), False, True),
        (
            PLAIN.replace(b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nX: 7.5\r\n").replace(b"[7.5]", b"[8.5]"),
            False,
            True,
        ),
    ],
    ids=["status", "text", "text in the head only"],
)
def test_a_wrong_answer_is_not_good(tmp_path: Path, answer: bytes, status: bool, text: bool) -> None:
    with answering(answer) as (port, _):
        window = loaded(tmp_path, port)
    assert window.good == 0
    assert (window.wrong_status > 0, window.wrong_text > 0) == (status, text)
    assert window.complaint[:3] == ("500" if status else "200")


@needs_compiler
def test_an_answer_cut_short_is_a_broken_connection(tmp_path: Path) -> None:
    with answering(PLAIN[:-5], close=True) as (port, _):
        window = loaded(tmp_path, port)
    assert window.good == 0
    assert window.broken > 0


@needs_compiler
def test_a_slow_server_gets_a_longer_window(tmp_path: Path) -> None:
    with answering(PLAIN, pause=0.05) as (port, _):
        window = loaded(tmp_path, port, clients=1, seconds=0.1, fewest=6, longest=30.0)
    assert window.good >= 6
    assert window.p50_ms >= 50


def test_no_compiler_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(load, "_PROGRAM", tmp_path / "load")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(load.LoadError, match="apt-get install gcc"):
        load.program()


def test_a_peer_without_its_java_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotInstalledError, match="needs java"):
        install("torchserve")


CHILD = "import time; print('up', flush=True); time.sleep(600)"
PARENT = f"""
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
print("all up", flush=True)
os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)"])
"""


def test_all_processes_of_a_server_are_found_and_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also one that left the session, as daemons do."""
    monkeypatch.setattr(processes, "_PATIENCE", 0.5)  # seconds; the parent ends at once, and nobody ends the child
    log = tmp_path / "log"
    server = Server([sys.executable, "-c", PARENT], environment={}, folder=tmp_path, log=log)
    try:
        deadline = time.monotonic() + 30
        while "all up" not in log.read_text() and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        assert len(server.processes()) == 2
        assert server.memory() > 1_000_000
    finally:
        server.stop()
    assert not server.processes()
    assert server.ended


def row(peer: str, per_second: float, *, p50: float = 10.0, p99: float = 15.0, wrong: int = 0, mib: int = 100) -> Row:
    """A row whose rounds differ, with the given medians."""
    turns = [
        Turn(
            cold=1.0, idle=mib << 20, loaded=mib << 20,
            windows=tuple(
                Window(n, 100, 1.0, per_second * scale, p50 * scale, p99 * scale, 0, wrong, 0, 0.1, "no" * wrong)
                for n in (1, 8, 32, 128)
            ),
        )
        for scale in (0.5, 1.0, 4.0)
    ]  # fmt: skip
    return Row(peer, "", turns)


def result(*rows: Row) -> Result:
    """A comparison of photographs."""
    return Result("lite0", "photographs", (1, 8, 32), list(rows), {"onnx, 2 × 1": [150.0, 160.0, 10.0]})


def test_targets_are_of_medians_and_of_sound_rows() -> None:
    rows = [
        row("Flambeau", 120.0, p50=4.0, p99=9.0, mib=50),
        row("mosec", 50.0),
        row("liar", 1000.0, p50=0.1, wrong=1),
        Row("absent", "", failure="it did not start"),
    ]
    verdicts = judge({"lite0": result(*rows)})
    ratios = {(each.what, each.than): (each.ratio, each.met) for each in verdicts}
    assert ratios["photographs, 8 clients, requests/s", "best peer: mosec"] == (pytest.approx(2.4), True)
    assert ratios["photographs, 8 clients, images/s", "the limit"] == (pytest.approx(0.8), False)
    assert ratios["photographs, 1 client, p50", "best peer: mosec"] == (pytest.approx(0.4), False)
    assert ratios["photographs, memory idle", "best peer: mosec"] == (pytest.approx(0.5), True)
    assert ratios["photographs, 8 clients, p99", "its p50"] == (pytest.approx(2.25), False)
    assert {than for _, than in ratios} == {"best peer: mosec", "the limit", "its p50"}


def test_numbers_are_judged_against_the_best_of_each_peers_configurations() -> None:
    rows = [
        row("Flambeau", 120.0),
        row("Flambeau two fronts", 170.0),
        row("mosec batches of 16", 50.0),
        row("mosec batches of 64 twice", 100.0),
        row("LitServe", 60.0),
    ]
    tiny = Result("tiny", "numbers", (1, 8, 32, 128), rows)
    found = {(each.what, each.than): (round(each.ratio, 2), each.met) for each in judge({"tiny": tiny})}
    best = "mosec batches of 64 twice"
    assert found["numbers, 1 client, requests/s", best] == (1.2, False)  # of 8
    assert found["numbers, 128 clients, requests/s", best] == (1.2, True)
    assert found["numbers, two fronts, 32 clients, requests/s", best] == (1.7, True)
    assert found["numbers, 32 clients, requests/s", "best peer: LitServe"] == (2.0, True)  # and not our two fronts


def test_a_peer_that_answered_nothing_does_not_cost_the_run_its_report() -> None:
    found = judge({"lite0": result(row("Flambeau", 50.0), row("mosec", 0.0))})
    assert found[0].ratio == math.inf
    assert json.loads(report.json_line(report.Report("", {}, {}, [], found)))["verdicts"][0]["ratio"] is None


def test_without_us_or_without_peers_nothing_is_judged() -> None:
    assert judge({"lite0": result(row("mosec", 50.0))}) == []
    assert judge({"lite0": result(row("Flambeau", 50.0))}) == []


def test_only_what_stands_between_the_marks_is_replaced(tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    lines = [row("Flambeau", 120.0), row("liar", 9.0, wrong=1), Row("absent", "", failure="no | java")]
    made = report.Report("make bench", {"cores": "2"}, {"torch": "2"}, [result(*lines)], [])
    report.write(made, document)
    report.write(made, document)
    text = document.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text
    assert text.count("## Photographs") == 1
    assert "120 · 10 · 15 |" in text
    assert "(3 wrong)" in text
    assert "* absent: no \\| java" in text
    assert json.loads(report.json_line(made))["results"][0]["rows"][0]["turns"][0]["windows"][0]["clients"] == 1


def test_a_document_without_marks_is_left_alone(tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text("mine\n")
    with pytest.raises(ValueError, match="lost its marks"):
        report.write(report.Report("", {}, {}, [], []), document)
    assert document.read_text() == "mine\n"


def test_peers_are_named_by_their_first_words() -> None:
    assert _chosen("MOSEC,gunicorn tuned", PEERS, None, "--peers") == [
        "gunicorn tuned", "mosec", "mosec batches of 16", "mosec batches of 16 twice", "mosec batches of 64",
        "mosec batches of 64 twice",
    ]  # fmt: skip
    assert _chosen("", PEERS, None, "--peers") == list(PEERS)
    with pytest.raises(click.UsageError, match="triton is none of"):
        _chosen("mosec,triton", PEERS, None, "--peers")


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_compiler
def test_a_quick_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--no-docs"],
        cwd=ROOT, capture_output=True, text=True, timeout=880, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout.splitlines()[-1])
    assert [each["name"] for each in made["results"]] == ["lite0", "tiny"]
    for each in made["results"]:
        rows = {found["peer"]: found for found in each["rows"]}
        for peer in ("Flambeau", "gunicorn tuned"):
            assert rows[peer]["failure"] == ""
            windows = rows[peer]["turns"][0]["windows"]
            assert [window["clients"] for window in windows] == each["clients"]
            assert all(window["good"] and not window["wrong_text"] for window in windows)
