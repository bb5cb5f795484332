"""The leak run: F-47.

Bodies of random size make a worker's memory swing by some 4 MiB around its mean (the allocator's, measured over 800,000
requests): the bar of 1 MiB for 100,000 requests means something when several 100,000 are measured, which takes minutes.
"""

import asyncio
import random
import time
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median

from chaos import proc
from chaos.client import Ask, echo, nonce
from chaos.run import Report, Run, Stage

_MIB = 1024 * 1024
_MOST_SLOPE = 1.0  # MiB for 100,000 requests, of each process
_SETTLE_SHARE = 0.4  # of the run, before the slope is measured: until then the allocator finds its size
_MOST_POINTS = 300
_ERROR = frozenset({(500, "model_error")})


def _mixed(rng: random.Random) -> Ask:
    """Mixed sizes, 5 % errors, 1 % disconnects."""
    draw = rng.random()
    if draw < 0.05:
        return Ask(nonce(rng), "error", expect=_ERROR)
    if draw < 0.06:
        return Ask(nonce(rng), abort_after=rng.uniform(0.0, 0.01))
    if draw < 0.5:
        return Ask(nonce(rng), more={"pad": "x" * int(2 ** rng.uniform(0, 17))})
    return echo(rng)


@dataclass(slots=True)
class _Samples:
    """The memory of one process over the number of requests."""

    requests: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)

    def extent(self) -> str:
        """The first and the last, in MiB."""
        return f"{self.bytes[0] / _MIB:.1f} to {self.bytes[-1] / _MIB:.1f}"

    def slope(self) -> float:
        """MiB for 100,000 requests: the median of all pairs' slopes (Theil and Sen), deaf to single jumps."""
        step = max(1, len(self.requests) // _MOST_POINTS)
        points = list(zip(self.requests[::step], self.bytes[::step], strict=True))
        slopes = [(b - a) / (m - n) for (n, a), (m, b) in combinations(points, 2) if m != n]
        return median(slopes) * 100_000 / _MIB if slopes else 0.0


async def leak(run: Run) -> Report:
    """A long mixed load."""
    seconds = run.leak_seconds
    async with run.stage("Echo", "--replicas", "2", keep=False) as stage:
        server = stage.server
        async with stage.load(_mixed):
            await asyncio.sleep(_SETTLE_SHARE * seconds)
            threads = _threads(stage)
            begun = stage.ledger.begun
            samples = await _sample(stage, (1 - _SETTLE_SHARE) * seconds)
        measured = stage.ledger.begun - begun
        stage.require(_threads(stage) == threads, f"threads {threads} before, {_threads(stage)} after")
        names = {pid: "front" if pid == server.pid else "worker" for pid in samples}
    slopes = {pid: each.slope() for pid, each in samples.items()}
    for pid, slope in slopes.items():
        stage.require(slope <= _MOST_SLOPE, f"the {names[pid]} grows by {slope:.2f} MiB per 100,000 requests")
    told = ", ".join(f"{names[pid]} {slope:+.2f} ({samples[pid].extent()})" for pid, slope in slopes.items())
    what = f"mixed sizes, 5 % errors, 1 % disconnects for {seconds:g} s"
    figures = f"MiB per 1e5 requests over {measured} (RSS from, to): {told}; {stage.ledger.summary()}"
    return run.report("F-47", what, figures, stage)


def _threads(stage: Stage) -> list[int]:
    return [proc.threads(pid) for pid in (stage.server.pid, *stage.server.workers())]


async def _sample(stage: Stage, seconds: float) -> dict[int, _Samples]:
    """Every second, or thirty times in a short run, the memory of the front and of each worker."""
    samples = {pid: _Samples() for pid in (stage.server.pid, *stage.server.workers())}
    pause = min(1.0, seconds / 30)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for pid, each in samples.items():
            each.requests.append(stage.ledger.begun)
            each.bytes.append(proc.resident(pid))
        await asyncio.sleep(pause)
    return samples
