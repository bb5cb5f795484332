"""Measure how many replicas, with how many threads each, answer most on this machine when all work at once.

One thread per replica preprocesses an example and runs the engine on it, over and over, as a worker does under load.
Only for engines with thread pools of their own; PyTorch's threads depend on the calling thread.
"""

import functools
import statistics
import threading
import time
from collections.abc import Callable, Sequence

from flambeau import engines
from flambeau.bundle.measurements import Placed, Placements
from flambeau.bundle.storage import Bundle
from flambeau.pipelines.base import pipeline_of

MEASURED = ("onnxruntime", "openvino")
"""The engines whose replicas are placed by measurement."""

_ROUNDS, _SECONDS = 3, 0.1
_LONG = 2.0
"""Seconds of a round after which no other follows: a detector's took half a minute, and averages the noise itself."""
_MARGIN = 1.1
"""How many times more answers per second another placement must give to be chosen over one replica per core: with a
smaller margin, the choice would be luck. A lone request has all cores either way."""


def measure(opened: Bundle, engine: str, *, cores: int, processor: str) -> Placements:
    """Try one replica per core, then half as many with twice the threads, down to one. Raises `SetupError`.

    Example: 4 cores are tried as 4 replicas of 1 thread, 2 of 2, and 1 of 4.
    """
    trying = [(replicas, cores // replicas) for replicas in _halves(cores)]
    placements = [_replica_calls(opened, engine, replicas, threads) for replicas, threads in trying]
    rates: list[list[float]] = [[] for _ in placements]
    for _ in range(_ROUNDS):  # in turns, so that a noisy moment of the machine affects all of them
        begun = time.perf_counter()
        for calls, found in zip(placements, rates, strict=True):
            found.append(_per_second(calls))
        if time.perf_counter() - begun > _LONG:
            break
    tried = tuple(
        Placed(replicas, threads, round(statistics.median(found), 3))
        for (replicas, threads), found in zip(trying, rates, strict=True)
    )
    return Placements(processor, cores, take(tried), tried)


def take(tried: Sequence[Placed]) -> Placed:
    """The placement with the most answers per second, unless one replica per core (the first tried) is close to it."""
    best = max(tried, key=lambda each: each.per_second)
    return best if best.per_second >= _MARGIN * tried[0].per_second else tried[0]


def _halves(cores: int) -> list[int]:
    """`cores`, half of them, a quarter ..., 1."""
    found = [cores]
    while found[-1] > 1:
        found.append(found[-1] // 2)
    return found


def _replica_calls(opened: Bundle, engine: str, replicas: int, threads: int) -> list[Callable[[], object]]:
    """One function per replica, which preprocesses and computes one example. All replicas are warm."""
    pipeline = pipeline_of(opened)
    example = pipeline.example()
    calls: list[Callable[[], object]] = []
    for _ in range(replicas):
        loaded = engines.load(opened, engine, device="cpu", threads=threads, allow_code=False)
        calls.append(functools.partial(lambda run: run(pipeline.preprocess(example)), loaded.run))
        calls[-1]()
    return calls


def _per_second(calls: list[Callable[[], object]]) -> float:
    """The answers per second of all replicas together, working at the same time."""
    done: list[float] = []
    begin = threading.Barrier(len(calls))

    def work(call: Callable[[], object]) -> None:
        begin.wait()
        started, count = time.perf_counter(), 0
        while not count or time.perf_counter() < started + _SECONDS:
            call()
            count += 1
        done.append(count / (time.perf_counter() - started))

    threads = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done)
