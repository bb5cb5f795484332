"""A candidate: one engine in a separate process, measured when its turn comes.

`python -m flambeau.engine_selection.candidate REQUEST`, where REQUEST is a `CandidateRequest` as JSON. It reads one
`Round` per line from standard input, and writes one `Reply` per line to standard output. It ends when standard input
ends, or its parent.
"""

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from flambeau import engines
from flambeau.answers.agreement import Agreement, Compare
from flambeau.bundle import storage
from flambeau.bundle.storage import Bundle, split_probes
from flambeau.engines.base import Engine
from flambeau.errors import SetupError
from flambeau.system.machine import resident_mb, usable_cores
from flambeau.system.process import cpu_alarm, end_with_parent
from flambeau.types import Tensors

# The messages between a benchmark and its candidates, as lines of JSON.


class CandidateRequest(msgspec.Struct, frozen=True):
    """How to start a candidate. `batches` are the batch sizes, in rows, that it will be asked for."""

    bundle: str
    engine: str
    device: str
    threads: int
    batches: tuple[int, ...]
    allow_code: bool
    parent: int


class Round(msgspec.Struct, frozen=True):
    """Compute batches of `batch` rows for at least `seconds`, and at least once."""

    batch: int
    seconds: float


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The candidate is warm. `agreement` is `None` for a bundle without probes."""

    device: str
    load_seconds: float
    memory_mb: float
    agreement: Agreement | None


class Timed(msgspec.Struct, frozen=True, tag="timed"):
    """The median milliseconds per row in a round."""

    ms: float


class GaveUp(msgspec.Struct, frozen=True, tag="gave_up"):
    """The candidate cannot go on and ends."""

    reason: str


Reply = Loaded | Timed | GaveUp


_MOST_CPU_SECONDS = 300
"""Processor seconds per core after which an engine that does not finish is stopped."""


def main() -> int:
    """Load the engine, then compute rounds until there are no more. Returns the exit code."""
    with os.fdopen(os.dup(1), "wb", buffering=0) as channel:
        os.dup2(2, 1)  # standard output carries replies only: anything else printed goes to standard error

        def say(reply: Reply) -> None:
            with contextlib.suppress(BrokenPipeError):
                channel.write(msgspec.json.encode(reply) + b"\n")

        entry = msgspec.json.decode(sys.argv[1], type=CandidateRequest)
        end_with_parent(entry.parent)
        cpu_alarm(_MOST_CPU_SECONDS * usable_cores())
        try:
            compete(entry, say)
        except SetupError as error:
            say(GaveUp(str(error)))
            return 1
        except MemoryError:
            say(GaveUp("this machine has too little memory for it"))
            return 1
        except Exception as error:
            say(GaveUp(f"{type(error).__name__}: {error}"))
            return 1
    return 0


def compete(entry: CandidateRequest, say: Callable[[Reply], None]) -> None:
    """Load, warm and check the engine, report that, and answer each round on standard input."""
    opened = storage.read(Path(entry.bundle), whole=False)
    inputs, expected = split_probes(opened.probes())
    before, started = resident_mb(), time.monotonic()
    device = engines.resolve_device(entry.engine, entry.device)
    engine = engines.load(
        opened, entry.engine,
        device=device, threads=entry.threads, max_batch=max(entry.batches), allow_code=entry.allow_code,
    )  # fmt: skip
    engine.run(_rows(opened, inputs, 1))
    load_seconds = time.monotonic() - started
    batches = {count: _rows(opened, inputs, count) for count in entry.batches}
    for rows in batches.values():
        engine.run(rows)
    grown = resident_mb() - before
    found = worst(engine, inputs, expected, compare=opened.manifest.compare)
    say(Loaded(device, load_seconds, grown, found))
    for line in sys.stdin.buffer:
        turn = msgspec.json.decode(line, type=Round)
        say(Timed(_median_ms(engine, batches[turn.batch], turn.seconds) / turn.batch))


def worst(engine: Engine, inputs: Tensors, expected: Tensors, *, compare: Compare) -> Agreement | None:
    """The worst agreement on the probes, computed together and one by one; `None` if there are no probes."""
    rows = len(next(iter(inputs.values()), ()))
    if not rows:
        return None
    together = engine.run(inputs)
    alone = [engine.run({name: array[i : i + 1] for name, array in inputs.items()}) for i in range(rows)]
    joined = {name: np.concatenate([each[name] for each in alone]) for name in expected}
    return max(
        (compare(expected, each) for each in (together, joined)), key=lambda each: (not each.holds, each.difference)
    )


def _rows(opened: Bundle, probes: Tensors, count: int) -> Tensors:
    """`count` rows: the probes repeated, or plain ones if there are none."""
    if not probes:
        return {spec.name: spec.plain(count) for spec in opened.manifest.inputs}
    return {name: np.resize(array, (count, *array.shape[1:])) for name, array in probes.items()}


def _median_ms(engine: Engine, rows: Tensors, seconds: float) -> float:
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        started = time.perf_counter()
        engine.run(rows)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken) * 1000


if __name__ == "__main__":
    sys.exit(main())
