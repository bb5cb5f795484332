"""Workers added to and taken from a running runner: no batch is lost, and none that answers is harmed."""

import asyncio
import os
import signal

import pytest

from flambeau.runners import losses
from flambeau.runners.base import ReplicaCounts, ReplicaSpec, RunnerState, WorkerLostError
from tests.support.fleet import Fleet, children, echo, eventually, run

pytestmark = pytest.mark.usefixtures("nothing_left")


def warm(fleet: Fleet, count: int) -> bool:
    counts = fleet.runner.counts()
    return (counts.replicas, counts.warm, counts.busy) == (count, count, 0)


def test_workers_are_added_beside_those_that_answer_and_the_last_ones_leave(spec: ReplicaSpec) -> None:
    async def talk() -> None:
        async with Fleet(spec) as fleet:
            first = children()
            (fleet.folder / "slow").touch()
            fleet.runner.scale(3)
            assert fleet.runner.counts() == ReplicaCounts(3, 1, 0)
            assert [each.state for each in fleet.runner.workers()] == ["idle", "starting", "starting"]
            assert await fleet.ask(echo(1)) == [1]  # meanwhile
            (fleet.folder / "slow").unlink()
            await fleet.until(lambda: warm(fleet, 3))
            answers = [await fleet.ask_later(name) for name in ("a", "b", "c")]  # all three are needed for that
            fleet.runner.scale(1)
            assert fleet.runner.counts() == ReplicaCounts(1, 1, 1)
            assert fleet.runner.reserve() is None
            assert len(children()) == 3
            for name in ("c", "b", "a"):
                (fleet.folder / name).touch()
            assert [await each for each in answers] == [["a"], ["b"], ["c"]]
            await eventually(lambda: children() == first)
            assert await fleet.ask(echo(2)) == [2]
            assert sum(fleet.runner.restarts().values()) == 0

    run(talk())


def test_a_worker_that_is_lost_while_it_leaves_hands_its_batch_back_and_gets_no_successor(spec: ReplicaSpec) -> None:
    async def talk() -> None:
        async with Fleet(spec, replicas=2) as fleet:
            kept = await fleet.pid()
            answers = [await fleet.ask_later(name) for name in ("kept", "never")]
            fleet.runner.scale(1)
            [leaving] = [pid for pid in children() if pid != kept]
            os.kill(leaving, signal.SIGKILL)
            with pytest.raises(WorkerLostError, match="killed"):
                await answers[1]
            (fleet.folder / "kept").touch()
            assert await answers[0] == ["kept"]
            await eventually(lambda: children() == [kept])
            assert fleet.runner.restarts()["killed"] == 1
            assert fleet.runner.state() is RunnerState.READY

    run(talk())


@pytest.mark.long
def test_a_place_that_closes_while_its_worker_starts_or_is_replaced_leaves_nothing(spec: ReplicaSpec) -> None:
    async def talk() -> None:
        async with Fleet(spec, replicas=2) as fleet:
            (fleet.folder / "slow").touch()
            for turn in range(3):
                fleet.runner.scale(4)
                if turn:
                    await eventually(lambda: len(children()) == 4)
                fleet.runner.scale(2)
                await eventually(lambda: len(children()) == 2)
            kept = await fleet.pid()
            for pid in children():
                if pid != kept:
                    os.kill(pid, signal.SIGKILL)
            await fleet.until(lambda: fleet.runner.counts() == ReplicaCounts(2, 1, 0))
            fleet.runner.scale(1)
            await eventually(lambda: children() == [kept])
            (fleet.folder / "slow").unlink()
            assert await fleet.ask(echo(1)) == [1]

    run(talk())


@pytest.mark.long
def test_a_worker_that_cannot_start_is_given_up_and_harms_none_that_answers(
    spec: ReplicaSpec, caplog: pytest.LogCaptureFixture
) -> None:
    async def talk() -> None:
        async with Fleet(spec) as fleet:
            (fleet.folder / "broken").touch()
            for _ in range(losses._CRASHES_TO_FAIL + 1):
                fleet.runner.scale(3)
                await fleet.until(lambda: warm(fleet, 1))
                assert await fleet.ask(echo(1)) == [1]
            assert fleet.runner.state() is RunnerState.READY
            (fleet.folder / "broken").unlink()
            fleet.runner.scale(2)
            await fleet.until(lambda: warm(fleet, 2))
            # whoever has been warm is replaced for ever
            (fleet.folder / "broken").touch()
            os.kill(children()[-1], signal.SIGKILL)
            await fleet.until(lambda: fleet.runner.restarts()["failed_start"] > 2 * (losses._CRASHES_TO_FAIL + 1))
            (fleet.folder / "broken").unlink()
            await fleet.until(lambda: warm(fleet, 2))

    run(talk())
    assert "a further worker cannot start" in caplog.text


@pytest.mark.long
def test_workers_killed_while_their_number_changes_are_replaced_and_no_batch_is_lost(spec: ReplicaSpec) -> None:
    async def talk() -> None:
        async with Fleet(spec, replicas=2) as fleet:

            async def ask(number: int) -> None:
                for _ in range(20):
                    try:
                        assert await fleet.ask(echo(number)) == [number]
                        return
                    except WorkerLostError as loss:
                        assert loss.how == "killed"  # noqa: PT017 (a killed batch is asked again, as the queue does)
                raise AssertionError("never answered")

            asked = [asyncio.create_task(ask(number)) for number in range(200)]
            for turn in range(4):
                fleet.runner.scale(3 if turn % 2 else 1)
                if found := children():
                    os.kill(found[turn % len(found)], signal.SIGKILL)
                await asyncio.sleep(0.1)
            await asyncio.gather(*asked)
            fleet.runner.scale(2)
            await fleet.until(lambda: warm(fleet, 2))
            await eventually(lambda: len(children()) == 2)

    run(talk())


def test_the_number_to_start_with_can_be_said_and_changed_while_it_starts(spec: ReplicaSpec) -> None:
    async def talk() -> None:
        fleet = Fleet(spec, replicas=3)
        fleet.runner.scale(2)
        assert fleet.runner.counts() == ReplicaCounts(2, 0, 0)
        starting = asyncio.create_task(fleet.__aenter__())
        await eventually(lambda: len(children()) == 2)
        fleet.runner.scale(1)
        await starting
        try:
            assert fleet.runner.counts() == ReplicaCounts(1, 1, 0)
            await eventually(lambda: len(children()) == 1)
        finally:
            await fleet.__aexit__(None, None, None)

    run(talk())


def test_closing_lets_a_worker_that_leaves_finish_its_batch(spec: ReplicaSpec) -> None:
    async def talk() -> None:
        async with Fleet(spec, replicas=2) as fleet:
            answers = [await fleet.ask_later(name) for name in ("a", "b")]
            fleet.runner.scale(1)
            closing = asyncio.create_task(fleet.runner.close(timeout=20))
            await asyncio.sleep(0)
            for name in ("a", "b"):
                (fleet.folder / name).touch()
            assert [await each for each in answers] == [["a"], ["b"]]
            await closing

    run(talk())
