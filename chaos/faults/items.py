"""Items that fail, kill, eat memory or come to answers that cannot be sent: F-04, F-05, F-06, F-27, F-46."""

import random
from collections import Counter, deque
from dataclasses import replace

from chaos.client import Ask, echo, nonce, own_answer
from chaos.run import Report, Run, passing
from chaos.wire import Answer, strict_json

_ERROR = frozenset({(500, "model_error")})
_OUTPUT = frozenset({(500, "model_output_invalid")})
_FLAGS = ("--replicas", "2", "--max-batch-size", "8")

BAD_OUTPUTS = (
    "too_many", "too_few", "none", "text", "mapping", "number", "generator",
    "object", "complex", "function", "circle", "odd_keys",
)  # fmt: skip


def _bad_item(rng: random.Random) -> Ask:
    draw = rng.random()
    if draw < 0.05:
        return Ask(nonce(rng), rng.choice(("raise", "sys_exit")), expect=_ERROR)
    if draw < 0.06:
        return Ask(nonce(rng), "error", expect=_ERROR)
    if draw < 0.07:
        return Ask(nonce(rng), "invalid", expect=frozenset({(400, "input_rejected")}))
    return echo(rng)


async def raising(run: Run) -> Report:
    """An exception from a whole batch is the guilty item's alone."""
    async with run.stage("Slow20", *_FLAGS) as stage:
        async with stage.load(_bad_item):
            await passing(run.seconds)
        stage.require(not stage.server.logged("worker lost"), "a worker was lost")
    what = f"raise in 5 % of the items, for the whole batch, and errors of single items in 2 %, for {run.seconds:g} s"
    return run.report("F-04", what, stage.ledger.summary(), stage)


class _Poisoner:
    """New poisons, and each of them once more after it was answered."""

    def __init__(self) -> None:
        self.distinct: Counter[str] = Counter()
        self._answered: deque[Ask] = deque()

    def make(self, rng: random.Random) -> Ask:
        if rng.random() >= 0.01:
            return echo(rng)
        if len(self._answered) > 40:  # long answered: a client asks again only when it has an answer
            return replace(self._answered.popleft(), expect=frozenset({(422, "poison_input")}), group="repeat")
        kind = rng.choice(("segv", "abort", "exit"))
        ask = Ask(nonce(rng), kind, expect=frozenset({(500, "model_crashed")}), group="poison")
        self.distinct[kind] += 1
        self._answered.append(ask)
        return ask


async def poison(run: Run) -> Report:
    """Inputs that kill their worker, and the same inputs again."""
    poisoner = _Poisoner()
    async with run.stage("Slow20", *_FLAGS) as stage:
        async with stage.load(poisoner.make):
            await passing(run.seconds)
        deaths = stage.server.logged("worker lost")
        repeats = list(poisoner._answered)
        for each in repeats:
            await stage.ask(replace(each, expect=frozenset({(422, "poison_input")}), group="repeat"))
        again = stage.server.logged("worker lost") - deaths
    distinct = poisoner.distinct.total()
    stage.require(distinct > 0, "no poison was sent")
    stage.require(deaths <= 2 * distinct, f"{deaths} deaths of {distinct} poisons: more than two each")
    stage.require(again == 0, f"{again} deaths by repeated poisons")
    figures = f"{distinct} poisons, {deaths} deaths, {len(repeats)} repeats with {again}; {stage.ledger.summary()}"
    what = f"segfault, abort and exit in 1 % of the items for {run.seconds:g} s, then each poison once more"
    return run.report("F-05", what, figures, stage)


def _hungry(rng: random.Random) -> Ask:
    if rng.random() < 0.02:
        return Ask(nonce(rng), "allocate", {"bytes": 8 << 30}, frozenset({(507, "out_of_memory")}))
    return echo(rng)


async def memory(run: Run) -> Report:
    """Items that want more memory than a worker may have."""
    async with run.stage("Slow20", *_FLAGS, "--max-worker-memory", str(4 << 30)) as stage, stage.load(_hungry):
        await passing(run.seconds)
    what = f"8 GiB wanted by 2 % of the items, --max-worker-memory 4 GiB, for {run.seconds:g} s"
    return run.report("F-06", what, stage.ledger.summary(), stage)


def _nonfinite(own: str, answer: Answer) -> str:
    """A 200 with NaN and infinities in it: JSON all the same, with null, and the header tells how many."""
    if wrong := own_answer(own, answer):
        return wrong
    body = strict_json(answer.body)
    numbers = body["output"]["numbers"] if isinstance(body, dict) else None
    if numbers != [None, None, None, 1.5]:
        return f"numbers {numbers}"
    return "" if answer.headers.get("x-nonfinite-outputs") == "3" else "X-Nonfinite-Outputs is not 3"


def _finite(own: str, answer: Answer) -> str:
    return "X-Nonfinite-Outputs on finite ones" if "x-nonfinite-outputs" in answer.headers else own_answer(own, answer)


def _sometimes_nan(rng: random.Random) -> Ask:
    nan = rng.random() < 0.2
    return Ask(nonce(rng), "nan" if nan else "echo", verify=_nonfinite if nan else _finite)


async def nonfinite(run: Run) -> Report:
    """NaN and infinities in the model's output."""
    async with run.stage("Echo", *_FLAGS) as stage, stage.load(_sometimes_nan):
        await passing(run.seconds)
    count = sum(row.do == "nan" for row in stage.ledger.rows)
    what = f"NaN and ±Inf in 20 % of the answers for {run.seconds:g} s, read by a strict parser"
    return run.report("F-27", what, f"{count} answers with null; {stage.ledger.summary()}", stage)


def _bad_output(rng: random.Random) -> Ask:
    if rng.random() < 0.1:
        return Ask(nonce(rng), rng.choice(BAD_OUTPUTS), expect=_OUTPUT)
    return echo(rng)


async def outputs(run: Run) -> Report:
    """Outputs of the wrong count or kind, and one of 300 MiB."""
    async with run.stage("Slow20", *_FLAGS) as stage:
        before = stage.server.workers()
        async with stage.load(_bad_output):
            await passing(run.seconds / 2)
            await stage.ask(Ask(nonce(run.rng()), "huge", expect=_OUTPUT))
            await passing(run.seconds / 2)
        stage.require(stage.server.workers() == before, "a worker did not survive")
        lost = stage.server.logged("worker lost")
        stage.require(not lost, f"{lost} workers lost")
    kinds = Counter(row.do for row in stage.ledger.rows if row.do != "echo")
    what = f"{len(BAD_OUTPUTS)} kinds of bad output in 10 % of the items for {run.seconds:g} s, and one of 300 MiB"
    return run.report("F-46", what, f"{len(kinds)} kinds; {stage.ledger.summary()}", stage)
