"""The Ray actor: a host for one replica on any node. It has a worker process, as a front has them on its own machine.

    front  --one Ray call a batch-->  host (this actor)  --a frame over a socketpair-->  worker (the model)

So a model can end only its worker. The host says how it was lost (crashed, hung, out of memory, killed) from the kernel
of its own node, and starts the next. If the host or its node is lost, no input was at fault.

Ray makes the actor from this class and calls its coroutines on one loop. It answers one batch at a time, and may have
one behind it, so that its worker need not wait for the front.
"""

import asyncio
import contextlib
import os
from pathlib import Path

from msgspec.structs import replace

from flambeau.errors import EngineError, SetupError
from flambeau.runners import wire
from flambeau.runners.base import RunnerState, Slot, WorkerLostError
from flambeau.runners.processes import ProcessesRunner
from flambeau.runners.ray import messages
from flambeau.runners.ray.messages import HostOrder, HostPlace, HostState
from flambeau.runners.wire import Failed, FrameKind, LostBatch
from flambeau.settings.service import Settings
from flambeau.sources import by_content
from flambeau.system.process import resident_bytes
from flambeau.telemetry import logs
from flambeau.version import VERSION

_REFRESHED = 10.0  # seconds after which a state is told again, with the memory as it is then
_DESERTED = 300.0  # seconds without a front that watches
_BEHIND = 2.0  # seconds that a batch waits behind another, at most
_NOTICED = 1.0  # seconds for the runner to notice the loss that a batch has brought


class ReplicaHost:
    """One replica. Its methods are called by its front alone."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._runner: ProcessesRunner | None = None
        self._arrival: by_content.Arrival | None = None
        self._found: Path | None = None
        self._state = HostState()
        self._losses = 0
        self._watched = 0
        self._deserted: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return self._label  # Ray puts it before every line that we print

    async def place(self) -> bytes:
        """Where it is, as a `HostPlace`."""
        import ray

        return messages.pack(
            HostPlace(ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address(), os.getpid(), VERSION)
        )

    async def ping(self) -> None:
        """Answer at once, whatever the worker does."""

    async def stop(self) -> None:
        """End this process and its worker. The front asks for it itself: a cluster without its head kills nobody."""
        if self._runner is not None:
            await self._runner.close(timeout=0.0)
        os._exit(0)

    async def find(self, digest: str, shared: str) -> bool:
        """Whether this node has the bundle, in its own folder or at the path `shared`."""
        self._found = await asyncio.to_thread(by_content.find, digest, shared)
        return self._found is not None

    async def receive(self, digest: str, name: str, piece: bytes) -> None:
        """Take a piece of a bundle that the node lacks."""
        if self._arrival is None:
            self._arrival = await asyncio.to_thread(by_content.Arrival, digest)
        await asyncio.to_thread(self._arrival.take, name, piece)

    async def keep(self) -> None:
        """The bundle has arrived: verify it, and keep it. Raises `BundleError`."""
        assert self._arrival is not None
        self._found = await asyncio.to_thread(self._arrival.finish)
        self._arrival = None

    async def open(self, packed: bytes) -> bytes:
        """Start the worker for a `HostOrder`. Returns a frame, READY or FAILED."""
        order = messages.unpack(packed, HostOrder)
        logs.configure(order.log_level)
        assert self._found is not None
        spec = replace(order.spec, bundle=str(self._found))
        settings = Settings(
            compute_timeout=order.compute_timeout, startup_timeout=order.startup_timeout,
            max_worker_memory=order.max_worker_memory, log_level=order.log_level,  # type: ignore[arg-type]
        )  # fmt: skip
        runner = ProcessesRunner(spec, settings, replicas=1)
        try:
            ready = await runner.start(self._change)
        except SetupError as error:
            return wire.pack_failed(0, Failed(type(error).__name__, str(error)))
        except Exception as error:  # of our own making: the front must learn of it
            logs.failure("a replica cannot be opened", error)
            return wire.pack_failed(0, Failed(EngineError.__name__, f"{type(error).__name__}: {error}"))
        self._runner = runner
        self._deserted = asyncio.get_running_loop().create_task(self._end_if_deserted())
        self._change()
        return wire.pack_ready(0, ready)

    async def answer(self, hasty: bool, *parts: bytes) -> bytes:
        """Answer a batch, whose frame comes in parts. Returns a frame, ANSWER or LOST."""
        frame = memoryview(parts[0] if len(parts) == 1 else b"".join(parts))
        header = wire.unpack_header(frame[: wire.HEADER_SIZE])
        payloads = wire.HEADER_SIZE + header.body
        works = wire.unpack_batch(frame[wire.HEADER_SIZE : payloads], frame[payloads:])
        loop = asyncio.get_running_loop()
        came = loop.time()
        before = self._lost_workers()
        try:
            slot = await self._slot()
            if (waited := loop.time() - came) > 0:
                works = [replace(work, seconds_left=work.seconds_left - waited) for work in works]
        except WorkerLostError as error:
            return self._lost(header, error)
        try:
            outcomes = await slot(works, hasty=hasty)
        except WorkerLostError as error:
            until = loop.time() + _NOTICED
            while self._lost_workers() == before and loop.time() < until:
                await self._next_change(0.05)
            return self._lost(header, error)
        return wire.pack_outcomes(header.generation, header.batch, outcomes)

    async def _slot(self) -> Slot:
        """The worker, once it is free: it may be at the batch before this one, or at one that the front has given up.

        Raises `WorkerLostError` when there is none now, or when that batch takes long: this one had no part in it, and
        another replica may be free.
        """
        assert self._runner is not None
        until = asyncio.get_running_loop().time() + _BEHIND
        while (slot := self._runner.reserve()) is None:
            left = until - asyncio.get_running_loop().time()
            if not self._runner.counts().busy or left <= 0:
                raise WorkerLostError("killed")
            await self._next_change(min(left, _NOTICED))
        return slot

    def _lost(self, header: wire.Header, error: WorkerLostError) -> bytes:
        """The frame for a lost batch. The front sends no other before it has seen the state after the loss."""
        self._losses += 1
        self._change()
        assert header.kind is FrameKind.BATCH
        return wire.pack_lost(header.generation, header.batch, LostBatch(error.how, self._losses))

    def _lost_workers(self) -> int:
        return sum(self._runner.restarts().values()) if self._runner is not None else 0

    async def watch(self, known: int) -> bytes:
        """The next `HostState` after the one whose number is `known`: when something has changed, or after a while."""
        self._watched += 1
        until = asyncio.get_running_loop().time() + _REFRESHED
        while self._state.number <= known and (left := until - asyncio.get_running_loop().time()) > 0:
            await self._next_change(left)
        if self._runner is None:
            return messages.pack(self._state)
        memory = sum(each.memory or 0 for each in self._runner.workers()) + (resident_bytes(os.getpid()) or 0)
        return messages.pack(replace(self._state, memory=memory))

    async def _end_if_deserted(self) -> None:
        """End when no front watches any more: Ray ends the actors of a front that died, unless its head is gone too."""
        watched = -1
        while self._watched != watched:
            watched = self._watched
            await asyncio.sleep(_DESERTED)
        await self.stop()

    def _change(self) -> None:
        """Something may have changed. Most often a batch has ended, which is no news to the front."""
        if (runner := self._runner) is not None:
            warm, failed = runner.counts().warm > 0, runner.state() is RunnerState.FAILED
            state = replace(
                self._state, warm=warm, failed=failed, losses=self._losses, restarts=dict(runner.restarts())
            )
            if state != self._state:
                self._state = replace(state, number=state.number + 1)
        self._changed.set()
        self._changed = asyncio.Event()

    async def _next_change(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)
