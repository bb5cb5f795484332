"""Replicas in worker processes, one each. Whatever happens to a worker, the front learns of it in milliseconds.

Workers are spawned, never forked from a process with threads. Their sockets, their sentinels and their batches belong
to the loop. A lost worker is first taken out of the dispatch set; then its unanswered batches are handed back by
raising `WorkerLostError`; then another worker is started.

Each worker has a place, and each place a supervisor, which keeps it filled. `scale` opens further places, and closes
the last ones: their workers leave the dispatch set, answer what they have, and end.
"""

import asyncio
import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_args

import msgspec

from flambeau.errors import EngineError, SetupError
from flambeau.runners.base import (
    Batch,
    Loss,
    ReplicaCounts,
    ReplicaInfo,
    ReplicaSpec,
    Restart,
    RunnerState,
    Slot,
    WorkerLostError,
)
from flambeau.runners.losses import LossHistory
from flambeau.runners.worker_process import OomKills, WorkerProcess
from flambeau.settings.service import Settings
from flambeau.system.process import proportional_bytes, resident_bytes
from flambeau.telemetry import logs
from flambeau.types import Outcome, WorkerView

_HASTY_SHARE, _HASTY_SECONDS = 1 / 8, 0.5  # the time of a hasty batch: a share of --compute-timeout, and at least this
_PAUSE_AFTER_FAILURE = 1.0  # seconds, after an error of our own in `_supervise`


@dataclass(eq=False, slots=True)
class _WorkerPlace:
    """A place for a worker. `proven`: one has been warm here, so that the place is kept whatever becomes of it."""

    wide: bool = False
    worker: WorkerProcess | None = None  # the warm one
    proven: bool = False
    supervisor: "asyncio.Task[None] | None" = None


class ProcessesRunner:
    """The workers of one model."""

    elastic = True

    def __init__(
        self,
        spec: ReplicaSpec,
        settings: Settings,
        *,
        replicas: int,
        has_machine: Callable[[], bool] = lambda: True,
    ) -> None:
        """`has_machine`: whether no other model computes meanwhile."""
        self._spec = spec
        self._settings = settings
        self._replicas = replicas  # to start with
        self._has_machine = has_machine
        self._workers: set[WorkerProcess] = set()  # all whose process may still exist
        self._ready: list[WorkerProcess] = []
        self._leaving: set[WorkerProcess] = set()  # which have a batch, and get no other
        self._places: list[_WorkerPlace] = []
        self._restarts: dict[str, int] = dict.fromkeys(get_args(Restart), 0)
        self._tasks: set[asyncio.Task[None]] = set()  # supervisors, and the ends of workers
        self._given_up = 0
        self._generations = 0
        self._oom_kills = OomKills()
        self._losses = LossHistory(spec.name)
        self._closed = False
        self._on_change: Callable[[], None] = lambda: None

    async def start(self, on_change: Callable[[], None]) -> ReplicaInfo:
        self._on_change = on_change
        try:
            opened = [await self._spawn(wide=index == 0) for index in range(self._replicas)]
            results = await asyncio.gather(*(worker.started for worker in opened), return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    raise result if isinstance(result, SetupError) else self._cannot_start(result)
        except BaseException:
            await self._end_all()
            raise
        for index, worker in enumerate(opened):
            place = _WorkerPlace(wide=index == 0)
            self._put_in(place, worker)
            self._open(place)
        self.scale(self._replicas)  # it may have changed meanwhile
        costs = [warm.cost for warm in (worker.started.result() for worker in opened) if warm.cost is not None]
        # Workers disturb each other while they warm up: trust the measurement in which a batch gains least.
        return ReplicaInfo(
            opened[0].started.result().device, max(costs, key=lambda cost: cost.two / cost.one, default=None)
        )

    def scale(self, replicas: int) -> None:
        self._replicas = replicas
        if not self._places or self._closed:  # not started yet, or ended
            return
        while len(self._places) < replicas:
            self._open(_WorkerPlace())
        while len(self._places) > replicas:
            self._close_last()

    def _open(self, place: _WorkerPlace) -> None:
        self._places.append(place)
        place.supervisor = asyncio.get_running_loop().create_task(self._supervise(place))
        self._keep(place.supervisor)

    def _close_last(self) -> None:
        """Close the last place. Its worker answers what it has; one that is still starting ends now."""
        place = self._places.pop()
        assert place.supervisor is not None
        place.supervisor.cancel()
        if (worker := place.worker) is None:
            return
        self._ready.remove(worker)
        if worker.busy:
            self._leaving.add(worker)
        else:
            self._dismiss(worker)

    def _dismiss(self, worker: WorkerProcess) -> None:
        """End a worker that has no place any more. If it was lost meanwhile, that counts."""
        if worker.lost.done():
            self._note_loss(worker, worker.lost.result())
        else:
            self._keep(asyncio.get_running_loop().create_task(worker.end()))

    def _keep(self, task: "asyncio.Task[None]") -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def reserve(self, *, alone: bool = False, behind: bool = False) -> Slot | None:
        for worker in () if self._closed else self._ready:
            if not worker.busy and worker.alive:
                worker.busy = True
                return functools.partial(self._run, worker)
        return None

    def slots(self) -> int:
        return len(self._ready)

    def state(self) -> RunnerState:
        if self._ready and not self._closed:
            return RunnerState.READY
        return RunnerState.FAILED if self._losses.failed or self._closed else RunnerState.RESTARTING

    def counts(self) -> ReplicaCounts:
        busy = sum(worker.busy for worker in self._ready)
        return ReplicaCounts(len(self._places) or self._replicas, len(self._ready), busy, self._given_up)

    def workers(self) -> list[WorkerView]:
        if not self._places:
            return [WorkerView("starting")] * self._replicas
        found = [place.worker for place in list(self._places)]
        return [
            WorkerView("busy" if worker.busy else "idle", resident_bytes(worker.pid))
            if worker is not None
            else WorkerView("starting")
            for worker in found
        ]

    def memory(self) -> int:
        found = [place.worker for place in list(self._places)]
        return sum(proportional_bytes(worker.pid) for worker in found if worker is not None)

    def restarts(self) -> Mapping[str, int]:
        return dict(self._restarts)

    async def close(self, timeout: float) -> None:
        self._closed = True
        for place in self._places:
            if place.supervisor is not None:
                place.supervisor.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if running := [future for worker in (*self._ready, *self._leaving) for future in worker.unanswered()]:
            await asyncio.wait(running, timeout=timeout)
        await self._end_all()
        self._ready.clear()
        self._on_change()

    async def _run(self, worker: WorkerProcess, batch: Batch, *, hasty: bool = False) -> list[Outcome]:
        timeout = self._settings.compute_timeout
        if hasty:
            timeout = min(timeout, max(_HASTY_SHARE * timeout, _HASTY_SECONDS))
        try:
            busy = [other for other in (*self._ready, *self._leaving) if other.busy]
            wide = worker.wide and busy == [worker] and self._has_machine()
            outcomes = await worker.answer(batch, timeout=timeout, wide=wide)
        finally:
            worker.busy = False
            if worker in self._leaving:
                self._leaving.remove(worker)
                if not self._closed:
                    self._dismiss(worker)
            asyncio.get_running_loop().call_soon(self._on_change)
        self._losses.note_answer()
        return outcomes

    async def _supervise(self, place: _WorkerPlace) -> None:
        """Replace the place's worker whenever it is lost, for ever, whatever goes wrong meanwhile.

        A place in which no worker was warm yet is given up when the first one cannot start.
        """
        while True:
            try:
                if (lost := place.worker) is not None:
                    how = await asyncio.shield(lost.lost)
                    self._take_out(place, lost, how)
                if (worker := await self._replace(place)) is None:
                    self._places.remove(place)
                    self._given_up += 1
                    self._on_change()
                    return
                self._put_in(place, worker)
                self._on_change()
            except Exception as error:
                logs.failure("a worker's place cannot be kept: it is tried again", error)
                await asyncio.sleep(_PAUSE_AFTER_FAILURE)

    def _take_out(self, place: _WorkerPlace, worker: WorkerProcess, how: Loss) -> None:
        place.worker = None
        self._ready.remove(worker)
        self._note_loss(worker, how)
        self._on_change()

    def _note_loss(self, worker: WorkerProcess, how: Loss) -> None:
        self._restarts[how] += 1
        logs.event("worker lost", level=logging.WARNING, model=self._spec.name, pid=worker.pid, how=how)
        self._losses.note_loss(how)

    def _put_in(self, place: _WorkerPlace, worker: WorkerProcess) -> None:
        place.worker, place.proven = worker, True
        self._ready.append(worker)
        self._ready.sort(key=lambda each: not each.wide)  # the wide worker first: `reserve` takes the first free one
        self._losses.failed = False

    async def _replace(self, place: _WorkerPlace) -> WorkerProcess | None:
        """Start workers until one is warm. The pause before a start grows with the crashes since the last answer.

        `None`: none was ever warm in this place, and this one cannot start either. That says nothing of those that
        answer: there may only be no memory for another.
        """
        while True:
            await asyncio.sleep(self._losses.pause())
            try:
                worker = await self._spawn(wide=place.wide)
                try:
                    await asyncio.shield(worker.started)
                except asyncio.CancelledError:  # the place was closed
                    await worker.end()
                    raise
                logs.event("worker ready", model=self._spec.name, pid=worker.pid, generation=worker.generation)
                return worker
            except (SetupError, WorkerLostError, OSError) as error:
                self._restarts["failed_start"] += 1
                killed = isinstance(error, WorkerLostError) and error.how == "killed"
                if not (place.proven or killed):
                    logs.event("a further worker cannot start", level=logging.ERROR, model=self._spec.name, error=error)
                    return None
                self._losses.note_crash()
                again = f"{self._losses.pause():.1f} s"
                logs.event(
                    "worker cannot start", level=logging.ERROR, model=self._spec.name, error=error, again_in=again
                )
                self._on_change()

    async def _spawn(self, *, wide: bool) -> WorkerProcess:
        """Start a worker. Only one of them may be `wide`: a second session for all cores takes memory."""
        spec = self._spec if wide else msgspec.structs.replace(self._spec, wide_threads=0)
        self._generations += 1
        self._workers = {worker for worker in self._workers if not worker.gone.is_set()}
        worker = WorkerProcess(spec, self._settings, self._oom_kills, generation=self._generations)
        self._workers.add(worker)
        try:
            await worker.connect()
        except asyncio.CancelledError:  # its place was closed
            await worker.end()
            raise
        return worker

    async def _end_all(self) -> None:
        await asyncio.gather(*(worker.end() for worker in self._workers))

    def _cannot_start(self, error: BaseException) -> SetupError:
        return EngineError(f"{self._spec.name} cannot be loaded: its worker {error}")
