"""The core that every protocol calls: it finds the model by name and version, and returns its outcomes.

It knows no protocol. `BlockingService` and `AttachedService` let threads call it: Flask views, the Python API, tests.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from flambeau.bundle.storage import Bundle
from flambeau.errors import ConfigError, RequestError
from flambeau.serving import tensor_requests
from flambeau.serving.model import Model
from flambeau.settings.service import Settings
from flambeau.settings.source import SourceOptions
from flambeau.system.loop_thread import LoopThread, PerProcess
from flambeau.telemetry import logs, tracing
from flambeau.telemetry.metrics import Metrics
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
        raise ConfigError(f"there is no option {sorted(unknown)[0]!r}")
    return SourceOptions(**of_source), Settings(**of_service)


class Service:
    """The models of one server. One of them, the first, is the default."""

    def __init__(self, bundles: Sequence[Bundle], settings: Settings) -> None:
        """Raises `SetupError` for a missing engine, device or permission; loads nothing yet."""
        self.settings = settings
        self.metrics = Metrics(logs.dropped)
        self.tracer = tracing.start(settings.otel_endpoint)
        self.draining = False
        self._models: dict[str, dict[str, Model]] = {}
        for bundle in bundles:
            model = Model(bundle, settings, metrics=self.metrics)
            versions = self._models.setdefault(model.name, {})
            if (other := versions.get(model.version)) is not None:
                raise ConfigError(
                    f"{other.bundle.path} and {bundle.path} are both called '{model.name}': serve them apart, each "
                    "with a --name of its own"
                )
            versions[model.version] = model
        self._default = next(iter(self._models))
        self._started = False

    async def start(self) -> None:
        """Return when every model is warm; a second call does nothing. Raises `SetupError` if one cannot be loaded."""
        if self._started:
            return
        begun: list[Model] = []
        try:
            for model in self.models():
                begun.append(model)
                await model.start()
        except BaseException:
            for model in begun:  # or their workers would outlive a service that never started
                await model.close()
            raise
        self._started = True

    def models(self) -> list[Model]:
        """Every version of every model."""
        return [model for versions in self._models.values() for model in versions.values()]

    def get(self, name: str | None = None, version: str | None = None) -> Model:
        """The model called `name` (or the default model), in `version` (or the newest version).

        Raises `RequestError` with code `model_not_found` or `version_not_found`.
        """
        try:
            versions = self._models[self._default if name is None else name]
        except KeyError:
            raise RequestError("there is no model of that name", code="model_not_found") from None
        if version is None:
            return versions[max(versions, key=int)]
        try:
            return versions[version]
        except KeyError:
            raise RequestError("the model has no such version", code="version_not_found") from None

    async def predict(
        self, model: Model, payloads: Sequence[Payload], options: Options, *, timeout: float
    ) -> list[Outcome]:
        """One outcome per payload, in order, within `timeout` seconds.

        Raises `RequestError` when the request as a whole is refused.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        return await model.predict(payloads, options, deadline=deadline)

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
        """Whether every model can answer and the service is not stopping."""
        return not self.draining and all(model.ready() for model in self.models())

    def drain(self) -> None:
        """Stop being ready. Requests already received are still answered."""
        self.draining = True

    async def close(self) -> None:
        """Answer the accepted requests, then release every model."""
        self.drain()
        for model in self.models():
            try:
                await model.close()
            except Exception as error:  # the other models must be released all the same
                logs.failure(f"model '{model.name}' cannot be closed", error)
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
