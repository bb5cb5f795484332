"""The comparisons, and the alternation: in every round each server has one turn, so that a slow minute of the machine
falls on all of them. It judges nothing."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks import measure
from benchmarks.apps.order import Engine, Order
from benchmarks.load import LoadError
from benchmarks.measure import MeasureError, Plan, Turn
from benchmarks.peers import CORES, PEERS, Peer
from benchmarks.results import OURS, Result, Row
from benchmarks.work import FILES, WORKS, Work

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A work, the engine of the peers that can be given one, and what else is asked."""

    name: str
    work: Work
    engine: Engine
    clients: tuple[int, ...]
    limits: bool = False

    @property
    def title(self) -> str:
        """For people."""
        return self.work.title + (", the same ONNX engine everywhere" if self.engine == "onnx" else "")


FIRST_START = "first-start"

COMPARISONS = {
    each.name: each
    for each in (
        Comparison("lite0", WORKS["lite0"], "eager", WORKS["lite0"].clients, limits=True),
        Comparison("densenet121", WORKS["densenet121"], "eager", WORKS["densenet121"].clients, limits=True),
        Comparison("tiny", WORKS["tiny"], "eager", WORKS["tiny"].clients),
        Comparison("lite0-same", WORKS["lite0"], "onnx", (1, 8)),
        Comparison("densenet121-same", WORKS["densenet121"], "onnx", (8,)),
    )
}


def compare(
    comparison: Comparison, peers: Sequence[Peer], failures: dict[str, str], plan: Plan, rounds: int, say: Say
) -> Result:
    """Run the rounds. `failures` are the environments that could not be made, with the reason of each."""
    plan = dataclasses.replace(plan, clients=comparison.clients)
    taking = [peer for peer in peers if peer.takes(comparison.work, comparison.engine)]
    rows = [
        Row(peer.name, peer.setting(comparison.work), failure=failures.get(peer.environment, "")) for peer in taking
    ]
    result = Result(comparison.name, comparison.title, comparison.clients, rows)
    _fill_cache(comparison, taking, plan)
    for number in range(1, rounds + 1):
        say(f"{comparison.name}, round {number} of {rounds}")
        for peer, row in zip(taking, rows, strict=True):
            if not row.failure:
                _take_turn(peer, row, comparison, plan, say)
        if comparison.limits:
            _measure_limits(result, comparison.work, plan, say)
    return result


def first_starts(rounds: int, plan: Plan, say: Say) -> Row:
    """Flambeau's start to its first answer with nothing cached: the build of the default model included."""
    row = Row(OURS, "nothing cached")
    for number in range(1, rounds + 1):
        say(f"{FIRST_START}, round {number} of {rounds}")
        bare = dataclasses.replace(plan, clients=())
        try:
            row.turns.append(measure.turn(PEERS[OURS], WORKS["lite0"], "eager", bare, fresh_cache=True))
        except MeasureError as error:
            row.failure = str(error)
            break
    return row


def _fill_cache(comparison: Comparison, peers: Iterable[Peer], plan: Plan) -> None:
    """A start that is not counted: from then on Flambeau's bundle is cached, as it is on every start but the first."""
    for peer in peers:
        if not peer.environment:
            with contextlib.suppress(MeasureError):  # the turns that are counted will say it
                measure.turn(peer, comparison.work, comparison.engine, dataclasses.replace(plan, clients=()))
            return


def _take_turn(peer: Peer, row: Row, comparison: Comparison, plan: Plan, say: Say) -> None:
    try:
        turn = measure.turn(peer, comparison.work, comparison.engine, plan)
    except (MeasureError, LoadError, OSError) as error:
        row.failure = str(error)
        say(f"  {peer.name}: {error}")
        return
    row.turns.append(turn)
    say(f"  {peer.name}: {_shown(turn)}")


def _shown(turn: Turn) -> str:
    windows = [f"{window.clients}: {window.per_second:.4g}/s p50 {window.p50_ms:.3g} ms" for window in turn.windows]
    return f"{turn.cold:.1f} s, {turn.loaded / 2**20:.0f} MiB, " + ", ".join(windows)


def _measure_limits(result: Result, work: Work, plan: Plan, say: Say) -> None:
    engines: tuple[Engine, ...] = ("onnx", "eager")
    for engine in engines:
        for workers, threads in sorted({(1, CORES), (CORES, 1)}):
            name = f"{engine}, {workers} × {threads}"
            order = Order(work.name, engine, FILES, 0, workers=workers, threads=threads)
            try:
                speed = measure.limit(order, plan.seconds)
            except MeasureError as error:
                say(f"  limit, {name}: {error}")
                continue
            result.limits.setdefault(name, []).append(speed)
            say(f"  limit, {name}: {speed:.4g}/s")
