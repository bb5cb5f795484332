"""How worker processes begin and end: starts that fail, places that are refilled, and closing.

I5 is looked at around every test.
"""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flambeau.bundle import storage
from flambeau.errors import EngineError, SourceError
from flambeau.runners import processes, wire
from flambeau.runners.base import ReplicaSpec, RunnerState
from flambeau.runners.processes import ProcessesRunner
from flambeau.runners.worker_process import WorkerProcess
from flambeau.serving.service import Service
from flambeau.settings.service import Settings
from tests.support.fleet import Fleet, children, echo, ended, eventually, loss, make_bundle, run, wait_for

pytestmark = pytest.mark.usefixtures("nothing_left")


def test_starting_says_why_a_model_cannot_be_loaded_f26(spec: ReplicaSpec, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    runner = ProcessesRunner(spec, Settings(), replicas=2)
    with pytest.raises(SourceError, match=r"model.py:Commands cannot be loaded: FileNotFoundError: weights.bin is not"):
        run(runner.start(lambda: None))  # type: ignore[arg-type]


def test_the_last_words_of_a_worker_are_heard_even_when_the_front_is_late_f26(
    spec: ReplicaSpec, tmp_path: Path
) -> None:
    """The loop learns of the death and of the reason at the same time."""
    (tmp_path / "broken").touch()

    async def talk() -> None:
        starting = asyncio.create_task(ProcessesRunner(spec, Settings(), replicas=1).start(lambda: None))
        await eventually(lambda: len(children()) == 1)
        wait_for(lambda: all(map(ended, children())))  # and the loop stands still
        with pytest.raises(SourceError, match="FileNotFoundError"):
            await starting

    run(talk())


def test_a_service_that_cannot_start_all_its_models_leaves_none_p15(spec: ReplicaSpec, tmp_path: Path) -> None:
    """The first one is warm when the second one fails."""
    first = storage.read(Path(spec.bundle))
    (tmp_path / "second").mkdir()
    make_bundle(tmp_path / "second")
    (tmp_path / "second" / "broken").touch()
    second = msgspec.structs.replace(storage.read(tmp_path / "second").manifest, name="second")
    storage.write_manifest(tmp_path / "second", second)

    async def talk() -> None:
        settings = Settings(allow_code=True, replicas=1)
        service = Service([first, storage.read(tmp_path / "second")], settings)
        with pytest.raises(SourceError, match="FileNotFoundError"):
            await service.start()
        assert children() == []

    run(talk())


def test_a_model_that_is_too_slow_to_load_is_given_up_f26(spec: ReplicaSpec, tmp_path: Path) -> None:
    (tmp_path / "slow").touch()
    runner = ProcessesRunner(spec, Settings(startup_timeout=0.5), replicas=1)
    with pytest.raises(EngineError, match="not warm within --startup-timeout"):
        run(runner.start(lambda: None))  # type: ignore[arg-type]


@pytest.mark.long
def test_a_model_that_only_crashes_has_failed_until_it_is_mended_f26(spec: ReplicaSpec) -> None:
    async def talk() -> None:
        async with Fleet(spec) as fleet:
            seen: list[RunnerState] = []
            fleet.runner._on_change = lambda: (seen.append(fleet.runner.state()), fleet.changed.set())  # type: ignore[assignment,func-returns-value]
            (fleet.folder / "broken").touch()
            assert await loss(asyncio.create_task(fleet.ask({"do": "exit"}))) == "crashed"
            await fleet.until(lambda: fleet.runner.state() is RunnerState.FAILED)
            # the crash, the slot's own word of it, and then one change for each start that failed
            assert seen.count(RunnerState.RESTARTING) in (4, 5)
            assert seen[-1] is RunnerState.FAILED
            assert fleet.runner.reserve() is None
            (fleet.folder / "broken").unlink()
            assert await fleet.ask(echo(1)) == [1]
            assert fleet.runner.state() is RunnerState.READY

    run(talk())


@pytest.mark.long
@pytest.mark.parametrize("failure", [RuntimeError("can't start new thread"), MemoryError(), KeyError("no such place")])
def test_a_place_is_refilled_whatever_goes_wrong_over_it_p13(
    spec: ReplicaSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failure: Exception
) -> None:
    failures = [failure] * 2

    class Failing(WorkerProcess):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            if failures and options["generation"] > 1:
                raise failures.pop()
            super().__init__(*arguments, **options)

    async def talk() -> None:
        monkeypatch.setattr(processes, "WorkerProcess", Failing)
        monkeypatch.setattr(processes, "_PAUSE_AFTER_FAILURE", 0.01)
        async with Fleet(spec) as fleet:
            for turn in range(2):  # and it is kept from then on
                os.kill(await fleet.pid(), signal.SIGKILL)
                await fleet.until(lambda: fleet.runner.state() is RunnerState.RESTARTING)
                assert await fleet.ask(echo(turn)) == [turn]

    run(talk())
    assert not failures
    assert caplog.text.count("a worker's place cannot be kept") == 2


def test_a_worker_that_cannot_be_listened_to_is_replaced_p13(
    spec: ReplicaSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its answer was lost by a failure of the front's own, which is nobody's guilt."""
    failures = [MemoryError()]

    def unpack(body: Any) -> Any:
        if failures:
            raise failures.pop()
        return unpack_outcomes(body)

    async def talk() -> None:
        async with Fleet(spec) as fleet:
            monkeypatch.setattr(wire, "unpack_outcomes", unpack)
            assert await loss(asyncio.create_task(fleet.ask(echo(1)))) == "killed"
            assert await fleet.ask(echo(2)) == [2]

    unpack_outcomes = wire.unpack_outcomes
    run(talk())
    assert "a worker cannot be listened to" in caplog.text


def test_closing_lets_a_running_batch_finish(spec: ReplicaSpec) -> None:
    async def talk() -> None:
        async with Fleet(spec) as fleet:
            answer = await fleet.ask_later("go")
            closing = asyncio.create_task(fleet.runner.close(timeout=20))
            await asyncio.sleep(0)
            assert fleet.runner.state() is RunnerState.FAILED
            (fleet.folder / "go").touch()
            assert await answer == ["go"]
            await closing
            assert children() == []

    run(talk())


def test_closing_hands_back_what_does_not_finish(spec: ReplicaSpec) -> None:
    async def talk() -> None:
        async with Fleet(spec, replicas=2) as fleet:
            answers = [await fleet.ask_later("never"), await fleet.ask_later("neither")]
            await fleet.runner.close(timeout=0.05)
            assert [await loss(answer) for answer in answers] == ["killed", "killed"]
            assert children() == []
            assert fleet.runner.reserve() is None

    run(talk())


def test_closing_while_a_worker_is_being_replaced_leaves_nothing(spec: ReplicaSpec) -> None:
    async def talk() -> None:
        async with Fleet(spec) as fleet:
            before = await fleet.pid()
            (fleet.folder / "slow").touch()
            os.kill(before, signal.SIGKILL)
            await eventually(lambda: bool(children()) and before not in children())
            await fleet.runner.close(timeout=5)
            assert children() == []

    run(talk())


def test_a_start_that_is_given_up_leaves_nothing(spec: ReplicaSpec, tmp_path: Path) -> None:
    (tmp_path / "slow").touch()

    async def talk() -> None:
        starting = asyncio.create_task(ProcessesRunner(spec, Settings(), replicas=2).start(lambda: None))
        await eventually(lambda: len(children()) == 2)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert children() == []

    run(talk())
