"""A batcher over a fake runner, and a loop to run it on: what the suites about batching share."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Literal

from flambeau.errors import RequestError
from flambeau.runners.base import Batch, ReplicaInfo, RunnerState, Slot, WorkerLostError
from flambeau.serving.batcher import BatchLimits, BatchQueue
from flambeau.telemetry.metrics import Metrics
from flambeau.types import Item, Options, Outcome, Payload, Value

LONG = 60.0  # seconds; no test waits for them
Loss = Literal["killed", "crashed", "hung", "out_of_memory"]


class FakeRunner:
    """Answers `b"x"` with `b"<x>"`, once its gate is open."""

    def __init__(self, slots: int = 1) -> None:
        self.free = self._slots = slots
        self.behind = 0  # batches that may wait behind those that run
        self.batches: list[list[bytes]] = []
        self.running = 0
        self.gate = asyncio.Event()
        self.before: Callable[[], Awaitable[object]] | None = None
        self.answers = 1  # per item
        self.fate: Callable[[list[bytes]], Loss | None] = lambda batch: None  # how the batch's worker is lost
        self.current = RunnerState.READY
        self.alone: list[bool] = []  # of each batch: whether it asked for a replica of its own
        self.hasty: list[bool] = []  # of each batch: whether it may be ended early
        self.on_change: Callable[[], None] = lambda: None

    async def start(self, on_change: Callable[[], None]) -> ReplicaInfo:
        raise NotImplementedError

    def reserve(self, *, alone: bool = False, behind: bool = False) -> Slot | None:
        if self.free <= (-self.behind if behind else 0):
            return None
        self.free -= 1
        return functools.partial(self.answer, alone=alone)

    async def answer(self, batch: Batch, *, alone: bool, hasty: bool = False) -> list[Outcome[Any]]:
        self.hasty.append(hasty)
        sent = [bytes(work.item.payload.data) for work in batch]
        self.batches.append(sent)
        self.alone.append(alone)
        self.running += 1
        try:
            await (self.before or self.gate.wait)()
            if how := self.fate(sent):
                raise WorkerLostError(how)
            return [Outcome(Value(b"<" + work.item.payload.data + b">")) for work in batch] * self.answers
        finally:
            self.running -= 1
            self.free += 1
            asyncio.get_running_loop().call_soon(self.on_change)

    def slots(self) -> int:
        return self._slots

    def state(self) -> RunnerState:
        return self.current

    async def close(self, timeout: float) -> None: ...


class Bench:
    """A batcher over a fake runner, with its metrics."""

    def __init__(
        self, *, size: int = 4, delay: float = 0.0, items: int = 100, byte_limit: int = 10_000, slots: int = 1
    ) -> None:
        self.runner = FakeRunner(slots)
        self.metrics = Metrics()
        limits = BatchLimits(size, delay, items, byte_limit)
        self.batcher = BatchQueue(self.runner, limits, metrics=self.metrics.for_model("m", "1"))
        self.runner.on_change = self.batcher.dispatch

    async def ask(self, *data: bytes, seconds: float = LONG) -> list[bytes | str]:
        """The answers to one request, or the codes of its items' errors."""
        items = [Item(Payload("json", each), Options()) for each in data]
        outcomes = await self.batcher.submit(items, deadline=asyncio.get_running_loop().time() + seconds)
        return [result_of(outcome) for outcome in outcomes]

    async def asked(self, *data: bytes, seconds: float = LONG) -> "asyncio.Task[list[bytes | str]]":
        """A request under way, as far as it gets by itself."""
        task = asyncio.create_task(self.ask(*data, seconds=seconds))
        await settle()
        return task

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"flambeau_{name}", {"model": "m", "version": "1", **labels}) or 0

    def closed(self) -> dict[str, float]:
        return {reason: self.count("batches_closed_total", reason=reason) for reason in ("full", "drained", "delay")}


def result_of(outcome: Outcome) -> bytes | str:
    if isinstance(outcome.result, RequestError):
        return outcome.result.code
    assert isinstance(outcome.result, Value)
    return outcome.result.json


async def count_answered(
    requests: "Mapping[asyncio.Task[list[bytes | str]], list[bytes]]", may_be: Callable[[bytes, bytes | str], bool]
) -> int:
    """How many items were answered. Each request was cancelled, refused, or got what `may_be` allows for each item."""
    results = await asyncio.wait_for(asyncio.gather(*requests, return_exceptions=True), 30)
    answered = 0
    for data, result in zip(requests.values(), results, strict=True):
        if isinstance(result, RequestError):
            assert result.code == "queue_full"
        elif not isinstance(result, asyncio.CancelledError):
            assert isinstance(result, list)
            assert len(result) == len(data)
            for sent, found in zip(data, result, strict=True):
                assert may_be(sent, found), (sent, found)
                answered += found == b"<" + sent + b">"
    return answered


async def settle() -> None:
    """Let everything run that can run."""
    for _ in range(20):
        await asyncio.sleep(0)


def on_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run
