"""What a clock must not decide: a front that stood still (A3), and inputs that hang beside others that do not (A2)."""

import asyncio
import random
import signal
import time
from dataclasses import replace

from chaos.client import Ask, nonce
from chaos.ledger import percentile
from chaos.run import Report, Run, Stage, passing

_HANGING = 4  # inputs at once


def _timeout(run: Run) -> float:
    return 2.0 if run.seconds >= 10 else 0.5


async def paused(run: Run) -> Report:
    """The front is stopped for longer than the compute timeout, again and again, and its workers are not."""
    timeout = _timeout(run)
    asked: list[Ask] = []

    def work(rng: random.Random) -> Ask:
        asked.append(Ask(nonce(rng), "sleep", {"seconds": timeout / 2}))
        return asked[-1]

    pauses = 0
    flags = ("--replicas", "2", "--max-batch-size", "1", "--compute-timeout", str(timeout))
    async with run.stage("Echo", *flags) as stage:
        ends = time.monotonic() + run.seconds
        async with stage.load(work, clients=4):
            while time.monotonic() < ends:
                await passing(timeout)
                await _pause(stage, 1.5 * timeout)
                pauses += 1
        for each in asked[:8]:  # nothing is held against them
            await stage.ask(replace(each, group="again"))
        lost = stage.server.logged("worker lost")
        stage.require(lost == 0, f"{lost} workers were lost")
    what = f"SIGSTOP of the front for {1.5 * timeout:g} s, over and over for {run.seconds:g} s, " + " ".join(flags[4:])
    return run.report("A3", what, f"{pauses} pauses, {lost} workers lost; {stage.ledger.summary()}", stage)


async def _pause(stage: Stage, seconds: float) -> None:
    """Stop the front for a while. The probe may not be answered meanwhile."""
    seen, unanswered = len(stage.probe.seen), stage.probe.unanswered
    stage.server.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        stage.server.signal(signal.SIGCONT)
    await asyncio.sleep(0.5)
    del stage.probe.seen[seen:]
    stage.probe.unanswered = unanswered


async def hanging(run: Run) -> Report:
    """Several inputs hang at once, all of them different, and the others are answered beside them."""
    timeout = _timeout(run)
    rng = run.rng()
    allowed = frozenset({(504, "model_timeout"), (504, "deadline_exceeded")})
    flags = ("--replicas", "2", "--max-batch-size", "8", "--compute-timeout", str(timeout))
    async with run.stage("Slow20", *flags) as stage, stage.load(_other, clients=8):
        await passing(run.seconds / 4)
        began = time.monotonic()
        hostile = [Ask(nonce(rng), "hang", expect=allowed, group="hang") for _ in range(_HANGING)]
        await asyncio.gather(*(stage.ask(each) for each in hostile))
        took = time.monotonic() - began
        await passing(1.0)
        refusing = stage.server.logged("only crashes")
        stage.require(refusing == 0, "the model was given up")
    others = [row for row in stage.ledger.rows if row.group == "other" and row.good]
    alone = percentile([row.seconds for row in others if row.t_done < began], 0.99)
    beside = [row.seconds for row in others if row.t_done >= began]
    # Both replicas hang, then one of them in newer ones; then those before an innocent suspect are hurried, and after
    # each of them the queue has its turn while another worker starts.
    bar = 2 * timeout + _HANGING * 2.0 + 2.0
    stage.require(max(beside) <= bar, f"the others waited {max(beside):.1f} s: more than {bar:g}")
    what = f"{_HANGING} inputs that hang at once beside 8 clients, 2 replicas, --compute-timeout {timeout:g}"
    figures = (
        f"answered 504 in {took:.1f} s; others' p99 {alone:.2f} s before, {percentile(beside, 0.99):.2f} s beside "
        f"them, max {max(beside):.2f} s; {stage.ledger.summary()}"
    )
    return run.report("A2", what, figures, stage)


def _other(rng: random.Random) -> Ask:
    return Ask(nonce(rng), group="other")
