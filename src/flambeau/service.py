"""The core that every protocol calls: model names and versions to models, coroutines to outcomes.

It knows no protocol. `BlockingService` and `AttachedService` let threads call it: Flask views, the Python API, tests.
"""

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from flambeau import logs, tracing
from flambeau.bundle import Bundle
from flambeau.config import Settings
from flambeau.errors import ConfigError, RequestError
from flambeau.metrics import Metrics
from flambeau.model import Model
from flambeau.orders import SourceOptions
from flambeau.types import Options, Outcome, Payload

T = TypeVar("T")


def split_options(options: dict[str, Any]) -> tuple[SourceOptions, Settings]:
    """Sort options by name into those of the source and those of the service. Raises `ConfigError` for others."""
    of_source = {
        name: value
        for name, value in options.items()
        # the threshold of a service is its own: it must not make another bundle
        if name in SourceOptions.__struct_fields__ and name != "threshold"
    }
    of_service = {name: value for name, value in options.items() if name in Settings.__dataclass_fields__}
    if unknown := options.keys() - of_source.keys() - of_service.keys():
        raise ConfigError(f"there is no option {sorted(unknown)[0]!r}")
    return SourceOptions(**of_source), Settings(**of_service)


class Service:
    """The models of one server. One of them, the first, is the default."""

    def __init__(self, bundles: Sequence[Bundle], settings: Settings) -> None:
        """Raises `SetupError` for what is not there; loads nothing yet."""
        self.settings = settings
        self.metrics = Metrics(logs.dropped)
        self.tracer = tracing.start(settings.otel_endpoint)
        self.draining = False
        self._models: dict[str, dict[str, Model]] = {}
        for bundle in bundles:
            model = Model(bundle, settings, metrics=self.metrics)
            self._models.setdefault(model.name, {})[model.version] = model
        self._default = next(iter(self._models))
        self._started = False

    async def start(self) -> None:
        """Return when every model is warm; a second call does nothing. Raises `SetupError` if one cannot be loaded."""
        if self._started:
            return
        self._started = True
        for model in self.models():
            await model.start()

    def models(self) -> list[Model]:
        """Every version of every model."""
        return [model for versions in self._models.values() for model in versions.values()]

    def get(self, name: str | None = None, version: str | None = None) -> Model:
        """The model of that name, or the default; of that version, or the newest.

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
        """One outcome per payload, in order, within `timeout` seconds. Raises `RequestError` for the request itself."""
        deadline = asyncio.get_running_loop().time() + timeout
        return await model.predict(payloads, options, deadline=deadline)

    def ready(self) -> bool:
        """Whether every model can answer and the service is not stopping."""
        return not self.draining and all(model.ready() for model in self.models())

    def drain(self) -> None:
        """From now on the service is not ready. What it has received it still answers."""
        self.draining = True

    async def close(self) -> None:
        """Answer what was taken, then let go of every model."""
        self.drain()
        for model in self.models():
            await model.close()
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)


class AttachedService:
    """A service on a loop that somebody else runs, for threads beside that loop."""

    def __init__(self, service: Service, loop: asyncio.AbstractEventLoop) -> None:
        self.service = service
        self._loop = loop

    def call(self, step: Callable[[Service], Coroutine[Any, Any, T]]) -> T:
        """Run one coroutine of the service to its end and return its result. Not to be called on the loop itself."""
        return asyncio.run_coroutine_threadsafe(step(self.service), self._loop).result()


class BlockingService:
    """A service on a loop in a background thread of its own, for callers that have no loop.

    After a fork (gunicorn with --preload) the child has the object but not the thread: the first call there makes the
    service anew.
    """

    def __init__(self, make: Callable[[], Service]) -> None:
        """Make and start a service. Raises `SetupError` when it cannot start."""
        self._make = make
        self._lock = threading.Lock()
        self._open()

    def _open(self) -> None:
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="flambeau-loop", daemon=True)
        self._thread.start()
        try:
            self._service = self._make()
            self._wait(self._service.start())
        except BaseException:
            self._end_loop()
            raise

    @property
    def service(self) -> Service:
        """The service, alive in this process."""
        if self._process != os.getpid():
            with self._lock:
                if self._process != os.getpid():
                    self._open()
        return self._service

    def call(self, step: Callable[[Service], Coroutine[Any, Any, T]]) -> T:
        """Run one coroutine of the service to its end and return its result."""
        service = self.service
        return self._wait(step(service))

    def close(self) -> None:
        """Answer what was taken, let go of the models, and end the loop."""
        self._wait(self._service.close())
        self._end_loop()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, step: Coroutine[Any, Any, T]) -> T:
        future: concurrent.futures.Future[T] = asyncio.run_coroutine_threadsafe(step, self._loop)
        return future.result()
