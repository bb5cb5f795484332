"""Workers that are killed, crash the whole set, hang or are stopped: F-01, F-02, F-03."""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator

from chaos.client import Ask, Make, echo, nonce
from chaos.ledger import Row
from chaos.run import Report, Run, Stage, passing
from chaos.server import eventually

_FLAGS = ("--max-batch-size", "8")


async def kill_worker(
    run: Run, fault: str = "F-01", *, replicas: int = 2, seconds: float | None = None, make: Make = echo, over: str = ""
) -> Report:
    """kill -9 of a random worker every 2 s, under requests that `make` makes: `over` which protocol, if not ours."""
    seconds = seconds or run.seconds
    period = min(2.0, seconds / 3)
    async with (
        run.stage("Slow50", "--replicas", str(replicas), *_FLAGS) as stage,
        stage.load(make),
        every(period, stage, run.rng(), how_many=1) as kills,
    ):
        await passing(seconds)
    what = f"{over}kill -9 of a random worker every {period:.1f} s for {seconds:g} s, {_workers(replicas)}"
    stage.require(len(kills) > 1, f"only {len(kills)} kills")
    return run.report(fault, what, f"{len(kills)} kills; {rate(stage, seconds)}", stage)


def _workers(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"


def rate(stage: Stage, seconds: float) -> str:
    """What a stage's ledger comes to, in words."""
    slowest = max((row.seconds for row in stage.ledger.rows), default=0.0)
    p99 = stage.latency()
    return f"{stage.ledger.summary()}; {stage.ledger.good / seconds:.0f}/s, p99 {p99:.2f} s, max {slowest:.2f} s"


@contextlib.asynccontextmanager
async def every(period: float, stage: Stage, rng: random.Random, *, how_many: int | None) -> AsyncIterator[list[float]]:
    """Kill workers at that pace, `how_many` at a time or all of them; yields the times of it."""
    kills: list[float] = []

    async def live() -> None:
        due = time.monotonic() + period / 2
        while True:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due += period
            workers = stage.server.workers()
            victims = workers if how_many is None else rng.sample(workers, min(how_many, len(workers)))
            if victims:
                kills.append(time.monotonic())
            for pid in victims:
                _send(pid, signal.SIGKILL)

    task = asyncio.create_task(live())
    try:
        yield kills
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


async def kill_all(run: Run) -> Report:
    """kill -9 of all workers together; readiness tells the truth."""
    period = min(10.0, run.seconds / 2)
    async with (
        run.stage("Slow50", "--replicas", "2", *_FLAGS) as stage,
        stage.load(),
        every(period, stage, run.rng(), how_many=None) as kills,
    ):
        await passing(run.seconds)
    figures = []
    rows = sorted((row for row in stage.ledger.rows if row.good), key=lambda row: row.t_done)
    for kill in kills:
        figures.append(f"{1000 * _outage(stage, rows, kill):.0f}")
    what = f"kill -9 of all workers every {period:.0f} s for {run.seconds:g} s, 2 replicas"
    told = f"{len(kills)} kills; ms to the first new answer {' '.join(figures)}; {rate(stage, run.seconds)}"
    return run.report("F-02", what, told, stage)


def _outage(stage: Stage, rows: list[Row], kill: float) -> float:
    """Seconds from a kill to the first answer to come of a new worker; complains where readiness lied meanwhile."""
    first = next((row.t_done for row in rows if row.t_done > kill + 0.06), None)  # later than what was on its way
    if first is None:
        stage.require(False, "no answer came after a kill of all workers")
        return float("inf")
    told = stage.probe.ready_at(kill, kill + 1.0, ready=False)
    stage.require(told or first < kill + 1.0, "no worker could answer for 1 s, and readiness stayed true")
    end = first + 1.1  # the probe asks ten times a second
    asked = any(first < when < end for when, _, _ in stage.probe.seen)
    again = stage.probe.ready_at(first, end, ready=True)
    stage.require(again or not asked, "readiness was not true within 1 s of the first answer")
    return first - kill


async def hang(run: Run) -> Report:
    """An input that hangs the model, and SIGSTOP of a worker, in turns."""
    timeout = 2.0 if run.seconds >= 10 else 0.5
    rng = run.rng()
    hung: list[float] = []
    stops: list[float] = []
    flags = ("--replicas", "2", "--compute-timeout", str(timeout), *_FLAGS)
    async with run.stage("Slow50", *flags) as stage, stage.load():
        ends = time.monotonic() + run.seconds  # counted from here: the start may take longer than all of it
        while not hung or time.monotonic() < ends:
            hung.append(await _hang_once(stage, rng))
            stops.append(await _stop_once(stage, rng))
    worst = max((row.seconds for row in stage.ledger.rows), default=0.0)
    bar = 3 * timeout + 2.0  # once among its batch-mates, once alone in haste, for they wait, and once alone
    stage.require(max(hung) <= bar, f"a hanging input was answered after {max(hung):.2f} s: more than {bar:g}")
    what = f"hang input and SIGSTOP in turns for {run.seconds:g} s, 2 replicas, --compute-timeout {timeout:g}"
    figures = (
        f"{len(hung)} hangs answered 504 in {max(hung):.2f} s, {len(stops)} stops replaced in {max(stops):.2f} s; "
        f"{stage.ledger.summary()}; others' max {worst:.2f} s"
    )
    return run.report("F-03", what, figures, stage)


async def _hang_once(stage: Stage, rng: random.Random) -> float:
    """Seconds to the answer of an input that hangs."""
    started = time.monotonic()
    await stage.ask(Ask(nonce(rng), "hang", expect=frozenset({(504, "model_timeout")}), group="hang"))
    return time.monotonic() - started


async def _stop_once(stage: Stage, rng: random.Random) -> float:
    """Seconds until a stopped worker is gone and another in its place."""
    await eventually(lambda: len(stage.server.warm_workers()) == 2, 5.0)
    victim = rng.choice(stage.server.warm_workers())
    started = time.monotonic()
    _send(victim, signal.SIGSTOP)
    replaced = await eventually(
        lambda: victim not in (workers := stage.server.warm_workers()) and len(workers) == 2, stage.deadline
    )
    stage.require(replaced, "a stopped worker was not replaced")
    return time.monotonic() - started
