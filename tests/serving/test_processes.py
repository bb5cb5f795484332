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
from pathlib import Path

import pytest

from flambeau.runners.base import ReplicaSpec, RunnerState, WorkerLostError
from flambeau.runners.worker_process import worker_environment
from tests.support import ROOT
from tests.support.fleet import Fleet, children, echo, ended, eventually, loss, run, wait_for

pytestmark = pytest.mark.usefixtures("nothing_left")


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


@pytest.mark.long
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


@pytest.mark.long
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
