"""Replicas on the nodes of a Ray cluster. Ray places them; a replica that is lost is replaced wherever there is room.

Each replica has a place, and each place a supervisor, which keeps it filled: it has Ray start a host, waits until it
is warm, and starts over when it is lost. A batch whose replica was lost is handed back by raising `WorkerLostError`.
Actors are never restarted by Ray: a new one is another replica, warm before it gets a batch.
"""

import asyncio
import functools
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import msgspec

from flambeau.errors import EngineError, SetupError
from flambeau.runners.base import (
    Batch,
    ReplicaCounts,
    ReplicaInfo,
    ReplicaSpec,
    Restart,
    RunnerState,
    Slot,
    WorkerLostError,
)
from flambeau.runners.losses import LossHistory
from flambeau.runners.ray.connection import CONNECTION
from flambeau.runners.ray.draining import DRAINING, pause
from flambeau.runners.ray.host import ReplicaHost
from flambeau.runners.ray.messages import HostOrder
from flambeau.runners.ray.parcel import BundleParcel
from flambeau.runners.ray.replica import RemoteReplica
from flambeau.settings.service import Settings
from flambeau.telemetry import logs
from flambeau.types import Outcome, WorkerState, WorkerView

_PAUSE = 1.0  # seconds, after an error of our own in `_supervise`, and after a replica that was lost while it started
_TELL_AFTER = 10.0  # seconds without room after which the log says so


@dataclass(eq=False, slots=True)
class _ReplicaPlace:
    """A place for a replica. `first` is how its first start ended."""

    index: int
    first: "asyncio.Future[ReplicaInfo]"
    replica: RemoteReplica | None = None  # the one that has been warm
    proven: bool = False
    supervisor: "asyncio.Task[None] | None" = None


class RayRunner:
    """The replicas of one model."""

    elastic = True

    def __init__(self, spec: ReplicaSpec, settings: Settings, *, replicas: int) -> None:
        self._spec = msgspec.structs.replace(spec, wide_threads=0)  # a node's cores are Ray's to give
        self._settings = settings
        self._replicas = replicas  # to start with
        self._ray: Any = None
        self._parcel: BundleParcel | None = None
        self._places: list[_ReplicaPlace] = []
        self._order: list[RemoteReplica] = []  # those that were warm; who waits longest for a batch stands first
        self._restarts: Counter[str] = Counter()  # of replicas that are gone
        self._leaving: set[RemoteReplica] = set()  # which have batches, and get no other
        self._tasks: set[asyncio.Task[Any]] = set()
        self._watch: asyncio.Task[None] | None = None
        self._losses = LossHistory(spec.name)
        self._numbers = 0
        self._given_up = 0
        self._closed = False
        self._on_change: Callable[[], None] = lambda: None

    async def start(self, on_change: Callable[[], None]) -> ReplicaInfo:
        """Return when every replica is warm, or, after `--startup-timeout`, when at least one is.

        The others are warm when the cluster has room for them.
        """
        self._on_change = on_change
        self._ray = await CONNECTION.join(self._settings.ray_address)
        try:
            self._parcel = BundleParcel(self._ray, Path(self._spec.bundle))
            self.scale_from_start()
            self._watch = asyncio.get_running_loop().create_task(self._watch_nodes())
            self._keep(self._watch)
            first = [place.first for place in self._places]
            done, _ = await asyncio.wait(
                first, timeout=self._settings.startup_timeout, return_when=asyncio.FIRST_EXCEPTION
            )
            if error := next((each.exception() for each in done if each.exception() is not None), None):
                raise error
            if not done:
                raise self._no_room()
        except BaseException:
            await self._end_all()
            await CONNECTION.leave()
            raise
        infos = [each.result() for each in done]
        costs = [info.cost for info in infos if info.cost is not None]
        return ReplicaInfo(infos[0].device, max(costs, key=lambda cost: cost.two / cost.one, default=None))

    def scale_from_start(self) -> None:
        """Open the places that it starts with."""
        while len(self._places) < self._replicas:
            self._open()

    def scale(self, replicas: int) -> None:
        self._replicas = replicas
        if not self._places or self._closed:
            return
        self.scale_from_start()
        while len(self._places) > replicas:
            self._close_last()

    def _open(self) -> None:
        loop = asyncio.get_running_loop()
        place = _ReplicaPlace(len(self._places), loop.create_future())
        place.first.add_done_callback(lambda first: first.cancelled() or first.exception())  # if nobody asks
        self._places.append(place)
        place.supervisor = loop.create_task(self._supervise(place))
        self._keep(place.supervisor)

    def _close_last(self) -> None:
        """Close the last place. Its replica answers what it has, and ends."""
        place = self._places.pop()
        assert place.supervisor is not None
        place.supervisor.cancel()
        if place.replica is not None:
            self._let_go(place.replica)

    def _let_go(self, replica: RemoteReplica) -> None:
        """Have a replica answer what it has, and end."""
        self._order.remove(replica)
        if replica.busy:
            self._leaving.add(replica)
        else:
            self._dismiss(replica)

    def _dismiss(self, replica: RemoteReplica) -> None:
        self._restarts.update(replica.state.restarts)
        self._keep(asyncio.get_running_loop().create_task(replica.end()))

    def _keep(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def reserve(self, *, alone: bool = False, behind: bool = False) -> Slot | None:
        if self._closed:
            return None
        replica = next((each for each in self._order if not each.busy and each.alive), None)
        if replica is None and behind:
            replica = next((each for each in self._order if each.takes_another), None)
        if replica is None:
            return None
        replica.running += 1
        replica.alone = alone
        self._order.remove(replica)
        self._order.append(replica)
        return functools.partial(self._run, replica)

    async def _run(self, replica: RemoteReplica, batch: Batch, *, hasty: bool = False) -> list[Outcome]:
        try:
            outcomes = await replica.answer(batch, hasty=hasty)
        except WorkerLostError as loss:
            if loss.how != "killed":
                self._losses.note_loss(loss.how)
            raise
        finally:
            replica.running -= 1
            if replica in self._leaving and not replica.busy:
                self._leaving.remove(replica)
                if replica.lost.done():
                    self._restarts["killed"] += 1
                self._dismiss(replica)
            asyncio.get_running_loop().call_soon(self._on_change)
        self._losses.note_answer()
        return outcomes

    def slots(self) -> int:
        return sum(replica.alive for replica in self._order)

    def state(self) -> RunnerState:
        if self.slots() and not self._closed:
            return RunnerState.READY
        failed = [replica.state.failed for replica in self._order]
        if self._closed or self._losses.failed or (failed and all(failed)):
            return RunnerState.FAILED
        return RunnerState.RESTARTING

    def counts(self) -> ReplicaCounts:
        warm = [replica for replica in self._order if replica.alive]
        busy = sum(replica.busy for replica in warm)
        return ReplicaCounts(len(self._places) or self._replicas, len(warm), busy, self._given_up)

    def workers(self) -> list[WorkerView]:
        if not self._places:
            return [WorkerView("starting")] * self._replicas
        return [_view(place.replica) for place in list(self._places)]

    def memory(self) -> int:
        return 0  # none of this machine's that is known to be: the nodes' memory is Ray's to give

    def restarts(self) -> Mapping[str, int]:
        total = Counter(dict.fromkeys(get_args(Restart), 0)) + self._restarts
        for replica in list(self._order):
            total.update(replica.state.restarts)
        return {how: total[how] for how in get_args(Restart)}

    async def close(self, timeout: float) -> None:
        self._closed = True
        until = asyncio.get_running_loop().time() + timeout
        having = (*self._order, *self._leaving)
        while any(replica.busy for replica in having) and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.05)
        await self._end_all()
        self._order.clear()
        await CONNECTION.leave()
        self._on_change()

    async def _end_all(self) -> None:
        for task in (self._watch, *(place.supervisor for place in self._places)):
            if task is not None:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        ending = [*self._leaving, *(each.replica for each in self._places if each.replica is not None)]
        await asyncio.gather(*(replica.end() for replica in ending))

    async def _supervise(self, place: _ReplicaPlace) -> None:
        """Fill the place whenever it is empty, for ever, whatever goes wrong meanwhile.

        A place in which no replica was warm yet is given up when the first one cannot open the model.
        """
        while True:
            try:
                await asyncio.sleep(self._losses.pause())
                if (replica := await self._fill(place)) is None:
                    self._places.remove(place)
                    self._given_up += 1
                    self._on_change()
                    return
                while replica is not None:
                    place.replica, place.proven = replica, True
                    self._order.insert(0, replica)
                    self._losses.failed = False
                    self._on_change()
                    replica = await self._until_gone(place, replica)
            except Exception as error:
                logs.failure("a replica's place cannot be kept: it is tried again", error)
                await asyncio.sleep(_PAUSE)

    async def _until_gone(self, place: _ReplicaPlace, replica: RemoteReplica) -> RemoteReplica | None:
        """Return when a replica is lost; if its node is about to end, with a successor that is warm elsewhere.

        The old one answers until the successor can, or until it is lost after all.
        """
        moving: asyncio.Future[Any] = asyncio.ensure_future(replica.to_move.wait())
        lost: asyncio.Future[Any] = replica.lost
        successor: asyncio.Task[RemoteReplica | None] | None = None
        try:
            await asyncio.wait({lost, moving}, return_when=asyncio.FIRST_COMPLETED)
            if not replica.lost.done():
                logs.event(
                    "a replica moves, for its node is about to end", model=self._spec.name, replica=replica.number,
                    node=replica.where,
                )  # fmt: skip
                successor = asyncio.get_running_loop().create_task(self._fill(place))
                self._keep(successor)
                await asyncio.wait({lost, successor}, return_when=asyncio.FIRST_COMPLETED)
            if replica.lost.done():
                self._take_out(place, replica)
            else:
                place.replica = None
                self._let_go(replica)
            return None if successor is None else await successor
        except asyncio.CancelledError:
            done = successor is not None and successor.done() and not successor.cancelled()
            if done and successor is not None and (unused := successor.result()) is not None:
                self._dismiss(unused)
            raise
        finally:
            moving.cancel()
            if successor is not None:
                successor.cancel()

    async def _watch_nodes(self) -> None:
        """Have replicas moved from nodes that are about to end."""
        while True:
            await pause()
            ending = await DRAINING.now(self._ray)
            for replica in self._order:
                if replica.place is not None and replica.place.node in ending:
                    replica.to_move.set()

    def _take_out(self, place: _ReplicaPlace, replica: RemoteReplica) -> None:
        place.replica = None
        self._order.remove(replica)
        self._restarts["killed"] += 1
        self._dismiss(replica)
        self._on_change()

    async def _fill(self, place: _ReplicaPlace) -> RemoteReplica | None:
        """A warm replica. `None`: none was ever warm in this place, and this one cannot open the model."""
        while True:
            self._numbers += 1
            replica = RemoteReplica(
                self._ray, self._maker(self._numbers), model=self._spec.name, number=self._numbers,
                on_change=lambda: self._on_change(),
            )  # fmt: skip
            try:
                info = await self._begin(replica)
            except WorkerLostError:  # with its node, most likely
                await asyncio.sleep(_PAUSE)
            except SetupError as error:
                if not place.first.done():
                    place.first.set_exception(error)
                logs.event(
                    "a replica cannot start", level=logging.ERROR, model=self._spec.name, node=replica.where,
                    error=error,
                )  # fmt: skip
                if not place.proven:
                    return None
                self._losses.note_crash()
                self._on_change()
                await asyncio.sleep(self._losses.pause() or _PAUSE)
            else:
                logs.event("replica ready", model=self._spec.name, replica=replica.number, node=replica.where)
                if not place.first.done():
                    place.first.set_result(info)
                return replica

    async def _begin(self, replica: RemoteReplica) -> ReplicaInfo:
        """Start a replica, or end what was started of it."""
        assert self._parcel is not None
        waiting = asyncio.get_running_loop().call_later(_TELL_AFTER, self._tell_waiting, replica)
        try:
            return await replica.begin(self._parcel, self._host_order())
        except BaseException as error:
            if isinstance(error, SetupError | WorkerLostError):
                self._restarts["failed_start"] += 1
            await asyncio.shield(replica.end())
            raise
        finally:
            waiting.cancel()

    def _maker(self, number: int) -> Callable[[], Any]:
        """What makes the actor of a replica. Ray chooses a node, on as many as there are."""
        settings = self._settings
        options: dict[str, Any] = {
            "num_cpus": self._spec.threads, "max_restarts": 0, "max_task_retries": 0, "scheduling_strategy": "SPREAD",
        }  # fmt: skip
        if settings.ray_num_gpus:
            options["num_gpus"] = settings.ray_num_gpus
        if settings.max_worker_memory is not None:
            options["memory"] = settings.max_worker_memory
        actor = self._ray.remote(ReplicaHost).options(**options)
        label = f"{self._spec.name} replica {number}"
        return lambda: actor.remote(label)

    def _host_order(self) -> HostOrder:
        settings = self._settings
        return HostOrder(
            self._spec, settings.compute_timeout, settings.startup_timeout, settings.max_worker_memory,
            settings.log_level,
        )  # fmt: skip

    def _tell_waiting(self, replica: RemoteReplica) -> None:
        if replica.place is None:
            logs.event(
                "a replica waits for room in the cluster", level=logging.WARNING, model=self._spec.name,
                replica=replica.number, cpus=self._spec.threads, gpus=self._settings.ray_num_gpus or None,
            )  # fmt: skip

    def _no_room(self) -> EngineError:
        settings = self._settings
        gpus = f" and {settings.ray_num_gpus:g} GPU" if settings.ray_num_gpus else ""
        return EngineError(
            f"no replica of {self._spec.name} was warm within --startup-timeout {settings.startup_timeout:g}: each "
            f"needs {self._spec.threads} CPU{gpus}, and `ray status` shows what the cluster has"
        )


def _view(replica: RemoteReplica | None) -> WorkerView:
    if replica is None:
        return WorkerView("starting")
    state: WorkerState = "busy" if replica.busy else "idle" if replica.alive else "starting"
    return WorkerView(state, replica.state.memory or None, replica.where)
