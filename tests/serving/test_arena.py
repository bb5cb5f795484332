"""Payloads in the memory that a front and its worker share: what the worker reads is what was sent, and nothing stays.

Every worker is a real process. I5 is looked at around every test.
"""

import asyncio
import gc
import os
import random
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flambeau.runners import arena
from flambeau.runners.base import ReplicaSpec, WorkerLostError
from flambeau.runners.worker_process import OomKills, WorkerProcess
from flambeau.settings.service import Settings
from tests.support.fleet import Fleet, echo, make_bundle, nothing_left, run

NAME = "flambeau-payloads"
SIZES = (40_000, 602_112, 3_000_000, arena.SIZE + 1)
"""Bytes: of one piece, of a tensor, of several pieces, and of more than there is room for."""

WATCHES = """
    def cut(self, do, filler):
        found = []
        for each in os.listdir("/proc/self/fd"):
            path = "/proc/self/fd/" + each
            if os.path.lexists(path) and "flambeau-payloads" in os.readlink(path):
                for size in (0, 4096, 1 << 30):
                    try:
                        os.ftruncate(int(each), size)
                        found.append("cut")
                    except PermissionError:
                        found.append("sealed")
        return found
"""


@pytest.fixture(autouse=True)
def _i5() -> Iterator[None]:
    before = mapped()
    yield from nothing_left()
    assert mapped() == before


@pytest.fixture
def spec(tmp_path: Path) -> ReplicaSpec:
    made = make_bundle(tmp_path)
    with (tmp_path / "model.py").open("a") as file:
        file.write(WATCHES)
    return made


def mapped() -> int:
    """How many arenas this process, which is the front, has in its memory."""
    return Path("/proc/self/maps").read_text().count(NAME)


def text(seed: int, size: int) -> str:
    return random.Random(seed).randbytes(size // 2).hex()


@pytest.mark.long
def test_a_worker_reads_each_batch_as_it_was_sent(spec: ReplicaSpec) -> None:
    async def talk() -> None:
        async with Fleet(spec) as fleet:
            for turn, size in enumerate((*SIZES, *reversed(SIZES))):
                sent = [text(turn, size), text(-turn, 50), text(100 + turn, size // 3)]
                assert await fleet.ask(*map(echo, sent)) == sent
                assert await fleet.ask(echo(turn)) == [turn]

    run(talk())


def test_a_batch_outlives_its_worker_and_the_arena_does_not_f01(spec: ReplicaSpec) -> None:
    """Killed while it computes, and while its arena is filled in several turns of the loop."""

    async def talk() -> None:
        async with Fleet(spec, replicas=2) as fleet:
            before = mapped()
            sent = [text(seed, 2_500_000) for seed in range(3)]
            for name in ("computing", None):
                pid = await fleet.pid()
                slot = await fleet.ask_later(name) if name else asyncio.create_task(fleet.ask(*map(echo, sent)))
                await asyncio.sleep(0)
                os.kill(pid, signal.SIGKILL)
                with pytest.raises(WorkerLostError):
                    await slot
                assert await fleet.ask(*map(echo, sent)) == sent
                await fleet.until(lambda: fleet.runner.counts().warm == 2)
            assert mapped() == before

    run(talk())


def test_a_worker_cannot_cut_off_the_memory_that_the_front_writes_to_t14(spec: ReplicaSpec) -> None:
    async def talk() -> None:
        async with Fleet(spec) as fleet:
            assert await fleet.ask({"do": "cut", "filler": text(1, 50_000)}) == [["sealed"] * 3]
            assert await fleet.ask(echo(text(2, 602_112))) == [text(2, 602_112)]

    run(talk())


def test_where_no_file_may_grow_to_an_arenas_size_payloads_take_the_socket_p2(spec: ReplicaSpec) -> None:
    """As under `ulimit -f`, which systemd's LimitFSIZE= sets, too."""

    async def talk() -> None:
        async with Fleet(spec) as fleet:
            assert mapped() == before
            sent = [text(turn, size) for turn, size in enumerate(SIZES)]
            assert await fleet.ask(*map(echo, sent)) == sent

    before = mapped()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (arena.SIZE - 1, hard))
    try:
        run(talk())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.long
def test_a_worker_that_cannot_start_for_want_of_files_leaves_none_open(spec: ReplicaSpec) -> None:
    """Else each further try takes another one, and what was a moment's want becomes a lasting one."""

    def files() -> set[str]:
        gc.collect()
        return {each for each in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{each}")}

    def left(before: set[str]) -> set[str]:
        """Those that stay open; a thread of another test may have one for a moment, or have closed one."""
        found = files() - before
        for _ in range(20):
            if found:
                time.sleep(0.05)
                found &= files()
        return found

    async def talk() -> None:
        settings, kills = Settings(), OomKills()
        before, arenas = files(), mapped()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        gaps = max(map(int, before)) + 1 - len(before)
        held = [os.open("/dev/null", os.O_RDONLY) for _ in range(gaps)]
        before = files()
        refused = 0
        while True:
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) + refused, hard))
            try:
                worker = WorkerProcess(spec, settings, kills, generation=1)
                break
            except OSError:
                refused += 1
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert (left(before), mapped()) == (set(), arenas), refused
        assert refused > 4
        await worker.end()
        assert (left(before), mapped()) == (set(), arenas)
        for each in held:
            os.close(each)

    run(talk())
