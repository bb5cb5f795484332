"""How throughput and latency grow with clients, replicas, cores and models: a simulation fed with measured times.

`python -m benchmarks.simulate` prints the table of docs/performance.md. Clients ask, wait for the answer and ask again.
The front is one thread that takes its work in turns; workers take batches by the rule of `flambeau.serving.batcher`;
whoever has something to do shares the cores evenly. It knows nothing of sockets, memory or the noise of a real machine,
so it says what the design allows and not what a machine will do.
"""

import argparse
import heapq
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    ask=180e-6, answer=120e-6, send=60e-6, receive=40e-6, call=200e-6, prepare=2.2e-3, compute=10.6e-3, client=50e-6,
    wake=80e-6, most=2, wide=0.55,
)  # fmt: skip
"""JPEGs of 500 x 375 to EfficientNet-Lite0 with ONNX Runtime."""

NUMBERS = Stages(
    ask=30e-6, answer=33e-6, send=55e-6, receive=30e-6, call=70e-6, prepare=6e-6, compute=4e-6, client=9e-6,
    wake=80e-6, most=32, least=32, jitter=0.3,
)  # fmt: skip
"""Four numbers to a linear layer."""

Kind = Literal["ask", "answers", "batch"]


@dataclass(slots=True)
class _Job:
    """What somebody is busy with: `left` seconds of a core, and what happens then."""

    who: int  # 0 is the front, then the workers; -1 - n are clients
    left: float
    kind: Kind | Literal["client"]
    items: list[tuple[int, float]]  # clients, and when they asked


@dataclass(frozen=True, slots=True)
class Result:
    """Answers a second, latencies in milliseconds, and the share of its time that the front was busy."""

    rate: float
    p50: float
    p99: float
    front: float


class Simulation:
    """One run. `models` share the front and the cores; clients spread over them."""

    def __init__(
        self, stages: Stages, *, clients: int, cores: int, replicas: int | None = None, models: int = 1, seed: int = 1
    ) -> None:
        self._stages = stages
        self._cores = cores
        self._replicas = replicas or cores
        self._chance = random.Random(seed)  # noqa: S311 (no secret)
        self._inbox: deque[_Job] = deque()
        self._queues: list[deque[tuple[int, float]]] = [deque() for _ in range(models)]
        self._free = [list(range(self._replicas)) for _ in range(models)]
        self._running: list[_Job] = []
        self._front_busy = False
        self._front_done = 0.0
        self._models = models
        self._clients = clients
        self.now = 0.0
        self._front_seconds = 0.0
        self._latencies: list[float] = []

    def run(self, answers: int) -> Result:
        """Simulate until so many were answered, after a tenth of it to warm up."""
        for client in range(self._clients):
            self._start(_Job(-1 - client, self._vary(self._stages.client), "client", [(client, 0.0)]))
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
        return Result(len(ordered) / span, at[0], at[1], self._front_seconds / span)

    def _step(self) -> None:
        """Let time pass until the next job is done. Who runs shares the cores evenly."""
        pace = min(1.0, self._cores / len(self._running))
        shortest = min(job.left for job in self._running)
        self.now += shortest / pace
        done: list[_Job] = []
        for job in self._running:
            job.left -= shortest
            if job.who == 0:
                self._front_seconds += shortest / pace
            if job.left <= 1e-12:
                done.append(job)
        for job in done:
            self._running.remove(job)
            self._front_done = self.now if job.who == 0 else self._front_done
            self._finish(job)
        self._front_turn()

    def _finish(self, job: _Job) -> None:
        match job.kind:
            case "client":  # its request arrives at the front
                self._inbox.append(_Job(0, self._vary(self._stages.ask), "ask", [(job.items[0][0], self.now)]))
            case "ask":
                self._front_busy = False
                self._queues[job.items[0][0] % self._models].append(job.items[0])
            case "batch":  # the worker's answers arrive at the front, and it is free
                model = job.items[0][0] % self._models
                heapq.heappush(self._free[model], (job.who - 1) % self._replicas)
                seconds = self._stages.receive + len(job.items) * self._stages.answer
                self._inbox.append(_Job(0, self._vary(seconds), "answers", job.items))
            case "answers":
                self._front_busy = False
                for client, asked in job.items:
                    self._latencies.append(self.now - asked)
                    self._start(_Job(-1 - client, self._vary(self._stages.client), "client", [(client, 0.0)]))

    def _front_turn(self) -> None:
        """The front takes the next of what arrived; when nothing is left it has looked at the queues."""
        if self._front_busy:
            return
        for model, queue in enumerate(self._queues):
            sharing = self._replicas
            while queue and self._free[model]:
                share = -(-len(queue) // max(1, sharing))
                sharing -= 1
                size = min(max(share, self._stages.least), self._stages.most, len(queue))
                self._dispatch(model, [queue.popleft() for _ in range(size)])
        if self._inbox:
            self._front_busy = True
            job = self._inbox.popleft()
            job.left += self._stages.wake if self.now > self._front_done else 0.0
            self._start(job)

    def _dispatch(self, model: int, items: list[tuple[int, float]]) -> None:
        slot = heapq.heappop(self._free[model])
        alone = not any(job.kind == "batch" for job in self._running)
        compute = self._stages.compute * (self._stages.wide if alone and self._cores > 1 else 1.0)
        seconds = self._stages.send + self._stages.call + len(items) * (self._stages.prepare + compute)
        self._start(_Job(1 + model * self._replicas + slot, self._vary(seconds), "batch", items))

    def _start(self, job: _Job) -> None:
        self._running.append(job)

    def _vary(self, seconds: float) -> float:
        return seconds * self._chance.uniform(1 - self._stages.jitter, 1 + self._stages.jitter)


def simulate(
    stages: Stages, *, clients: int, cores: int, replicas: int | None = None, models: int = 1, answers: int = 3000
) -> Result:
    """One run with those numbers."""
    return Simulation(stages, clients=clients, cores=cores, replicas=replicas, models=models).run(answers)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="How throughput and latency grow, by simulation.")
    parser.add_argument("--answers", type=int, default=3000, help="answers in each run")
    asked = parser.parse_args(arguments)
    print(f"{'work':<12} {'cores':>5} {'models':>6} {'clients':>7} {'answers/s':>9} {'p50 ms':>8} {'p99 ms':>8} front")
    for name, stages in (("photographs", PHOTOGRAPHS), ("numbers", NUMBERS)):
        points = [(2, 1, clients) for clients in (1, 2, 8, 32, 100, 300, 1000)]
        points += [(cores, 1, 4 * cores + 32) for cores in (4, 8, 16, 32, 64)] + [(2, models, 32) for models in (2, 8)]
        for cores, models, clients in points:
            # With numbers more than two workers have nothing to do.
            replicas = max(1, (cores if stages is PHOTOGRAPHS else min(cores, 2)) // models)
            found = simulate(
                replace(stages), clients=clients, cores=cores, replicas=replicas, models=models, answers=asked.answers
            )
            print(
                f"{name:<12} {cores:>5} {models:>6} {clients:>7} {found.rate:>9.0f} {found.p50:>8.1f} "
                f"{found.p99:>8.1f} {100 * found.front:>4.0f} %"
            )


if __name__ == "__main__":
    main()
