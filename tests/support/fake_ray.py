"""The part of Ray that the runner uses, in this process: actors on the test's own loop, to be killed and silenced.

An actor's coroutines run as Ray runs them, and its calls end as Ray ends them. What Ray itself does is tested with it.
"""

import asyncio
import concurrent.futures
import contextlib
import importlib
import types
from collections.abc import Iterator
from typing import Any

import pytest

from flambeau.runners.ray import messages
from flambeau.runners.ray.connection import RayConnection
from flambeau.runners.ray.host import ReplicaHost
from flambeau.runners.ray.messages import HostPlace
from flambeau.sources import by_content
from flambeau.version import VERSION
from tests.support.fleet import Fleet

connection = importlib.import_module("flambeau.runners.ray.connection")
draining = importlib.import_module("flambeau.runners.ray.draining")
runner = importlib.import_module("flambeau.runners.ray.runner")


class RayError(Exception):
    pass


class ActorDiedError(RayError):
    pass


class ActorUnavailableError(RayError):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Ref:
    """What a call returns: its result is a future of another thread, as with Ray."""

    def __init__(self) -> None:
        self.result: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def future(self) -> "concurrent.futures.Future[Any]":
        outer: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def done(inner: "concurrent.futures.Future[Any]") -> None:
            if not outer.set_running_or_notify_cancel():
                return
            error = inner.exception()
            if error is None:
                outer.set_result(inner.result())
            else:
                outer.set_exception(error)

        self.result.add_done_callback(done)
        return outer

    def __await__(self) -> Any:
        return asyncio.wrap_future(self.future()).__await__()


class Actor:
    """One actor. `silent`: its calls get no answer. `unavailable`: they end with that error. `args`: its batches."""

    def __init__(self, ray: "FakeRay", real: ReplicaHost, label: str) -> None:
        self.ray = ray
        self.real = real
        self.label = label
        self.node = f"{id(self):032x}"
        self.silent = self.unavailable = self.dead = False
        self.args: list[tuple[object, ...]] = []
        self.open_calls: set[Ref] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._death: asyncio.Task[None] | None = None

    def __getattr__(self, name: str) -> Any:
        return types.SimpleNamespace(remote=lambda *args: self._call(name, args))

    def _call(self, name: str, args: tuple[object, ...]) -> Ref:
        ref = Ref()
        if name == "answer":
            self.args.append(args)
        if self.dead or self.unavailable:
            ref.result.set_exception(ActorDiedError("it died") if self.dead else ActorUnavailableError("away"))
            return ref
        self.open_calls.add(ref)
        work = self._run(ref, name, args) if name != "stop" or self.silent else self._stop()
        task = self.ray.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return ref

    async def _run(self, ref: Ref, name: str, args: tuple[object, ...]) -> None:
        result: Any = None
        failed: BaseException | None = None
        try:
            if name == "place":
                result = messages.pack(HostPlace(self.node, "10.0.0.1", 1, self.ray.version))
            else:
                result = await getattr(self.real, name)(*args)
        except Exception as error:
            failed = RayTaskError(error)
        while self.silent and not self.dead:
            await asyncio.sleep(0.01)
        self.open_calls.discard(ref)
        if not ref.result.done():
            if failed is None:
                ref.result.set_result(result)
            else:
                ref.result.set_exception(failed)

    async def _stop(self) -> None:
        """What `os._exit` does in Ray's process."""
        self._tasks.discard(asyncio.current_task())
        await self.die()

    def fail_calls(self, error: Exception) -> None:
        """End the calls that are under way."""
        for ref in list(self.open_calls):
            self.open_calls.discard(ref)
            if not ref.result.done():
                ref.result.set_exception(error)

    async def die(self) -> None:
        """Die, and the worker with it. Returns when both are gone."""
        if self._death is None:
            self._death = self.ray.loop.create_task(self._die())
        await asyncio.shield(self._death)

    async def _die(self) -> None:
        self.dead = True
        self.fail_calls(ActorDiedError("the actor died"))
        tasks = [*self._tasks, *([self.real._deserted] if self.real._deserted is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.real._runner is not None:
            await self.real._runner.close(timeout=0.0)


class FakeRay:
    """The module."""

    exceptions = types.SimpleNamespace(
        RayError=RayError, ActorDiedError=ActorDiedError, RayTaskError=RayTaskError,
        ActorUnavailableError=ActorUnavailableError,
    )  # fmt: skip

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.actors: list[Actor] = []
        self.options: list[dict[str, object]] = []
        self.version = VERSION
        self.draining: set[str] = set()  # ids of nodes that are about to end
        self.stored: list[int] = []  # bytes of what was put into the object store
        self._kills: set[asyncio.Future[None]] = set()

    def remote(self, kind: type[ReplicaHost]) -> Any:
        def options(**given: object) -> Any:
            self.options.append(given)

            def make(label: str) -> Actor:
                self.actors.append(Actor(self, kind(label), label))
                return self.actors[-1]

            return types.SimpleNamespace(remote=make)

        return types.SimpleNamespace(options=options)

    def kill(self, actor: Actor, *, no_restart: bool) -> None:
        assert no_restart
        asyncio.run_coroutine_threadsafe(actor.die(), self.loop).result(10)

    def is_initialized(self) -> bool:
        return True

    def put(self, piece: bytes) -> bytes:
        assert type(piece) is bytes
        self.stored.append(len(piece))
        return piece


class RayFleet(Fleet):
    """A fleet whose replicas live in a fake cluster."""

    def __init__(self, spec: Any, patch: pytest.MonkeyPatch, *, replicas: int = 1, **settings: object) -> None:
        super().__init__(spec, replicas=replicas, **settings)
        self._patch = patch
        self.runner = runner.RayRunner(spec, self.runner._settings, replicas=replicas)

    async def __aenter__(self) -> "RayFleet":
        self.ray = FakeRay()
        joined = RayConnection()

        async def join(address: str) -> Any:
            return self.ray

        async def leave() -> None:
            pass

        self._patch.setattr(joined, "join", join)
        self._patch.setattr(joined, "leave", leave)
        self._patch.setattr(runner, "CONNECTION", joined)
        self._patch.setattr(draining, "PERIOD", 0.05)
        self._patch.setattr(draining, "_draining", lambda ray: frozenset(ray.draining))
        self._patch.setattr(runner, "DRAINING", draining.DrainingNodes())
        await super().__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await super().__aexit__(*error)
        for actor in self.ray.actors:
            await actor.die()


@contextlib.contextmanager
def hidden_bundles(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nodes do not see the front's folders: bundles have to be sent."""
    found = by_content.find
    patch.setattr(by_content, "find", lambda digest, shared: found(digest, "/nowhere"))
    yield
