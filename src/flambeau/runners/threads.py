"""Replicas in threads of this process, one each: for `flask run`, notebooks, tests and small models."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar, get_args

from flambeau.errors import EngineError, RequestError, SetupError
from flambeau.runners.base import Batch, ReplicaCounts, ReplicaInfo, Restart, RunnerState, Slot
from flambeau.runners.replica import Replica
from flambeau.telemetry import logs
from flambeau.types import Outcome, WorkerView

_GIVE_UP_SECONDS = 5.0  # for the other replicas to end, when one cannot start


class ThreadsRunner:
    """A thread per replica. Each opens its replica, warms it up, and answers batches until the runner is closed."""

    elastic = False  # a thread cannot be ended, and a model in it is freed when Python likes to

    def __init__(self, open_replica: Callable[[], Replica], *, name: str, replicas: int) -> None:
        self._open_replica = open_replica
        self._name = name
        self._replicas = replicas
        self._free = 0
        self._warm = False
        self._closed = False
        self._on_change: Callable[[], None] = lambda: None
        self._work: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    async def start(self, on_change: Callable[[], None]) -> ReplicaInfo:
        self._on_change = on_change
        loop = asyncio.get_running_loop()
        opened: list[asyncio.Future[ReplicaInfo]] = []
        for index in range(self._replicas):
            ready: asyncio.Future[ReplicaInfo] = loop.create_future()
            thread = threading.Thread(
                target=self._live, args=(_Reply(loop, ready),), name=f"replica-{index}", daemon=True
            )
            self._threads.append(thread)
            opened.append(ready)
            thread.start()
        results = await asyncio.gather(*opened, return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures:
            await self.close(timeout=_GIVE_UP_SECONDS)
            raise failures[0]
        self._free = self._replicas
        self._warm = True
        return opened[0].result()

    def reserve(self, *, alone: bool = False, behind: bool = False) -> Slot | None:
        if not self._free or self._closed:
            return None
        self._free -= 1
        return self._run

    def slots(self) -> int:
        return self._replicas

    async def _run(self, batch: Batch, *, hasty: bool = False) -> list[Outcome]:  # a thread cannot be ended early
        loop = asyncio.get_running_loop()
        done: asyncio.Future[list[Outcome]] = loop.create_future()
        self._work.put(_Job(batch, _Reply(loop, done)))
        try:
            return await done
        finally:
            self._free += 1
            loop.call_soon(self._on_change)

    def state(self) -> RunnerState:
        lives = not self._closed and any(thread.is_alive() for thread in self._threads)
        return RunnerState.READY if lives else RunnerState.FAILED

    def scale(self, replicas: int) -> None:
        raise NotImplementedError("threads are as many as were started")

    def counts(self) -> ReplicaCounts:
        return ReplicaCounts(self._replicas, self._replicas if self._warm else 0, self._replicas - self._free)

    def workers(self) -> list[WorkerView]:
        if not self._warm:
            return [WorkerView("starting")] * self._replicas
        idle = self._free
        return [WorkerView("idle")] * idle + [WorkerView("busy")] * (self._replicas - idle)

    def memory(self) -> int:
        return 0

    def restarts(self) -> Mapping[str, int]:
        return dict.fromkeys(map(str, get_args(Restart)), 0)  # a thread ends with its process and never before

    async def close(self, timeout: float) -> None:
        self._closed = True
        for _ in self._threads:
            self._work.put(None)  # a thread finishes its running batch first
        await asyncio.to_thread(self._join, timeout)

    def _join(self, timeout: float) -> None:
        for thread in self._threads:
            thread.join(timeout / len(self._threads))

    def _live(self, ready: "_Reply[ReplicaInfo]") -> None:
        try:
            replica = self._open_replica()
            replica.warm_up()
        except SetupError as error:
            ready.fail(error)
            return
        except BaseException as error:  # whatever it is, `start` must report it
            logs.LOGGER.debug("%s cannot be loaded", self._name, exc_info=error)
            ready.fail(EngineError(f"{self._name} cannot be loaded: {type(error).__name__}: {error}"))
            return
        ready.give(ReplicaInfo(replica.device, replica.cost))
        while (work := self._work.get()) is not None:
            work.reply.give(_answer(replica, work.batch))
        try:
            replica.close()
        except BaseException as error:  # no caller is left to raise it to
            logs.failure("a replica cannot be closed", error)


def _answer(replica: Replica, batch: Batch) -> list[Outcome]:
    try:
        return replica.run([work.item for work in batch])
    except BaseException as error:  # whatever it is, it must not end the thread
        logs.failure("a batch failed as a whole", error)
        return [Outcome(RequestError("the model failed on this input", code="model_error")) for _ in batch]


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Reply(Generic[T]):
    """The way back from a replica's thread to a future on the loop."""

    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[T]"

    def give(self, result: T) -> None:
        self._on_loop(lambda: self.future.set_result(result))

    def fail(self, error: BaseException) -> None:
        self._on_loop(lambda: self.future.set_exception(error))

    def _on_loop(self, step: Callable[[], None]) -> None:
        def unless_given_up() -> None:
            if not self.future.done():
                step()

        # The loop is closed if the process ends in the middle of a batch: then nobody waits any more.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(unless_given_up)


@dataclass(frozen=True, slots=True)
class _Job:
    batch: Batch
    reply: _Reply[list[Outcome]]
