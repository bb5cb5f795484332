"""T-14: a worker that was taken over by its input is killed at its first wrong word, and harms nobody but itself.

Its batch is handed back, the next worker answers, and I5 is looked at around every test.
"""

import asyncio
import resource
from pathlib import Path

import pytest

from flambeau.errors import EngineError
from flambeau.runners.base import ReplicaSpec, WorkerLostError
from flambeau.runners.processes import ProcessesRunner
from flambeau.settings.service import Settings
from tests.support.fleet import Fleet, echo, fake_worker, run

READY = "g = order.generation\nsock.sendall(pack_ready(g, ReplicaInfo('cpu')))\nb = batch()\n"
STAY = "\ntime.sleep(600)"
FINE = "[Outcome(Value(b'\"fake\"'))]"


pytestmark = pytest.mark.usefixtures("nothing_left")


def pretend(spec: ReplicaSpec, patch: pytest.MonkeyPatch, body: str) -> None:
    """Let the first worker be a fake one."""
    fake = fake_worker(Path(spec.bundle), body)
    patch.setattr("flambeau.system.process.interpreter", lambda: fake)


@pytest.mark.long
@pytest.mark.parametrize(
    "evil",
    [
        "sock.sendall(os.urandom(1000))",
        "sock.sendall(bytes(24))",
        "sock.sendall(pack_header(Header(FrameKind.ANSWER, g, b.batch, 2**32 - 1, 0)))",
        "sock.sendall(pack_header(Header(FrameKind.ANSWER, g, b.batch, 0, 2**32 - 1)))",
        "sock.sendall(pack_header(Header(FrameKind.ANSWER, g, b.batch, 1000, 0)) + os.urandom(1000))",
        "sock.sendall(pack_header(Header(FrameKind.BATCH, g, b.batch, 1, 0)) + bytes(1))",
        f"sock.sendall(pack_outcomes(g, b.batch, {FINE} * 3))",
        "sock.sendall(pack_outcomes(g, b.batch, []))",
        f"sock.sendall(pack_outcomes(g, b.batch, {FINE})[:-1]); sock.shutdown(socket.SHUT_RDWR)",
        "sock.close()",
    ],
)
def test_a_worker_that_speaks_nonsense_is_killed_and_replaced_t14(
    spec: ReplicaSpec, monkeypatch: pytest.MonkeyPatch, evil: str
) -> None:
    pretend(spec, monkeypatch, READY + evil + STAY)

    async def talk() -> None:
        async with Fleet(spec) as fleet:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            with pytest.raises(WorkerLostError, match="crashed"):
                await fleet.ask(echo(1))
            assert await fleet.ask(echo(2)) == [2]
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB

    run(talk())


@pytest.mark.parametrize(
    "stray",
    [
        f"sock.sendall(pack_outcomes(g + 1, b.batch, {FINE}))",
        f"sock.sendall(pack_outcomes(g - 1, b.batch, {FINE}))",
        f"sock.sendall(pack_outcomes(g, b.batch + 1, {FINE}))",
        f"sock.sendall(pack_outcomes(g, 0, {FINE}))",
        "sock.sendall(pack_ready(g, ReplicaInfo('again')))",
        "sock.sendall(pack_failed(g, Failed('EngineError', 'too late')))",
    ],
)
def test_a_frame_that_matches_no_batch_is_dropped_t16(
    spec: ReplicaSpec, monkeypatch: pytest.MonkeyPatch, stray: str
) -> None:
    """The right answer comes after it, and is the one that counts."""
    answer = "sock.sendall(pack_outcomes(g, b.batch, [Outcome(Value(b'\"right\"'))]))"
    pretend(spec, monkeypatch, f"{READY}{stray}\n{answer}{STAY}")

    async def talk() -> None:
        async with Fleet(spec) as fleet:
            assert await fleet.ask(echo(1)) == ["right"]

    run(talk())


def test_an_answer_that_comes_twice_is_taken_once_t16(spec: ReplicaSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next batch, of another id, does not get the last one's answer."""
    twice = f"sock.sendall(pack_outcomes(g, b.batch, {FINE}) * 2)\nc = batch()\n"
    answer = "sock.sendall(pack_outcomes(g, c.batch, [Outcome(Value(b'\"next\"'))]))"
    pretend(spec, monkeypatch, READY + twice + answer + STAY)

    async def talk() -> None:
        async with Fleet(spec) as fleet:
            assert [await fleet.ask(echo(1)), await fleet.ask(echo(2))] == [["fake"], ["next"]]

    run(talk())


def test_an_answer_after_the_time_was_over_reaches_nobody_f03(
    spec: ReplicaSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = f"signal.signal(signal.SIGABRT, lambda *_: sock.sendall(pack_outcomes(g, b.batch, {FINE})))"
    pretend(spec, monkeypatch, READY + late + STAY)

    async def talk() -> None:
        async with Fleet(spec, compute_timeout=1.0) as fleet:
            with pytest.raises(WorkerLostError, match="hung"):
                await fleet.ask(echo(1))
            assert await fleet.ask(echo(2)) == [2]

    run(talk())


@pytest.mark.long
@pytest.mark.parametrize(
    ("first", "why"),
    [
        ("sock.sendall(os.urandom(1000))", "its worker crashed"),
        ("sock.close()", "its worker crashed"),
        ("sys.exit(0)", "its worker crashed"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "its worker killed"),
        # names from the same module that are no classes, or no errors of an operator's
        ("sock.sendall(pack_failed(order.generation, Failed('Code', 'evil')))", "^evil$"),
        ("sock.sendall(pack_failed(order.generation, Failed('RequestError', 'evil')))", "^evil$"),
        ("sock.sendall(pack_failed(order.generation, Failed('__doc__', 'evil')))", "^evil$"),
    ],
)
def test_a_worker_that_does_not_begin_as_one_cannot_start_f26(
    spec: ReplicaSpec, monkeypatch: pytest.MonkeyPatch, first: str, why: str
) -> None:
    pretend(spec, monkeypatch, first + STAY)

    async def talk() -> None:
        async with asyncio.timeout(60):
            await ProcessesRunner(spec, Settings(), replicas=1).start(lambda: None)

    with pytest.raises(EngineError, match=why):
        run(talk())
