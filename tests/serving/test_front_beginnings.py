"""Forked fronts that go wrong: SIGCHLD is ignored, a front fails, the system has no process left."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="fronts are forked on Linux only")


def run(code: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )


SIGCHLD_IGNORED = """
import signal
from flambeau.fronts import beginnings

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
one = beginnings.forked([], lambda control, arrivals: control.recv(1))
one.process.send_signal(signal.SIGKILL)
print(one.process.wait())
one.process.send_signal(signal.SIGKILL)
"""


def test_the_end_of_a_front_is_noticed_where_the_kernel_reaps_children() -> None:
    """As with `env --ignore-signal=CHLD`; its code is unknown then."""
    done = run(SIGCHLD_IGNORED)
    assert (done.stdout, done.stderr, done.returncode) == ("0\n", "", 0)


FAULTY = """
import errno, itertools, os, sys
from flambeau.cli import main
from flambeau.fronts import front

def failing(self):
    raise RuntimeError("the front is at fault")

def fork(*, real=os.fork, number=itertools.count(1)):
    if next(number) == 2:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return real()

if sys.argv.pop(1) == "front":
    front.DealtFront.serve = failing
else:
    os.fork = fork
main()
"""


def faulty(what: str, obedient: Path) -> tuple[int, str, list[dict[str, str]]]:
    """Start a service with that fault: its exit code, its last event, and all events."""
    done = run(
        FAULTY, what, "serve", obedient, "--allow-code", "--fronts", 2, "--replicas", 2, "--port", 0,
        "--log-format", "json",
    )  # fmt: skip
    events = [json.loads(line) for line in done.stderr.splitlines()]
    return done.returncode, events[-1]["event"], events


def test_why_a_front_failed_is_in_the_log_of_machines(obedient: Path) -> None:
    code, last, events = faulty("front", obedient)
    assert code == 1
    assert "ended with exit code 1 before it was ready" in last
    assert any("RuntimeError: the front is at fault" in each.get("traceback", "") for each in events)


def test_a_system_that_has_no_process_left_is_named_with_the_remedy(obedient: Path) -> None:
    code, last, _ = faulty("fork", obedient)
    assert code == 1
    assert last == (
        "cannot start front 2 of 2 (Resource temporarily unavailable): allow this user more processes "
        "and memory, or ask for fewer --fronts"
    )
