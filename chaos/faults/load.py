"""Clients that leave, are too many or too greedy, or have no time: F-11 to F-14; and what batching is worth."""

import asyncio
import random
import time

from chaos.client import OK, Ask, get, nonce, own_answer
from chaos.ledger import Ledger, Row, percentile
from chaos.openloop import OpenLoop
from chaos.run import Report, Run, Stage, passing
from chaos.wire import Answer, strict_json

_ONE = ("--replicas", "1", "--max-batch-size", "8")
_CANCEL_GRACE = 0.1  # seconds after a client has left from which on its item must not begin to be computed
_EXPIRY_GRACE = 0.05
_LEAST_SHARE = 0.9


def _patient(rng: random.Random) -> Ask:
    return Ask(nonce(rng), group="patient")


def _other(rng: random.Random) -> Ask:
    return Ask(nonce(rng), group="other")


def _leaving(rng: random.Random) -> Ask:
    return Ask(nonce(rng), group="leaving", abort_after=rng.uniform(0.0, 0.3))


async def disconnects(run: Run) -> Report:
    """Half of the clients leave before they are answered."""
    half = run.clients // 2
    window = run.seconds / 2
    async with run.stage("Recording", *_ONE) as stage:
        async with stage.load(_patient, clients=half), stage.load(_other, clients=half):
            await passing(1.0)
            start = time.monotonic()
            await passing(window)
            baseline = _goodput(stage, start, window, "patient")
        async with stage.load(_patient, clients=half), stage.load(_leaving, clients=half):
            await passing(1.0)
            start = time.monotonic()
            await passing(window)
            goodput = _goodput(stage, start, window, "patient")
        began = await _began(stage)
    left = [row for row in stage.ledger.rows if row.how == "aborted" and row.t_last_byte_sent]
    late = sum(began.get(row.nonce, 0.0) > row.t_done + _CANCEL_GRACE for row in left)
    dropped = sum(row.nonce not in began for row in left)
    stage.require(len(left) > 0, "nobody left")
    stage.require(late == 0, f"{late} of {len(left)} items computed although their client had left 100 ms before")
    share = goodput / baseline
    stage.require(share >= _LEAST_SHARE, f"the others' goodput is {100 * share:.0f} % of the baseline")
    figures = (
        f"others {goodput:.0f}/s of {baseline:.0f}/s ({100 * share:.0f} %); {len(left)} left, "
        f"{dropped} never computed, {late} computed later than 100 ms after; {stage.ledger.summary()}"
    )
    what = f"half of the clients close after 0 to 300 ms, {window:g} s beside {window:g} s of baseline"
    return run.report("F-11", what, figures, stage)


def _goodput(stage: Stage, start: float, seconds: float, group: str) -> float:
    rows = stage.ledger.rows
    return sum(row.good and row.group == group and start <= row.t_done < start + seconds for row in rows) / seconds


async def _began(stage: Stage) -> dict[str, float]:
    """When the model began to compute which nonce."""
    found: dict[str, float] = {}

    def keep(own: str, answer: Answer) -> str:
        body = strict_json(answer.body)
        if isinstance(body, dict):
            found.update(body["output"]["began"])
        return own_answer(own, answer)

    await stage.ask(Ask(nonce(stage.run.rng()), "report", verify=keep))
    return found


async def overload(run: Run) -> Report:
    """Ten times what the model can do."""
    surplus = frozenset({OK, (503, "queue_full")})
    async with run.stage("Slow50", *_ONE) as stage:
        peak = await _peak(stage, min(5.0, run.seconds / 2))
        generator = OpenLoop(
            stage.server.port, stage.ledger, lambda rng: Ask(nonce(rng), expect=surplus),
            rate=10 * peak, seed=run.next_seed(), deadline=stage.deadline,
        )  # fmt: skip
        start = time.monotonic()
        await generator.play(run.seconds)
        settle = min(1.0, run.seconds / 4)
        goodput = _goodput(stage, start + settle, run.seconds - settle, "")
        await generator.finish()
        rows = [row for row in stage.ledger.rows if row.t_send >= start]
        calm = Ledger()
        async with stage.load(ledger=calm):
            await passing(1.0)
        stage.complaints += [f"after the overload: {each}" for each in calm.complaints()]
    refused = [row for row in rows if row.status == 503]
    share = goodput / peak
    stage.require(len(refused) > 0, "nothing was refused: this was no overload")
    stage.require(all(row.retry_after for row in refused), "a 503 without Retry-After")
    stage.require(share >= _LEAST_SHARE, f"goodput {100 * share:.0f} % of the peak")
    figures = (
        f"peak {peak:.0f}/s, offered {generator.sent / run.seconds:.0f}/s, goodput {goodput:.0f}/s "
        f"({100 * share:.0f} %); 503 p99 {_p99_ms(refused):.0f} ms, "
        f"200 p99 {_p99_ms([row for row in rows if row.good]):.0f} ms; {stage.ledger.summary()}"
    )
    return run.report("F-12", f"open-loop overload at 10x of the measured peak for {run.seconds:g} s", figures, stage)


async def _peak(stage: Stage, seconds: float) -> float:
    ledger = Ledger()
    async with stage.load(ledger=ledger):
        await passing(0.5)
        before = ledger.good
        await passing(seconds)
        return (ledger.good - before) / seconds


def _p99_ms(rows: list[Row]) -> float:
    return 1000 * percentile((row.seconds for row in rows), 0.99)


async def greedy(run: Run) -> Report:
    """A group of clients ten times another one."""
    quiet = max(2, run.clients // 10)
    async with run.stage("Slow20", *_ONE) as stage:
        async with stage.load(_patient, clients=quiet):
            await passing(min(3.0, run.seconds / 3))
        alone = stage.latency(group="patient")
        both = Ledger()
        async with (
            stage.load(_patient, clients=quiet, ledger=both),
            stage.load(_other, clients=10 * quiet, ledger=both),
        ):
            await passing(run.seconds)
        stage.complaints += both.complaints()
    rows = [row for row in both.rows if row.group == "patient"]
    failed = sum(not row.good for row in rows)
    stage.require(failed == 0, f"{failed} requests of the quiet group failed")
    figures = (
        f"quiet: {len(rows)} requests, {failed} failed, p99 {_p99_ms(rows):.0f} ms ({1000 * alone:.0f} ms alone); "
        f"greedy: {len(both.rows) - len(rows)}"
    )
    return run.report(
        "F-13", f"{10 * quiet} greedy clients beside {quiet} quiet ones, {run.seconds:g} s", figures, stage
    )


def _hurried(rng: random.Random) -> Ask:
    expect = frozenset({OK, (504, "deadline_exceeded")})
    return Ask(nonce(rng), expect=expect, timeout_ms=rng.randint(10, 2000))


async def deadlines(run: Run) -> Report:
    """Deadlines from 10 to 2000 ms on a model that cannot keep them all."""
    async with run.stage("Slow300Recording", "--replicas", "1", "--max-batch-size", "4") as stage:
        async with stage.load(_hurried):
            await passing(run.seconds)
        began = await _began(stage)
    expired = [row for row in stage.ledger.rows if row.status == 504]
    off = [row.seconds - row.deadline for row in expired]
    late = sum(began.get(row.nonce, 0.0) > row.t_last_byte_sent + row.deadline + _EXPIRY_GRACE for row in expired)
    stage.require(len(expired) > 0, "no deadline passed")
    stage.require(min(off, default=0) >= -0.005, f"a 504 came {-1000 * min(off, default=0):.0f} ms before its deadline")
    stage.require(percentile(off, 0.99) <= 0.05, f"504s came {1000 * percentile(off, 0.99):.0f} ms after it at p99")
    stage.require(late == 0, f"{late} items computed after they had expired")
    figures = (
        f"504 at the deadline {1000 * min(off, default=0):+.0f} to {1000 * max(off, default=0):+.0f} ms "
        f"(p99 {1000 * percentile(off, 0.99):+.0f}); computed after expiry {late}; {stage.ledger.summary()}"
    )
    return run.report("F-14", f"deadlines of 10 to 2000 ms, model of 300 ms, for {run.seconds:g} s", figures, stage)


async def batching(run: Run) -> Report:
    """A batch of eight for the price of one."""
    rates: dict[int, float] = {}
    stages: list[Stage] = []
    sizes: dict[int, float] = {}
    for size in (1, 8):
        async with run.stage("Slow20", "--replicas", "1", "--max-batch-size", str(size)) as stage:
            rates[size] = await _peak(stage, run.seconds / 2)
            sizes[size] = await _mean_batch(stage)
        stages.append(stage)
    gain = rates[8] / rates[1]
    stages[-1].require(gain >= 4, f"batching pays {gain:.1f} times only")
    figures = (
        f"{rates[1]:.0f}/s in batches of {sizes[1]:.1f}, {rates[8]:.0f}/s in batches of {sizes[8]:.1f}: {gain:.1f}x"
    )
    what = "model of 20 ms a batch, --max-batch-size 8 against 1, 32 clients closed loop"
    return run.report("batching", what, figures, *stages)


async def _mean_batch(stage: Stage) -> float:
    """The mean batch size as /metrics tells it."""
    text = (await asyncio.wait_for(get(stage.server.port, "/metrics"), 10)).body.decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("flambeau_batch_size_"))
    of = {name: float(value) for name, value in values.items()}
    total = sum(value for name, value in of.items() if name.startswith("flambeau_batch_size_sum"))
    return total / max(1.0, sum(value for name, value in of.items() if name.startswith("flambeau_batch_size_count")))
