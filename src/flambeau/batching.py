"""Dynamic batching: a bounded queue in front of a runner's slots.

Slot first: an entry waits for a free slot, and a free slot takes what is queued, up to `max_batch_size`. So batches
grow by themselves under load, and a lone request never waits for company. Everything here runs on the loop, without
locks. A batch of one is a batch like any other.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from flambeau import logs
from flambeau.errors import RequestError
from flambeau.metrics import ModelMetrics
from flambeau.runners.base import Runner
from flambeau.types import Item, Outcome

Reason = Literal["full", "drained", "delay"]
"""Why a batch closed: it had reached its size, the queue was empty, or its oldest entry had waited long enough."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How batches form and how much may wait. Seconds, items and bytes."""

    max_batch_size: int
    max_queue_delay: float
    max_queue_size: int
    max_queue_bytes: int


@dataclass(eq=False, slots=True)
class _Entry:
    item: Item
    future: "asyncio.Future[Outcome]"
    queued_at: float
    expiry: asyncio.TimerHandle

    @property
    def size(self) -> int:
        return len(self.item.payload.data)


class Batcher:
    """The queue of one model. Every entry it takes gets exactly one outcome, or is dropped when its caller is gone."""

    def __init__(self, runner: Runner, limits: BatchLimits, *, metrics: ModelMetrics) -> None:
        self._runner = runner
        self._limits = limits
        self._metrics = metrics
        self._queue: deque[_Entry] = deque()
        self._queued_bytes = 0
        self._free_slots = runner.slots
        self._running: set[asyncio.Task[None]] = set()
        self._wake: asyncio.TimerHandle | None = None

    async def submit(self, items: Sequence[Item], *, deadline: float) -> list[Outcome]:
        """Answer the items of one request, in order. `deadline` is a time of the loop's clock.

        Raises `RequestError` with code `queue_full`, at once, when they do not all fit into the queue. If the caller
        is cancelled, what still waits is dropped before it is computed.
        """
        added = sum(len(item.payload.data) for item in items)
        waiting = len(self._queue)
        if (
            waiting + len(items) > self._limits.max_queue_size
            or self._queued_bytes + added > self._limits.max_queue_bytes
        ):
            self._metrics.rejected("queue_full")
            raise RequestError(f"{waiting} requests are waiting already", code="queue_full")
        entries = [self._enqueue(item, deadline) for item in items]
        self._dispatch()
        try:
            return [await entry.future for entry in entries]
        finally:
            for entry in entries:
                entry.expiry.cancel()
                self._withdraw(entry)

    async def close(self) -> None:
        """Wait until all that was taken is answered."""
        while self._running:
            await asyncio.wait(self._running)

    def _enqueue(self, item: Item, deadline: float) -> _Entry:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        entry = _Entry(item, future, loop.time(), loop.call_at(deadline, self._expire, future))
        self._queue.append(entry)
        self._queued_bytes += entry.size
        self._metrics.queue(len(self._queue), self._queued_bytes)
        return entry

    def _expire(self, future: "asyncio.Future[Outcome]") -> None:
        if not future.done():
            future.set_result(
                Outcome(RequestError("the answer was not ready before the deadline", code="deadline_exceeded"))
            )

    def _withdraw(self, entry: _Entry) -> None:
        """Take an entry out of the queue if it still waits there: its caller is gone or its deadline has passed."""
        if entry in self._queue:
            self._queue.remove(entry)
            self._queued_bytes -= entry.size
            self._metrics.queue(len(self._queue), self._queued_bytes)

    def _dispatch(self) -> None:
        while self._queue and self._free_slots and (reason := self._why_close()):
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), self._limits.max_batch_size))]
            self._queued_bytes -= sum(entry.size for entry in batch)
            self._metrics.queue(len(self._queue), self._queued_bytes)
            batch = [entry for entry in batch if not entry.future.done()]  # expired ones are never computed
            if not batch:
                continue
            self._metrics.batch(len(batch), reason)
            self._free_slots -= 1
            task = asyncio.get_running_loop().create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _why_close(self) -> Reason | None:
        """Why the next batch closes now, or `None` when it is to wait; then `_dispatch` is called again in time."""
        if len(self._queue) >= self._limits.max_batch_size:
            return "full"
        if not self._limits.max_queue_delay:
            return "drained"
        loop = asyncio.get_running_loop()
        due = self._queue[0].queued_at + self._limits.max_queue_delay
        if loop.time() >= due:
            return "delay"
        if self._wake is None or self._wake.cancelled() or self._wake.when() <= loop.time():
            self._wake = loop.call_at(due, self._dispatch)
        return None

    async def _run(self, batch: list[_Entry]) -> None:
        started = asyncio.get_running_loop().time()
        try:
            outcomes = await self._runner.submit([entry.item for entry in batch])
        except Exception as error:
            logs.failure("the runner failed", error)
            outcomes = [Outcome(RequestError("the model could not be reached", code="internal"))] * len(batch)
        self._free_slots += 1
        for entry, outcome in zip(batch, outcomes, strict=True):
            if not entry.future.done():
                timings = replace(outcome.timings, queue=started - entry.queued_at)
                self._metrics.timings(timings)
                entry.future.set_result(replace(outcome, timings=timings))
        self._dispatch()
