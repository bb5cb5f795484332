"""Worker processes: whatever becomes of one, its batch is handed back, another takes its place, and nothing is left.

Every worker here is a real process with a real socket. I5 is looked at around every test.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flambeau.bundle import storage
from flambeau.errors import EngineError, SourceError
from flambeau.runners import processes, wire
from flambeau.runners.base import ReplicaSpec, RunnerState, WorkerLostError
from flambeau.runners.processes import ProcessesRunner
from flambeau.runners.worker_process import WorkerProcess, worker_environment
from flambeau.serving.service import Service
from flambeau.settings.service import Settings
from tests.support import ROOT
from tests.support.fleet import Fleet, children, echo, ended, eventually, make_bundle, nothing_left, run, wait_for


@pytest.fixture(autouse=True)
def _i5() -> Iterator[None]:
    yield from nothing_left()


@pytest.fixture
def spec(tmp_path: Path) -> ReplicaSpec:
    return make_bundle(tmp_path)


async def loss(answer: "asyncio.Task[list[object]]") -> str:
    """How the worker of a batch was lost."""
    with pytest.raises(WorkerLostError) as found:
        await answer
    return found.value.how


def test_a_batch_is_answered_item_by_item_and_a_slot_is_a_worker(spec: ReplicaSpec) -> None:
    async def talk() -> None:
        async with Fleet(spec, replicas=2) as fleet:
            assert fleet.device == "cpu"
            assert fleet.runner.state() is RunnerState.READY
            first, second = fleet.runner.reserve(), fleet.runner.reserve(alone=True)
            assert first is not None
            assert second is not None
            assert fleet.runner.reserve() is None
            assert len(await first([])) == 0
            assert len(await second([])) == 0
            assert await fleet.ask(echo(1), {"do": "nothing"}, echo([None, "x"])) == [1, "model_error", [None, "x"]]
            large = "x" * 5_000_000  # many times what the socket holds
            assert await fleet.ask(echo(large)) == [large]

    run(talk())


def test_a_worker_killed_in_the_middle_of_a_batch_is_noticed_at_once_and_replaced_f01(spec: ReplicaSpec) -> None:
    async def talk() -> None:
        noticed = []
        async with Fleet(spec) as fleet:
            for turn in range(3):
                pid = await fleet.pid()
                answer = await fleet.ask_later(f"never{turn}")
                started = time.monotonic()
                os.kill(pid, signal.SIGKILL)
                assert await loss(answer) == "killed"
                noticed.append(time.monotonic() - started)
                assert fleet.runner.state() is RunnerState.RESTARTING
                assert fleet.runner.reserve() is None
                assert await fleet.ask(echo(turn)) == [turn]
        assert min(noticed) < 5  # it is a millisecond; the machine may be busy, and --compute-timeout is far away

    run(talk())


def test_all_workers_killed_together_come_back_f02(spec: ReplicaSpec) -> None:
    async def talk() -> None:
        async with Fleet(spec, replicas=2) as fleet:
            before = children()
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            await fleet.until(lambda: fleet.runner.state() is RunnerState.RESTARTING)
            await fleet.until(lambda: len(children()) == 2 and fleet.runner.state() is RunnerState.READY)
            assert await asyncio.gather(fleet.ask(echo(1)), fleet.ask(echo(2))) == [[1], [2]]
            assert not set(children()) & set(before)

    run(talk())


@pytest.mark.parametrize("command", ["segv", "abort", "exit"])
def test_a_worker_that_dies_of_itself_has_crashed_f05(spec: ReplicaSpec, command: str) -> None:
    async def talk() -> None:
        async with Fleet(spec) as fleet:
            assert await loss(asyncio.create_task(fleet.ask({"do": command}))) == "crashed"
            assert await fleet.ask(echo(1)) == [1]

    run(talk())


def test_a_worker_that_hangs_is_lost_when_its_time_is_over_and_replaced_f03(spec: ReplicaSpec) -> None:
    async def talk() -> None:
        async with Fleet(spec, compute_timeout=1.0) as fleet:
            pid = await fleet.pid()
            started = time.monotonic()
            assert await loss(asyncio.create_task(fleet.ask({"do": "hang"}))) == "hung"
            assert 1.0 <= time.monotonic() - started < 60
            assert await fleet.ask(echo(1)) == [1]
            await eventually(lambda: ended(pid))

    run(talk())


@pytest.mark.parametrize("blocked", [1.5, 2.5])
def test_a_loop_that_stood_still_takes_no_worker_for_one_that_hangs_a3(spec: ReplicaSpec, blocked: float) -> None:
    """What blocks it is a step of the front's own, and the answer comes meanwhile, or soon after."""

    async def talk() -> None:
        async with Fleet(spec, compute_timeout=1.0) as fleet:
            pid = await fleet.pid()
            meanwhile = await fleet.ask_later("go")
            (fleet.folder / "go").touch()
            time.sleep(blocked)
            assert await meanwhile == ["go"]
            late = await fleet.ask_later("late")
            time.sleep(blocked)
            (fleet.folder / "late").touch()
            assert await late == ["late"]
            assert await fleet.pid() == pid

    run(talk())


def test_a_stopped_worker_is_killed_and_its_batch_not_guilty_f03(spec: ReplicaSpec) -> None:
    """SIGSTOP comes from outside, as a kill does: an innocent suspect that was alone there must not be condemned."""

    async def talk() -> None:
        async with Fleet(spec, compute_timeout=1.0) as fleet:
            pid = await fleet.pid()
            os.kill(pid, signal.SIGSTOP)
            assert await loss(asyncio.create_task(fleet.ask(echo(1)))) == "killed"
            assert await fleet.ask(echo(2)) == [2]
            await eventually(lambda: ended(pid))

    run(talk())


def test_an_idle_worker_that_crashes_makes_no_batch_guilty(spec: ReplicaSpec) -> None:
    """Between the death and the replacement, a slot that was reserved before is lost through nobody's fault."""

    async def talk() -> None:
        async with Fleet(spec) as fleet:
            pid = await fleet.pid()
            slot = fleet.runner.reserve()
            assert slot is not None
            os.kill(pid, signal.SIGSEGV)
            await fleet.until(lambda: fleet.runner.state() is RunnerState.RESTARTING)
            with pytest.raises(WorkerLostError, match="killed"):
                await slot([])

    run(talk())


def test_an_item_too_large_for_the_memory_fails_alone_f06(spec: ReplicaSpec) -> None:
    async def talk() -> None:
        async with Fleet(spec, max_worker_memory=3 << 30) as fleet:
            pid = await fleet.pid()
            batch = [echo(1), {"do": "big", "size": 4 << 30}, {"do": "big", "size": 1000}, echo(2)]
            assert await fleet.ask(*batch) == [1, "out_of_memory", 1000, 2]
            assert await fleet.pid() == pid

    run(talk())


def test_what_a_worker_is_and_sees_t31(spec: ReplicaSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """No secrets in its environment, no core files, no signals but the front's, no torch, and the kernel's first."""
    for name in ("SECRET_TOKEN", "AWS_ACCESS_KEY_ID", "PGPASSWORD", "NVIDIA_API_KEY", "TORCH_HUB_TOKEN", "COLOUR"):
        monkeypatch.setenv(name, "private")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    async def talk() -> None:
        async with Fleet(spec) as fleet:
            [about] = await fleet.ask({"do": "about"})
            assert isinstance(about, dict)
            assert "private" not in about["environment"].values()
            assert about["environment"]["OMP_WAIT_POLICY"] == "passive"
            assert about["environment"]["OMP_NUM_THREADS"] == "1"
            assert about["core"] == [0, 0]
            assert about["ignored"] == [True, True]
            assert about["oom"] == 500
            assert not {"torch", "flask", "uvicorn"} & set(about["modules"])
            assert about["descriptors"] <= 5  # the three standard ones, the socket and the arena

    run(talk())
    assert worker_environment(3)["OMP_NUM_THREADS"] == "3"


def test_signals_for_the_front_do_not_end_a_worker_f19(spec: ReplicaSpec) -> None:
    async def talk() -> None:
        async with Fleet(spec) as fleet:
            pid = await fleet.pid()
            answer = await fleet.ask_later("go")
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGINT)
            (fleet.folder / "go").touch()
            assert await answer == ["go"]
            assert await fleet.pid() == pid

    run(talk())


PARENT = f"""
import asyncio, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from flambeau.serving.service import Service
from tests.support.fleet import Fleet, children, make_bundle

async def live():
    async with Fleet(make_bundle(Path(sys.argv[1])), replicas=2) as fleet:
        [about] = await fleet.ask(dict(do="about"))
        workers = children()
        left = [(await fleet.ask(dict(do=each)))[0] for each in ("start", "fork")]
        print(about["oom"], *workers, *left, flush=True)
        await asyncio.Event().wait()

asyncio.run(live())
"""


def start_parent(folder: Path, *before: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([*before, sys.executable, "-c", PARENT, str(folder)], stdout=subprocess.PIPE, text=True)


def test_workers_end_with_their_parent_and_so_does_what_their_code_has_started_f08(tmp_path: Path) -> None:
    with start_parent(tmp_path) as parent:
        assert parent.stdout is not None
        _, *started = map(int, parent.stdout.readline().split())
        assert len(started) == 4  # two workers, a command and a fork
        groups = {os.getpgid(pid) for pid in started}
        parent.kill()
    wait_for(lambda: all(map(ended, started)))
    wait_for(lambda: not any(map(_has_members, groups)))


def _has_members(group: int) -> bool:
    """Whether a process group has a process that is not a zombie."""
    stats = [_stat(file) for file in Path("/proc").glob("[0-9]*/stat")]
    return any(len(each) > 2 and each[2] == str(group) and each[0] not in "ZX" for each in stats)


def _stat(file: Path) -> list[str]:
    """Of a process its state, its parent and its group, and so on; nothing of one that has ended meanwhile."""
    try:
        return file.read_text().rpartition(")")[2].split()
    except OSError:
        return []


def test_workers_of_a_front_that_the_kernel_would_rather_kill_are_no_better_off(tmp_path: Path) -> None:
    """Kubernetes gives pods scores of up to 1000, which only root may lower."""
    with start_parent(tmp_path, "sh", "-c", 'echo 800 > /proc/self/oom_score_adj && exec "$0" "$@"') as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().split()[0] == "800"
        parent.kill()


CONTAINER = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc")


@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run([*CONTAINER, "true"], capture_output=True).returncode != 0,
    reason="no containers here",
)
def test_a_front_that_is_process_1_of_its_container_has_workers(tmp_path: Path) -> None:
    with start_parent(tmp_path, *CONTAINER) as parent:
        assert parent.stdout is not None
        first = parent.stdout.readline()
        parent.kill()
    assert len(first.split()) == 5


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
