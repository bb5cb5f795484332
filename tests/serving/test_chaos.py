"""The chaos harness in short: the main faults in a few seconds each, and the proof that the harness can fail.

`make chaos` plays all of them for long.
"""

import json
import signal
import subprocess
import sys

import pytest

from chaos import proc
from chaos.faults import chosen
from tests.support import ROOT
from tests.support.fleet import wait_for
from tests.support.server import STARTUP_SECONDS

SHORT = ("SELF-1", "SELF-2")
LONG = (
    "F-01", "F-01/1", "F-02", "F-03", "F-04", "F-05", "F-06", "F-11", "F-12", "F-13", "F-14",
    "F-18", "F-18/kills", "F-18/faulty", "F-18/stop", "F-19", "F-19/grpc", "F-26", "F-27",
    "F-46", "F-50", "A2", "A2/pictures", "A3", "A4", "A11", "A12", "A21", "batching", "headline/v2", "headline/grpc",
    "headline/detector",
)  # fmt: skip
SECONDS = 240  # on a busy machine; pytest ends a test after 300


def play(*arguments: str) -> "dict[str, dict[str, str]]":
    """Run the harness and return its reports by id."""
    with subprocess.Popen(
        [sys.executable, "-m", "chaos", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            output, errors = process.communicate(timeout=SECONDS)
        finally:
            process.terminate()  # it ends its server, which `kill` would leave running
    *_, line, last = output.splitlines() or ("", errors)
    assert last.endswith(" failed"), errors
    return {report["id"]: report for report in json.loads(line)}


@pytest.fixture(scope="module")
def reports() -> "dict[str, dict[str, str]]":
    """The harness tried on itself: it fails where a server loses requests, and where it answers wrongly."""
    return play("--seconds", "2.5", "--clients", "16", "--only", ",".join(SHORT))


@pytest.mark.slow  # it tries the harness, and no promise of the server
@pytest.mark.parametrize("fault", SHORT)
def test_in_short(reports: "dict[str, dict[str, str]]", fault: str) -> None:
    assert reports[fault]["verdict"] == "passed", reports[fault]


@pytest.mark.slow
@pytest.mark.parametrize("fault", LONG)
def test_the_rest(fault: str) -> None:
    report = play("--quick", "--only", fault)[fault]
    assert report["verdict"] == "passed", report


@pytest.mark.slow
def test_a_fault_shorter_than_the_start_is_played_once() -> None:
    report = play("--only", "F-03", "--seconds", "0.1", "--clients", "4")["F-03"]
    assert report["verdict"] == "passed", report


def test_a_harness_that_is_ended_ends_its_server() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "chaos", "--only", "F-01", "--seconds", "250"], cwd=ROOT, stderr=subprocess.PIPE
    ) as process:
        wait_for(lambda: proc.children(process.pid), seconds=STARTUP_SECONDS)
        (server,) = proc.children(process.pid)
        process.terminate()
        process.communicate()
        assert process.returncode == 128 + signal.SIGTERM
        assert not proc.alive(server)


def test_an_unknown_fault_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "chaos", "--only", "F-99"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "F-99" in done.stderr


def test_a_bare_name_is_all_faults_that_begin_with_it() -> None:
    assert [fault.id for fault in chosen("handler, F-19")] == [
        "handler/crash", "handler/hang", "handler/leak", "handler/print", "handler/fork", "F-19", "F-19/fronts",
        "F-19/grpc",
    ]  # fmt: skip
