"""Dynamic batching: a bounded queue in front of a runner's slots, and the retry of batches whose worker was lost.

Slot first: entries wait for a free slot, and a free slot takes its share of the queue, up to `max_batch_size`; the
other slots will take theirs soon. So batches grow by themselves under load, and a lone request never waits for others.
Entries that arrive in one turn of the loop are dispatched together. Everything here runs on the loop, without locks. A
batch of one is a batch like any other.

Requests are served in turn, one item each, and heavy ones leave a slot to the others (`flambeau.serving.fair_queue`).

Inference can be repeated, so a batch whose worker was lost is retried: its entries become suspects, which go before the
queue. Suspects run alone, one at a time, so that a second loss names the input at fault.

Example: a worker crashes over the batch A, B, C. All three become suspects. A runs alone and is answered. B runs alone
and its worker crashes again: B gets `model_crashed` and goes into quarantine. C runs alone and is answered.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from flambeau.errors import Code, RequestError
from flambeau.runners.base import Runner, RunnerState, Slot, Work, WorkerLostError
from flambeau.runners.watchdog import Watchdog
from flambeau.serving.batch_sizes import BatchSizes
from flambeau.serving.deadlines import Deadlines
from flambeau.serving.entries import Entry, Request
from flambeau.serving.fair_queue import FairQueue, Heavies, is_heavy
from flambeau.serving.quarantine import Quarantine
from flambeau.system.eager import Eager
from flambeau.telemetry import logs
from flambeau.telemetry.metrics import ModelMetrics
from flambeau.types import Item, Outcome, Timings

Reason = Literal["full", "drained", "delay", "suspect"]
"""Why a batch closed: it was full, a slot was free and there is no delay to wait for more, its oldest entry had waited
`max_queue_delay`, or its one entry is a suspect."""

_BLAME: dict[str, Code] = {"crashed": "model_crashed", "hung": "model_timeout", "out_of_memory": "out_of_memory"}
_SENTENCES: dict[Code, str] = {
    "model_crashed": "the model's process crashed over this input",
    "model_timeout": "the model gave no answer to this input in time",
    "out_of_memory": "the model ran out of memory over this input",
}
_ATTEMPTS = 3  # losses that the entry may have caused
_ATTEMPTS_WHEN_KILLED = 8  # kills from outside, which no entry caused
_LONG = 0.1  # seconds; a suspect that takes less needs no pause after it
_LATE = 0.02  # seconds; if a deadline is noticed later than this, the loop stood still


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How batches form and how much may wait: in items, seconds, items and bytes."""

    max_batch_size: int
    max_queue_delay: float
    max_queue_size: int
    max_queue_bytes: int


LARGEST_BATCH = 32 * 1024 * 1024
"""Most bytes in a batch of several items. A larger item is computed alone, and no frame exceeds what a worker takes."""


class BatchQueue:
    """The queue of one model. Every entry gets exactly one outcome, or is dropped when its caller is gone."""

    def __init__(self, runner: Runner, limits: BatchLimits, *, metrics: ModelMetrics) -> None:
        self._runner = runner
        self.limits = limits
        """May be replaced: the next request and the next batch heed it."""
        self.sizes = BatchSizes(limits.max_batch_size)
        """Taken from the limits until the replicas have been measured."""
        self._metrics = metrics
        self._requests = itertools.count()
        self._deadlines = Deadlines(self._expire)
        self._queue: FairQueue[Entry] = FairQueue()  # light requests
        self._heavies: Heavies[Entry] = Heavies()
        self._suspects: deque[Entry] = deque()
        self._suspect_runs = False
        self._suspects_rest = 0.0
        self._waiting_bytes = 0
        self._quarantine = Quarantine()
        self._running = 0  # batches
        self._wake_at: float | None = None
        self._dispatching = False
        self._closing: asyncio.Future[None] | None = None
        metrics.watch_queue(lambda: (self._count_waiting(), self._waiting_bytes))
        metrics.expect_batches(get_args(Reason))

    async def submit(self, items: Sequence[Item], *, deadline: float) -> list[Outcome]:
        """Answer the items of one request, in order. `deadline` is a time of the loop's clock.

        Raises `RequestError` at once when they do not all fit into the queue: with code `queue_full`, or, if they never
        will, `too_many_items` or `body_too_large`. If the caller is cancelled, entries that still wait are dropped and
        never computed.
        """
        held = None
        if self._quarantine.inputs:
            held = [await self._quarantine.holds(item.payload) for item in items]
        now = asyncio.get_running_loop().time()
        sizes = [item.payload.size for item in items]
        size = sizes[0] if len(sizes) == 1 else sum(sizes)
        self._refuse_if_full(len(items), size)
        number, heavy = next(self._requests), is_heavy(len(items), size)
        request = Request(len(items))
        queue = self._heavies.queue if heavy else self._queue
        entries = []
        for place, item in enumerate(items):
            entry = Entry(item, sizes[place], request, now, deadline, number, place, heavy)
            entries.append(entry)
            if held is not None and held[place]:
                self._refuse_held(entry)
                continue
            self._deadlines.add(entry)
            entry.waits = True
            queue.add(number, entry)
            self._waiting_bytes += entry.size
        if not self._dispatching:
            self._dispatch_soon()
        try:
            return await request.answered
        finally:
            if request.left:
                request.gone = True
                for entry in entries:
                    self._deadlines.remove(entry)
                    if entry.waits:
                        self._withdraw(entry)

    def _refuse_if_full(self, items: int, size: int) -> None:
        limits, waiting = self.limits, self._queue.size + self._heavies.queue.size + len(self._suspects)
        if waiting + items <= limits.max_queue_size and self._waiting_bytes + size <= limits.max_queue_bytes:
            return
        full = f"the queue is full: {waiting} items are waiting, of {self._waiting_bytes} bytes"
        refusal = RequestError(f"{full}: send the request again later", code="queue_full")
        if items > limits.max_queue_size:
            message = f"{items} items in one request: the queue takes at most {limits.max_queue_size}"
            refusal = RequestError(message, code="too_many_items")
        elif size > limits.max_queue_bytes:
            message = f"{size} bytes in one request: the queue takes at most {limits.max_queue_bytes}"
            refusal = RequestError(message, code="body_too_large")
        self._metrics.rejected(refusal.code)
        raise refusal

    def _dispatch_soon(self) -> None:
        """Dispatch at the end of this turn of the loop, so that whatever else arrives in it joins the same batches."""
        self._dispatching = True
        asyncio.get_running_loop().call_soon(self.dispatch)

    def dispatch(self) -> None:
        """Give waiting entries to free slots. Called when an entry comes, a slot is freed, or the runner changes."""
        self._dispatching = False
        if not self._count_waiting():
            return
        if self._runner.state() is RunnerState.FAILED:
            self._refuse_all()
        if self._suspects and self._is_suspects_turn():
            if (slot := self._runner.reserve(alone=True)) is None:
                return
            self._suspect_runs = True
            self._begin(slot, [self._suspects.popleft()], "suspect")
        slots = self._runner.slots()
        while self._heavies.queue.size and self._is_heavies_turn(slots):
            if (reason := self._why_close(self._heavies.queue)) is None:
                break
            if (slot := self._runner.reserve()) is None:
                return
            self._begin(slot, self._take(self._heavies.queue, slots), reason)
        sharing = slots - self._heavies.running
        while self._queue.size and (reason := self._why_close(self._queue)):
            # A full batch gains nothing by waiting here, unless a heavy one might keep it waiting there.
            behind = reason == "full" and not self._heavies.running
            if (slot := self._runner.reserve(behind=behind)) is None:
                return
            self._begin(slot, self._take(self._queue, sharing), reason)
            sharing -= 1

    def _take(self, queue: FairQueue[Entry], sharing: int) -> list[Entry]:
        """Take one slot's share out of `sharing` slots: at least one entry, and `LARGEST_BATCH` bytes if several.

        Example: with 8 entries waiting and 2 slots, the slot takes 4.
        """
        share = -(-queue.size // max(1, sharing))
        size = min(max(share, self.sizes.least), self.sizes.most, queue.size)
        if self._waiting_bytes <= LARGEST_BATCH:  # nearly always
            return [queue.take() for _ in range(size)]
        batch = [queue.take()]
        held = batch[0].size
        while len(batch) < size and (held := held + queue.first().size) <= LARGEST_BATCH:
            batch.append(queue.take())
        return batch

    def _is_heavies_turn(self, slots: int) -> bool:
        now = asyncio.get_running_loop().time()
        if self._heavies.may_go(now, slots=slots, others_wait=self._queue.size > 0):
            return True
        if not self._queue.size:  # nothing else might call `dispatch` when light requests count as absent
            self._wake_at_latest(self._heavies.alone_at)
        return False

    def _is_suspects_turn(self) -> bool:
        """Whether a suspect may run. Suspects go first, one at a time.

        If there is only one slot, a suspect that took long is followed by a pause of the same length for the other
        entries: inputs that hang leave them half of the time.
        """
        if self._suspect_runs:
            return False
        resting = asyncio.get_running_loop().time() < self._suspects_rest
        return not (resting and (self._queue.size or self._heavies.queue.size) and self._runner.slots() <= 1)

    async def close(self) -> None:
        """Wait until every accepted entry is answered."""
        if not self._is_idle():
            if self._closing is None or self._closing.done():
                self._closing = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._closing)

    def _refuse_held(self, entry: Entry) -> None:
        self._metrics.rejected("poison_input")
        message = "this input made the model crash or hang before, and is not tried again"
        entry.resolve(Outcome(RequestError(message, code="poison_input")))

    def _queue_of(self, entry: Entry) -> FairQueue[Entry]:
        return self._heavies.queue if entry.heavy else self._queue

    def _expire(self, entry: Entry) -> None:
        if not entry.waits and asyncio.get_running_loop().time() > entry.deadline + _LATE:
            Watchdog(0, lambda: self._end_of(entry))  # the loop stood still: an answer may be unread
        else:
            self._end_of(entry)

    def _end_of(self, entry: Entry) -> None:
        if entry.done:
            return
        self._fail(entry, RequestError("the answer was not ready before the deadline", code="deadline_exceeded"))
        if entry.waits:
            self._metrics.rejected("deadline_exceeded")
            self._withdraw(entry)  # now, not when its caller wakes up: an expired entry is never computed

    def _withdraw(self, entry: Entry) -> None:
        """Remove a waiting entry: its caller is gone, or its deadline has passed."""
        if entry in self._suspects:
            self._suspects.remove(entry)
        else:
            self._queue_of(entry).remove(entry.number, entry)
        entry.waits = False
        self._waiting_bytes -= entry.size
        self._end_if_idle()

    def _count_waiting(self) -> int:
        return self._queue.size + self._heavies.queue.size + len(self._suspects)

    def _is_idle(self) -> bool:
        return not self._running and not self._count_waiting()

    def _end_if_idle(self) -> None:
        if self._closing is not None and not self._closing.done() and self._is_idle():
            self._closing.set_result(None)

    def _why_close(self, queue: FairQueue[Entry]) -> Reason | None:
        """Why the queue's next batch closes now; `None` if it has to wait: `dispatch` is then called again in time."""
        if queue.size >= self.sizes.most:
            return "full"
        if not self.limits.max_queue_delay:
            return "drained"
        due = min(entry.queued_at for entry in queue.firsts()) + self.limits.max_queue_delay
        if asyncio.get_running_loop().time() >= due:
            return "delay"
        self._wake_at_latest(due)
        return None

    def _wake_at_latest(self, due: float) -> None:
        if self._wake_at is None or self._wake_at > due:
            self._wake_at = due
            asyncio.get_running_loop().call_at(due, self._wake)

    def _wake(self) -> None:
        self._wake_at = None  # a timer may fire a little early: `dispatch` then sets another
        self.dispatch()

    def _begin(self, slot: Slot, batch: list[Entry], reason: Reason) -> None:
        for entry in batch:
            entry.waits = False
            self._waiting_bytes -= entry.size
        if batch[0].heavy:
            self._heavies.began()
        self._metrics.batch(len(batch), reason)
        self._running += 1
        # Not now: a batch that ended at once, because its worker is gone, would change what `dispatch` is looking at.
        running = self._run(slot, batch, suspect=reason == "suspect")
        asyncio.get_running_loop().call_soon(Eager, running, self._end)

    def _end(self, _: None, error: BaseException | None) -> None:
        if error is not None and not isinstance(error, asyncio.CancelledError):
            logs.failure("a batch ended unexpectedly", error)
        self._running -= 1
        # The runner tells of the free slot, but may do so before the entries of a lost worker are suspects.
        if self._count_waiting() and not self._dispatching:
            self._dispatch_soon()
        self._end_if_idle()

    async def _run(self, slot: Slot, batch: list[Entry], *, suspect: bool) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        # Most entries of a lost batch are not at fault, and should not wait out the full timeout of those that are.
        hasty = suspect and bool(self._suspects) and batch[0].hung and not batch[0].hurried
        try:
            outcomes = await slot([Work(entry.item, entry.deadline - started) for entry in batch], hasty=hasty)
            if len(outcomes) != len(batch):
                raise ValueError(f"{len(outcomes)} outcomes for {len(batch)} items")
        except WorkerLostError as loss:
            if hasty and loss.how == "hung":
                batch[0].hurried = True
                self._suspect(batch)
            else:
                self._take_back(batch, loss)
        except Exception as error:
            logs.failure("the runner failed", error)
            for entry in batch:
                self._fail(entry, RequestError("the model could not be reached", code="internal"))
        else:
            for entry, outcome in zip(batch, outcomes, strict=True):
                spent = outcome.timings
                timings = Timings(started - entry.queued_at, spent.preprocess, spent.inference, spent.postprocess)
                self._metrics.timings(timings)
                if not entry.done:
                    self._deadlines.remove(entry)
                    entry.resolve(Outcome(outcome.result, timings))
        finally:
            now = loop.time()
            took = now - started
            if batch[0].heavy:
                self._heavies.ended(now, took=took)
            else:
                self._heavies.others_ran(now)
            if suspect:
                self._suspect_runs = False
                self._suspects_rest = now + (took if took > _LONG else 0.0)

    def _take_back(self, batch: list[Entry], loss: WorkerLostError) -> None:
        """Handle a lost worker. An entry that was alone with it is at fault, unless the worker was killed from outside.

        The others become suspects, up to `_ATTEMPTS` losses or `_ATTEMPTS_WHEN_KILLED` kills.
        """
        blame = _BLAME.get(loss.how)
        alone = len(batch) == 1
        if blame and alone:  # remember it even if nobody waits for its answer any more
            remember = self._quarantine.add_hang if loss.how == "hung" else self._quarantine.add
            remember(batch[0].item.payload)
        again = []
        for entry in batch:
            entry.hung |= loss.how == "hung"
            if blame:
                entry.losses += 1
            else:
                entry.kills += 1
            if blame and alone:
                self._fail(entry, RequestError(_SENTENCES[blame], code=blame))
            elif entry.losses >= _ATTEMPTS or entry.kills >= _ATTEMPTS_WHEN_KILLED:
                self._fail(entry, RequestError("the model's process was lost too often", code="model_crashed"))
            else:
                again.append(entry)
        self._suspect(again)

    def _suspect(self, entries: list[Entry]) -> None:
        """Make entries suspects, the oldest first. One that was ended early is not blamed yet: it gets its full time
        after the other suspects have had theirs.
        """
        again = [entry for entry in entries if not entry.done and not entry.request.gone]
        for entry in again:
            entry.waits = True
            self._waiting_bytes += entry.size
        order = sorted((*again, *self._suspects), key=lambda entry: (entry.hurried, entry.number, entry.place))
        self._suspects = deque(order)
        self._metrics.retried(len(again))

    def _refuse_all(self) -> None:
        """No replica will answer: fail every waiting entry now rather than at its deadline."""
        for entry in (*self._suspects, *self._heavies.queue, *self._queue):
            entry.waits = False
            message = "the model is not available: its workers crash again and again, or are gone"
            self._fail(entry, RequestError(message, code="model_unavailable"))
        self._suspects.clear()
        self._heavies.queue.clear()
        self._queue.clear()
        self._waiting_bytes = 0
        self._end_if_idle()

    def _fail(self, entry: Entry, error: RequestError) -> None:
        if not entry.done:
            self._deadlines.remove(entry)
            entry.resolve(Outcome(error))
