"""How throughput and latency grow with clients, replicas, cores, models and fronts: a simulation fed with measured
times.

`python -m benchmarks.simulate` prints the table of docs/performance.md. Clients ask, wait for the answer and ask again.
A front is one thread that takes its work in turns, with its own clients, queues and workers; workers take batches by
the rule of `flambeau.serving.batcher`; whoever has something to do shares the cores evenly. It knows nothing of
sockets, memory or the noise of a real machine, so it says what the design allows and not what a machine will do.
"""

import argparse
import heapq
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Stages:
    """Measured seconds of a core.

    Of the front: `ask` and `answer` for each item, `send` and `receive` for each batch, `wake` whenever it slept. Of
    a worker: `call` for each batch, `prepare` and `compute` for each item. Of a client: `client` for each item. `wide`
    is what remains of `compute` where a batch has the machine to itself, `jitter` the factor by which all may stray.
    """

    ask: float
    answer: float
    send: float
    receive: float
    call: float
    prepare: float
    compute: float
    client: float
    wake: float
    most: int
    least: int = 1
    wide: float = 1.0
    jitter: float = 0.05


PHOTOGRAPHS = Stages(
    ask=240e-6, answer=120e-6, send=60e-6, receive=40e-6, call=200e-6, prepare=2.1e-3, compute=10.6e-3, client=50e-6,
    wake=80e-6, most=2, wide=0.55,
)  # fmt: skip
"""JPEGs of 500 x 375 to EfficientNet-Lite0 with ONNX Runtime. The front's parts come to the measured 0.5 ms."""

NUMBERS = Stages(
    ask=23e-6, answer=24e-6, send=40e-6, receive=22e-6, call=70e-6, prepare=6e-6, compute=4e-6, client=9e-6,
    wake=60e-6, most=32, least=32, jitter=0.3,
)  # fmt: skip
"""Four numbers to a linear layer. The front's parts come to the 54 µs a request that were measured at 32 clients."""

Kind = Literal["ask", "answers", "batch"]
_OF_FRONTS = ("ask", "answers")


@dataclass(slots=True)
class _Job:
    """What somebody is busy with: `left` seconds of a core, and what happens then."""

    left: float
    kind: Kind | Literal["client"]  # what a front is busy with; a worker; or a client
    items: list[tuple[int, float]]  # clients, and when they asked
    slot: int = -1  # the worker among those of its front and model


@dataclass(frozen=True, slots=True)
class Result:
    """Answers a second, latencies in milliseconds, and the share of their time that the fronts were busy."""

    rate: float
    p50: float
    p99: float
    front: float


class _Front:
    """One front: what waits for it, and for each model a queue and the workers that are free."""

    def __init__(self, *, models: int, replicas: int) -> None:
        self.inbox: deque[_Job] = deque()
        self.queues: list[deque[tuple[int, float]]] = [deque() for _ in range(models)]
        self.free = [list(range(replicas)) for _ in range(models)]
        self.replicas = replicas
        self.busy = False
        self.done = 0.0


class Simulation:
    """One run. `models` share the fronts and the cores; clients spread over both. `replicas` are those of a model at
    all fronts together."""

    def __init__(
        self,
        stages: Stages,
        *,
        clients: int,
        cores: int,
        replicas: int | None = None,
        models: int = 1,
        fronts: int = 1,
        seed: int = 1,
    ) -> None:
        self._stages = stages
        self._cores = cores
        self._chance = random.Random(seed)  # noqa: S311 (no secret)
        whole, rest = divmod(max(replicas or cores, fronts), fronts)
        self._fronts = [_Front(models=models, replicas=whole + (number < rest)) for number in range(fronts)]
        self._running: list[_Job] = []
        self._models = models
        self._clients = clients
        self.now = 0.0
        self._front_seconds = 0.0
        self._latencies: list[float] = []

    def run(self, answers: int) -> Result:
        """Simulate until so many were answered, after a tenth of it to warm up."""
        for client in range(self._clients):
            self._start(_Job(self._vary(self._stages.client), "client", [(client, 0.0)]))
        warm = answers // 10
        while len(self._latencies) < warm:
            self._step()
        self._latencies.clear()
        began, self._front_seconds = self.now, 0.0
        while len(self._latencies) < answers:
            self._step()
        span = self.now - began
        ordered = sorted(self._latencies)
        at = [1000 * ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.99)]
        return Result(len(ordered) / span, at[0], at[1], self._front_seconds / span / len(self._fronts))

    def _place(self, job: _Job) -> tuple[_Front, int]:
        """The front and the model that a job's clients ask."""
        client = job.items[0][0]
        return self._fronts[client % len(self._fronts)], client // len(self._fronts) % self._models

    def _step(self) -> None:
        """Let time pass until the next job is done. Who runs shares the cores evenly."""
        pace = min(1.0, self._cores / len(self._running))
        shortest = min(job.left for job in self._running)
        self.now += shortest / pace
        done: list[_Job] = []
        for job in self._running:
            job.left -= shortest
            if job.kind in _OF_FRONTS:
                self._front_seconds += shortest / pace
            if job.left <= 1e-12:
                done.append(job)
        for job in done:
            self._running.remove(job)
            self._finish(job, *self._place(job))
        for front in self._fronts:
            self._front_turn(front)

    def _finish(self, job: _Job, front: _Front, model: int) -> None:
        if job.kind in _OF_FRONTS:
            front.busy, front.done = False, self.now
        match job.kind:
            case "client":  # its request arrives at the front
                front.inbox.append(_Job(self._vary(self._stages.ask), "ask", [(job.items[0][0], self.now)]))
            case "ask":
                front.queues[model].append(job.items[0])
            case "batch":  # the worker's answers arrive at the front, and it is free
                heapq.heappush(front.free[model], job.slot)
                seconds = self._stages.receive + len(job.items) * self._stages.answer
                front.inbox.append(_Job(self._vary(seconds), "answers", job.items))
            case "answers":
                for client, asked in job.items:
                    self._latencies.append(self.now - asked)
                    self._start(_Job(self._vary(self._stages.client), "client", [(client, 0.0)]))

    def _front_turn(self, front: _Front) -> None:
        """A front takes the next of what arrived; when nothing is left it has looked at the queues."""
        if front.busy:
            return
        for queue, free in zip(front.queues, front.free, strict=True):
            sharing = front.replicas
            while queue and free:
                share = -(-len(queue) // max(1, sharing))
                sharing -= 1
                size = min(max(share, self._stages.least), self._stages.most, len(queue))
                self._dispatch(heapq.heappop(free), [queue.popleft() for _ in range(size)])
        if front.inbox:
            front.busy = True
            job = front.inbox.popleft()
            job.left += self._stages.wake if self.now > front.done else 0.0
            self._start(job)

    def _dispatch(self, slot: int, items: list[tuple[int, float]]) -> None:
        alone = not any(job.kind == "batch" for job in self._running)
        compute = self._stages.compute * (self._stages.wide if alone and self._cores > 1 else 1.0)
        seconds = self._stages.send + self._stages.call + len(items) * (self._stages.prepare + compute)
        self._start(_Job(self._vary(seconds), "batch", items, slot))

    def _start(self, job: _Job) -> None:
        self._running.append(job)

    def _vary(self, seconds: float) -> float:
        return seconds * self._chance.uniform(1 - self._stages.jitter, 1 + self._stages.jitter)


def simulate(
    stages: Stages,
    *,
    clients: int,
    cores: int,
    replicas: int | None = None,
    models: int = 1,
    fronts: int = 1,
    answers: int = 3000,
) -> Result:
    """One run with those numbers."""
    return Simulation(
        stages, clients=clients, cores=cores, replicas=replicas, models=models, fronts=fronts
    ).run(answers)  # fmt: skip


_GROWING = ((4, 48), (8, 64), (16, 96), (32, 160), (64, 288))
"""Cores, and so many clients that these are busy."""

_FRONTS = {
    "photographs": ((32, 2, 160), (64, 2, 288), (64, 3, 288), (64, 4, 288)),
    "numbers": (
        (2, 2, 32),
        (2, 2, 128),
        (8, 2, 64),
        (8, 4, 128),
        (8, 7, 224),
        (64, 8, 288),
        (64, 32, 1152),
        (64, 58, 2088),
    ),
}
"""Cores, fronts and clients."""


def points(work: str) -> Iterator[tuple[int, int, int, int]]:
    """Cores, models, fronts and clients of each line of the table."""
    yield from ((2, 1, 1, clients) for clients in (1, 2, 8, 32, 100, 300, 1000))
    yield from ((cores, 1, 1, clients) for cores, clients in _GROWING)
    yield from ((cores, 1, fronts, clients) for cores, fronts, clients in _FRONTS[work])
    yield from ((2, models, 1, 32) for models in (2, 8))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="How throughput and latency grow, by simulation.")
    parser.add_argument("--answers", type=int, default=3000, help="answers in each run")
    asked = parser.parse_args(arguments)
    heads = f"{'work':<12} {'cores':>5} {'models':>6} {'fronts':>6} {'clients':>7} {'answers/s':>9}"
    print(f"{heads} {'p50 ms':>8} {'p99 ms':>8} busy")
    for work, stages in (("photographs", PHOTOGRAPHS), ("numbers", NUMBERS)):
        for cores, models, fronts, clients in points(work):
            # With numbers more than two workers of a front have nothing to do.
            replicas = max(1, (cores if stages is PHOTOGRAPHS else min(cores, 2 * fronts)) // models)
            found = simulate(
                stages, clients=clients, cores=cores, replicas=replicas, models=models, fronts=fronts,
                answers=max(asked.answers, 3 * clients),
            )  # fmt: skip
            print(
                f"{work:<12} {cores:>5} {models:>6} {fronts:>6} {clients:>7} {found.rate:>9.0f} {found.p50:>8.1f} "
                f"{found.p99:>8.1f} {100 * found.front:>3.0f} %"
            )


if __name__ == "__main__":
    main()
