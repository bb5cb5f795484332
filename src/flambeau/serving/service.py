"""The core that every protocol calls: it finds the model by name and version, and returns its outcomes.

It knows no protocol. `BlockingService` and `AttachedService` let threads call it: Flask views, the Python API, tests.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from flambeau.errors import ConfigError, RequestError
from flambeau.serving import tensor_requests
from flambeau.serving.loading import Loader
from flambeau.serving.model import Model
from flambeau.serving.model_table import ModelTable
from flambeau.serving.opening import Opened
from flambeau.serving.scaling import Scaler
from flambeau.serving.shadow import Shadow
from flambeau.serving.versions import KeyOf
from flambeau.serving.watch import RepositoryWatch
from flambeau.settings import table
from flambeau.settings.loading import nearest
from flambeau.settings.service import Settings
from flambeau.settings.source import SourceOptions
from flambeau.system.loop_thread import LoopThread, PerProcess
from flambeau.telemetry import logs, tracing
from flambeau.telemetry.counting import CellStore
from flambeau.telemetry.metrics import Metrics
from flambeau.telemetry.torchserve_metrics import TorchServeMetrics
from flambeau.types import Options, Outcome, Payload, Tensors

T = TypeVar("T")


def split_options(options: dict[str, Any]) -> tuple[SourceOptions, Settings]:
    """Split options by name into source options and service settings. Raises `ConfigError` for an unknown name."""
    of_source = {
        name: value
        for name, value in options.items()
        # the threshold is a service setting here: it must not cause another bundle to be built
        if name in SourceOptions.__struct_fields__ and name != "threshold"
    }
    of_service = {name: value for name, value in options.items() if name in Settings.__dataclass_fields__}
    if unknown := options.keys() - of_source.keys() - of_service.keys():
        name = min(unknown)
        raise ConfigError(f"there is no option {name!r}: {nearest(name, table.rows())}")
    return SourceOptions(**of_source), Settings(**of_service)


class Service:
    """The models of one server. One of them is the default."""

    def __init__(self, models: Sequence[Opened], settings: Settings, *, counts: CellStore | None = None) -> None:
        """Raises `SetupError` for a missing engine, device or permission; loads nothing yet.

        `counts`: where the counts of the metrics lie, if not in this process's own memory.
        """
        self.settings = settings
        self.metrics = Metrics(logs.dropped, counts)
        if settings.model_store is not None:
            self.metrics.registry.register(TorchServeMetrics(self.metrics.watched))
        self.tracer = tracing.start(settings.otel_endpoint)
        self.draining = False
        self.table = ModelTable(models, settings, self.metrics)
        self.loader = Loader(self.table, settings, self.metrics)
        if settings.watch and not self.table.repositories:
            raise ConfigError("--watch follows a repository, and none is served: name its folder, or leave it out")
        self._started = False
        self._followers: list[asyncio.Task[None]] = []  # of the models' needs, and of repositories
        self._copies: set[asyncio.Task[None]] = set()  # of requests, for shadows

    async def start(self) -> None:
        """Return when the models are warm; a second call does nothing.

        Raises `SetupError` if one cannot be loaded that has to be: the only one, or any with `strict`.
        """
        if self._started:
            return
        await self.loader.start()
        self._started = True
        loop = asyncio.get_running_loop()
        self._followers = [loop.create_task(Scaler(self.table, self.loader.memory).run())]
        if self.settings.watch:
            seconds = self.settings.watch_interval
            self._followers += [
                loop.create_task(RepositoryWatch(folder, self.table, self.loader, seconds=seconds).run())
                for folder in self.table.repositories
            ]

    def models(self) -> list[Model]:
        """Every version of every model that is loaded."""
        return self.table.models()

    def get(self, name: str | None = None, version: str | None = None) -> Model:
        """The model called `name` (or the default model), in that version or alias (or in its default version).

        Raises `RequestError` with code `model_not_found` or `version_not_found`; `model_loading` or `model_unavailable`
        for one that is not loaded.
        """
        return self.table.get(name, version)

    def using(
        self,
        name: str | None = None,
        version: str | None = None,
        key_of: KeyOf | None = None,
        *,
        most: float | None = None,
    ) -> contextlib.AbstractAsyncContextManager[Model]:
        """The same model, which stays loaded until the block is left: whatever answers a request holds its model so.

        `key_of` is the request's key, by which shared traffic chooses the version. `most`: the seconds that the model
        may take to load, where it is loaded for the request, if that is less than the deadline.
        """
        return self.table.using(name, version, key_of, most=most)

    def faults(self) -> list[tuple[str, str, str]]:
        """Name, version and reason of everything that could not be loaded."""
        return self.table.faults()

    def shown(self) -> Model | None:
        """The model to show first: the default, or another where that is not loaded; `None` where none is."""
        with contextlib.suppress(RequestError):
            return self.get()
        return next(iter(self.models()), None)

    def is_default(self, model: Model) -> bool:
        """Whether a request that names no model is answered by this one."""
        with contextlib.suppress(RequestError):
            return self.get() is model
        return False

    async def predict(
        self, model: Model, payloads: Sequence[Payload], options: Options, *, timeout: float
    ) -> list[Outcome]:
        """One outcome per payload, in order, within `timeout` seconds.

        Raises `RequestError` when the request as a whole is refused.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        outcomes = await model.predict(payloads, options, deadline=deadline)
        if (shadow := self.table.shadow(model)) is not None:
            self._copy(shadow, model, payloads, options, outcomes)
        return outcomes

    def _copy(
        self, shadow: Shadow, model: Model, payloads: Sequence[Payload], options: Options, outcomes: list[Outcome]
    ) -> None:
        """Have a shadow answer the same items, if there is room; nobody waits for it."""
        if shadow.busy or model.queued:
            shadow.skipped += len(payloads)
            return

        async def compare() -> None:
            try:
                deadline = asyncio.get_running_loop().time() + self.settings.deadline
                async with self.table.using(model.name, shadow.version) as other:
                    shadowed = await other.predict(payloads, options, deadline=deadline)
                await asyncio.to_thread(shadow.note_all, payloads, outcomes, shadowed)
            except RequestError:
                shadow.skipped += len(payloads)
            finally:
                shadow.busy = False

        shadow.busy = True
        task = asyncio.get_running_loop().create_task(compare())
        self._copies.add(task)
        task.add_done_callback(self._copies.discard)

    async def infer(self, model: Model, tensors: Tensors, *, timeout: float) -> Tensors:
        """The network's raw outputs by name, one row for each input row, within `timeout` seconds.

        Nothing is preprocessed and no activation is applied: inputs and outputs have the names, dtypes and shapes of
        the manifest. Raises `RequestError`; if a row failed, the error of the first that did.
        """
        try:
            payloads = tensor_requests.split(model, tensors, most=self.settings.max_items)
        except RequestError as error:
            model.metrics.rejected(error.code)
            raise
        return tensor_requests.join(await self.predict(model, payloads, Options(), timeout=timeout))

    def ready(self) -> bool:
        """Whether every loaded model can answer, there is one (or loads on demand), and the service is not stopping."""
        models = self.models()
        later = self.settings.load == "on-demand" or self.settings.multi_model is not None
        later = later or self.settings.model_store is not None
        enough = bool(models) or (self._started and later)
        return not self.draining and enough and all(model.ready() for model in models)

    def drain(self) -> None:
        """Stop being ready. Requests already received are still answered."""
        self.draining = True

    async def close(self) -> None:
        """Answer the accepted requests, then release every model."""
        self.drain()
        for task in (*self._followers, *self._copies):
            task.cancel()
        await self.loader.close()
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)


class AttachedService:
    """A service on an event loop that somebody else runs, for calls from other threads."""

    def __init__(self, service: Service, loop: asyncio.AbstractEventLoop) -> None:
        self.service = service
        self._loop = loop

    def call(self, step: Callable[[Service], Coroutine[Any, Any, T]]) -> T:
        """Run one coroutine of the service to its end and return its result. Do not call it on the loop itself."""
        return asyncio.run_coroutine_threadsafe(step(self.service), self._loop).result()


class BlockingService:
    """A service on a loop in a background thread of its own, for callers that have no loop.

    After a fork (gunicorn with --preload) the child has the object but not the thread: the first call there creates
    the service again, and concurrent calls wait for it. A service closed before the fork stays closed.
    """

    def __init__(self, make: Callable[[], Service]) -> None:
        """Create and start a service. Raises `SetupError` when it cannot start."""
        self._make = make
        self._opened = PerProcess("the service", self._open)

    def _open(self) -> tuple[LoopThread, Service]:
        loop = LoopThread("flambeau-loop")
        try:
            service = self._make()
            loop.run(service.start())
        except BaseException:
            loop.close()
            raise
        return loop, service

    @property
    def service(self) -> Service:
        """The service, alive in this process. Raises `RequestError` (`draining`) when it is closed."""
        return self._opened.get()[1]

    def call(self, step: Callable[[Service], Coroutine[Any, Any, T]]) -> T:
        """Run one coroutine of the service to its end and return its result."""
        loop, service = self._opened.get()
        return loop.run(step(service))

    async def run(self, step: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the service for a caller on another loop. Cancelling the caller cancels the coroutine."""
        loop, _ = self._opened.get()
        return await loop.wait(step)

    def close(self) -> None:
        """Answer the accepted requests, release the models, and end the loop.

        In a forked child that never made a call there is nothing to end; a second call does nothing.
        """
        if (opened := self._opened.close()) is not None:
            loop, service = opened
            try:
                loop.run(service.close())
            finally:
                loop.close()
