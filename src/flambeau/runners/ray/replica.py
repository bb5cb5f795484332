"""One replica on some node, as the front's loop sees it: placed, given batches, listened to, and given up.

Ray tells of the death of an actor and of its node. What it does not tell is asked: while a batch runs, the host is
asked for a sign of life every second. A host that is silent or unavailable gets no more batches, and its batch is run
elsewhere. It may come back; after a while without a word it is ended, and the runner starts another in its place.
"""

import asyncio
import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import msgspec

from flambeau import errors
from flambeau.errors import EngineError, SetupError
from flambeau.runners import wire
from flambeau.runners.base import Batch, Loss, ReplicaInfo, WorkerLostError
from flambeau.runners.ray import messages
from flambeau.runners.ray.connection import in_thread
from flambeau.runners.ray.messages import HostOrder, HostPlace, HostState
from flambeau.runners.ray.parcel import BundleParcel
from flambeau.runners.wire import Failed, FrameError, FrameKind, Header
from flambeau.telemetry import logs
from flambeau.types import Outcome
from flambeau.version import VERSION

_PULSE, _SILENCE = 1.0, 4.0  # seconds between two signs of life of a busy host, and for one to come
_LOOKS = 0.25  # seconds; the silence is counted in these, so that a front that stood still blames nobody
_RETURN = 5.0  # seconds for a host that is unavailable to answer again
_STOP = 2.0  # seconds for a host to end
_SHORT = 0.25  # seconds that a batch takes, up to which another is sent behind it: its way costs a few milliseconds
_RETRY = 0.5  # seconds between two tries
_INLINE, _MOST_INLINE = 96 * 1024, 4 * 1024 * 1024
"""Bytes of a part of a frame, and of all: Ray sends parts up to 100 kB with the call itself, in a millisecond. Larger
ones go through its object store, which takes several; and so do calls of more than 10 MB.
"""


class RemoteReplica:
    """A host and its worker."""

    def __init__(
        self, ray: Any, actor: Callable[[], Any], *, model: str, number: int, on_change: Callable[[], None]
    ) -> None:
        """`actor` makes the actor. `on_change` is called when it has become warm or cold, or is lost."""
        loop = asyncio.get_running_loop()
        self.number = number
        self.running = 0
        """Batches that it has in hand: one, and perhaps one behind it."""
        self.alone = False
        """Whether nothing may be sent behind its batch."""
        self.place: HostPlace | None = None
        self.state = HostState()
        self.lost: asyncio.Future[Loss] = loop.create_future()
        self.to_move = asyncio.Event()
        """Whether its node is about to end."""
        self._ray = ray
        self._make = actor
        self._actor: Any = None
        self._model = model
        self._on_change = on_change
        self._losses = 0  # that it has reported to us
        self._batch = 0  # the number of the last one that was sent
        self._answered = 0.0  # when, by the loop's clock
        self._took = math.inf  # seconds, for the last one that was answered
        self._away: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether it can take a batch."""
        warm = self.state.warm and self.state.losses >= self._losses
        return warm and self._away is None and not self.lost.done()

    @property
    def busy(self) -> bool:
        """Whether it has a batch in hand."""
        return self.running > 0

    @property
    def takes_another(self) -> bool:
        """Whether a batch may be sent behind the one that it has."""
        return self.running == 1 and self._took < _SHORT and self.alive and not self.alone

    @property
    def where(self) -> str | None:
        """Its node, as people call it."""
        return self.place.name if self.place is not None else None

    async def begin(self, parcel: BundleParcel, order: HostOrder) -> ReplicaInfo:
        """Return when it is warm. Raises `SetupError` when it cannot be, and `WorkerLostError` when it was lost.

        It waits for as long as Ray finds no node with room for it.
        """
        self._actor = await in_thread(self._make)
        try:
            place = messages.unpack(await self._actor.place.remote(), HostPlace)
            if place.flambeau != VERSION:
                raise EngineError(
                    f"node {place.name} has Flambeau {place.flambeau}, and the front {VERSION}: install the same on all"
                )
            self.place = place
            await parcel.deliver(self._actor, place.node)
            frame = await self._actor.open.remote(messages.pack(order))
        except self._ray.exceptions.RayError as error:
            if why := self._own_failure(error):
                on = f" on node {self.where}" if self.where else ""
                raise EngineError(f"a replica of {self._model} cannot start{on}: {why}") from None
            logs.event(
                "a replica was lost while it started", level=logging.WARNING, model=self._model, replica=self.number,
                node=self.where, error=_told(error),
            )  # fmt: skip
            raise WorkerLostError("killed") from None
        header, body = _opened(frame)
        begun = wire.unpack_start(header.kind, body)
        if isinstance(begun, Failed):
            kind = getattr(errors, begun.error, None)
            raise (kind if isinstance(kind, type) and issubclass(kind, SetupError) else EngineError)(begun.message)
        self.state = HostState(warm=True)
        self._listener = asyncio.get_running_loop().create_task(self._listen())
        return begun

    def _own_failure(self, error: Exception) -> str:
        """What an exception of the host's own code says; empty for a host that was lost."""
        own = isinstance(error, self._ray.exceptions.RayTaskError) or getattr(error, "actor_init_failed", False)
        return str(error).strip().splitlines()[-1] if own else ""

    async def answer(self, batch: Batch, *, hasty: bool = False) -> list[Outcome]:
        """Send a batch and return its outcomes. Raises `WorkerLostError`."""
        if not self.alive:
            raise WorkerLostError("killed")
        self._batch += 1
        number, sent = self._batch, asyncio.get_running_loop().time()
        parts, size = _parts(wire.pack_batch(self.number, number, batch))
        submit = functools.partial(self._actor.answer.remote, hasty, *parts)
        try:
            ref = submit() if size <= _MOST_INLINE else await in_thread(submit)
            frame = await self._patiently(ref)
        except self._ray.exceptions.ActorDiedError as error:
            self._lose(_told(error))
            raise WorkerLostError("killed") from None
        except self._ray.exceptions.RayError as error:
            self._doubt(_told(error))
            raise WorkerLostError("killed") from None
        outcomes = self._read(frame, number, len(batch))
        now = asyncio.get_running_loop().time()
        self._took, self._answered = now - max(sent, self._answered), now
        return outcomes

    def _read(self, frame: bytes, number: int, items: int) -> list[Outcome]:
        try:
            header, body = _opened(frame)
            if (header.generation, header.batch) != (self.number, number):
                raise FrameError("the answer is to another batch")
            if header.kind is FrameKind.LOST:
                lost = wire.unpack_lost(body)
                self._losses = max(self._losses, lost.losses)
                raise WorkerLostError(lost.how)
            outcomes = wire.unpack_outcomes(body)
            if len(outcomes) != items:
                raise FrameError(f"{len(outcomes)} outcomes for {items} items")
        except FrameError as error:
            logs.event(
                "a replica does not keep to the protocol and is ended", level=logging.ERROR, model=self._model,
                replica=self.number, node=self.where, error=error,
            )  # fmt: skip
            self._lose("it sent what is no answer")
            raise WorkerLostError("crashed") from None
        return outcomes

    async def _patiently(self, ref: Any) -> bytes:
        """The result of a call, as long as the host gives signs of life. Raises what Ray raises."""
        call = asyncio.wrap_future(ref.future())
        try:
            while not (await asyncio.wait({call}, timeout=_PULSE))[0]:
                if not await self._pulse(call):
                    self._doubt("silent")
                    raise WorkerLostError("killed")
            return call.result()  # type: ignore[no-any-return]
        finally:
            call.cancel()

    async def _pulse(self, call: "asyncio.Future[Any]") -> bool:
        """Whether the host gives a sign of life in time, or the call has ended."""
        if self.lost.done():
            return False
        ping = asyncio.wrap_future(self._actor.ping.remote().future())
        try:
            for _ in range(round(_SILENCE / _LOOKS)):
                await asyncio.wait({call, ping}, timeout=_LOOKS, return_when=asyncio.FIRST_COMPLETED)
                if call.done() or ping.done():
                    return call.done() or ping.exception() is None
            return False
        finally:
            ping.cancel()

    async def _listen(self) -> None:
        """Follow the host's state: a call is always under way, which Ray ends when the host dies."""
        while not self.lost.done():
            try:
                call = asyncio.wrap_future(self._actor.watch.remote(self.state.number).future())
                state = messages.unpack(await call, HostState)
            except self._ray.exceptions.ActorDiedError as error:
                self._lose(_told(error))
            except (self._ray.exceptions.RayError, msgspec.DecodeError) as error:
                self._doubt(_told(error))
                if self._away is not None:
                    await asyncio.wait({self._away})
            else:
                self.state = state
                self._on_change()

    def _doubt(self, why: str) -> None:
        """Give it no batches until it answers again; end it if it does not."""
        if self._away is None and not self.lost.done():
            logs.event(
                "a replica is unavailable", level=logging.WARNING, model=self._model, replica=self.number,
                node=self.where, why=why,
            )  # fmt: skip
            self._away = asyncio.get_running_loop().create_task(self._await_return())
            self._on_change()

    async def _await_return(self) -> None:
        for _ in range(round(_RETURN / _RETRY)):
            ping = asyncio.wrap_future(self._actor.ping.remote().future())
            try:
                await asyncio.wait({ping}, timeout=_RETRY)
                if ping.done() and ping.exception() is None:
                    self._away = None
                    logs.event("a replica answers again", model=self._model, replica=self.number, node=self.where)
                    self._on_change()
                    return
                if ping.done() and isinstance(ping.exception(), self._ray.exceptions.ActorDiedError):
                    self._lose(_told(ping.exception()))
                    return
                if ping.done():
                    await asyncio.sleep(_RETRY)
            finally:
                ping.cancel()
        self._lose("it did not answer any more")

    def _lose(self, why: str) -> None:
        if self.lost.done():
            return
        logs.event(
            "a replica was lost", level=logging.WARNING, model=self._model, replica=self.number, node=self.where,
            why=why,
        )  # fmt: skip
        self.lost.set_result("killed")
        self._on_change()

    async def end(self) -> None:
        """End the host, and its worker with it. A second call does nothing."""
        if not self.lost.done():
            self.lost.set_result("killed")
        for task in (self._listener, self._away):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        actor, self._actor = self._actor, None
        if actor is not None and self._ray.is_initialized():
            stopped = asyncio.wrap_future(actor.stop.remote().future())
            await asyncio.wait({stopped}, timeout=_STOP)
            if not stopped.done() or isinstance(stopped.exception(), self._ray.exceptions.ActorUnavailableError):
                await asyncio.wait({asyncio.ensure_future(in_thread(lambda: _kill(self._ray, actor)))}, timeout=_STOP)
            stopped.cancel()


def _kill(ray: Any, actor: Any) -> None:
    try:
        ray.kill(actor, no_restart=True)
    except Exception as error:  # it is gone, or the cluster is
        logs.LOGGER.debug("an actor cannot be killed", exc_info=error)


def _parts(frame: list[wire.Buffer]) -> tuple[list[bytes], int]:
    """A frame as bytes of at most `_INLINE` each; as one, if it has more than `_MOST_INLINE`. And its size."""
    size = sum(map(len, frame))
    if size > _MOST_INLINE:
        return [b"".join(frame)], size
    parts: list[bytes] = []
    group: list[wire.Buffer] = []
    held = 0
    for each in frame:
        if held + len(each) > _INLINE and group:
            parts.append(b"".join(group))
            group, held = [], 0
        if len(each) <= _INLINE:
            group.append(each)
            held += len(each)
        else:
            view = memoryview(each)
            parts += [bytes(view[start : start + _INLINE]) for start in range(0, len(view), _INLINE)]
    if group:
        parts.append(b"".join(group))
    return parts, size


def _opened(frame: bytes) -> tuple[Header, memoryview]:
    view = memoryview(frame)
    header = wire.unpack_header(view[: wire.HEADER_SIZE])
    return header, view[wire.HEADER_SIZE :]


def _told(error: BaseException | None) -> str:
    """The first line of what Ray says."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
