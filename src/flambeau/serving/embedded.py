"""Models and batching without HTTP, for other people's programs: `flambeau.load` and `flambeau.Batcher`.

Calls block and may come from any number of threads. Underneath run the same batch queue, runner and replica as in the
server, on a loop in a thread of their own.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from flambeau.answers.value import encode
from flambeau.bundle.storage import PythonConfig
from flambeau.errors import ConfigError, RequestError
from flambeau.runners.python_replica import FunctionReplica
from flambeau.runners.threads import ThreadsRunner
from flambeau.serving.batcher import BatchLimits, BatchQueue
from flambeau.serving.service import BlockingService, Service, split_options
from flambeau.settings.service import Settings
from flambeau.sources import build_cache
from flambeau.system.loop_thread import LoopThread, PerProcess
from flambeau.telemetry import logs
from flambeau.telemetry.metrics import Metrics
from flambeau.types import Item, Options, Outcome, Payload

In = TypeVar("In")
Out = TypeVar("Out")

_END_SECONDS = 1.0  # for the function's threads to end, once every caller has been answered


class Batcher(Generic[In, Out]):
    """Dynamic batching for any function from a list to a list of the same length.

        predict = flambeau.Batcher(model_on_a_list, max_batch_size=32)
        answer = predict(item)          # from any thread; items of concurrent calls share batches

    A call waits for its own answer, at most `deadline` seconds. It raises what the function raised on its item: when a
    batch fails as a whole, its items are run again one by one, so that only the item at fault fails. If the function
    returns an exception instance as an answer, that item alone fails. When `max_queue_size` items wait, a call raises
    `RequestError` (`queue_full`) at once. `replicas` threads call the function, each with one batch at a time.
    """

    def __init__(
        self,
        function: Callable[[list[In]], Sequence[Out]],
        *,
        max_batch_size: int = 8,
        max_queue_delay_ms: float = 0.0,
        max_queue_size: int = 256,
        deadline: float = 60.0,
        replicas: int = 1,
    ) -> None:
        if max_batch_size < 1:  # a service would take 0 as "measure it"
            raise ConfigError(f"max_batch_size {max_batch_size} is too small: the least is 1")
        settings = Settings(  # checks the bounds
            max_batch_size=max_batch_size,
            max_queue_delay_ms=max_queue_delay_ms,
            max_queue_size=max_queue_size,
            deadline=deadline,
            replicas=replicas,
        )
        self._function = function
        self._deadline = deadline
        self._replicas = replicas
        self._limits = BatchLimits(
            max_batch_size=max_batch_size,
            max_queue_delay=max_queue_delay_ms / 1000,
            max_queue_size=max_queue_size,
            max_queue_bytes=settings.max_queue_bytes,
        )
        self._opened = PerProcess("the Batcher", self._open)

    def _open(self) -> "_Opened":
        name = getattr(self._function, "__name__", type(self._function).__name__)
        runner = ThreadsRunner(lambda: FunctionReplica(self._function, name=name), name=name, replicas=self._replicas)
        batcher = BatchQueue(runner, self._limits, metrics=Metrics().for_model(name, "1"))
        loop = LoopThread(f"batcher-{name}")
        try:
            loop.run(runner.start(batcher.dispatch))
        except BaseException:
            loop.close()
            raise
        return _Opened(loop, runner, batcher)

    def __call__(self, item: In) -> Out:
        """The function's answer to one item."""
        return self.map([item])[0]

    def map(self, items: Sequence[In]) -> list[Out]:
        """The function's answers to several items, in order, however many. Raises for the first one that failed."""
        opened = self._opened.get()  # a forked child (gunicorn --preload) has its own
        return [_unwrap(outcome) for outcome in opened.loop.run(self._submit(opened.batcher, items))]

    def close(self) -> None:
        """Answer the accepted items and end the threads, within `deadline` plus a few seconds.

        Further calls raise `RequestError` (`draining`). A function that hangs keeps its thread, which ends with the
        process; `close` does not wait for it. In a forked child that never made a call there is nothing to end.
        """
        if (opened := self._opened.close()) is not None:
            try:
                opened.loop.run(self._end(opened))
            finally:
                opened.loop.close()

    def __enter__(self) -> "Batcher[In, Out]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _submit(self, batcher: BatchQueue, items: Sequence[In]) -> list[Outcome]:
        """Submit the items, in slices if there are more than the queue holds."""
        deadline = asyncio.get_running_loop().time() + self._deadline
        outcomes: list[Outcome] = []
        most = self._limits.max_queue_size
        for start in range(0, len(items), most):
            part = items[start : start + self._limits.max_queue_size]
            outcomes += await batcher.submit(
                [Item(Payload("value", item), Options()) for item in part], deadline=deadline
            )
        return outcomes

    async def _end(self, opened: "_Opened") -> None:
        try:
            await asyncio.wait_for(opened.batcher.close(), self._deadline)  # by then every caller has its answer
        except TimeoutError:
            logs.event("gave up on a function that does not return", after=self._deadline)
        await opened.runner.close(timeout=_END_SECONDS)


@dataclass(frozen=True, slots=True)
class _Opened:
    """The part of a `Batcher` that each process has for itself."""

    loop: LoopThread
    runner: ThreadsRunner
    batcher: BatchQueue


class LoadedModel:
    """A model in this process: the answers of a server, without the server."""

    def __init__(self, service: BlockingService) -> None:
        self._service = service

    def predict(self, item: Any, *, top_k: int = 5, threshold: float | None = None) -> Any:
        """Answer one item: image bytes or a path, a text, a number, a list, or whatever else the model takes.

        The answer of a model of images or texts depends on its task: a `flambeau.types.Classification` with the best
        `top_k` classes and all probabilities; a `MultiLabel` with its `labels` and `scores`; a `Regression` with its
        `output`; an `Embedding` whose `embedding` is a float32 array. Other models return plain Python values.
        `threshold` is as in `flambeau serve`. Raises `RequestError`. Where the network or your own class failed on the
        item, its code is `model_error`, and its message has the words of that exception, which is its `__cause__`.
        """
        kind = self._service.service.get().kind
        payload = _payload(kind, item)
        options = Options(top_k=top_k, threshold=threshold, probabilities=True)

        async def ask(service: Service) -> list[Outcome]:
            return await service.predict(service.get(), [payload], options, timeout=service.settings.deadline)

        [outcome] = self._service.call(ask)
        result = outcome.result
        if isinstance(result, RequestError):
            raise _told(result) from result.__cause__
        return result.returned()

    def close(self) -> None:
        """Release the model."""
        self._service.close()

    def __enter__(self) -> "LoadedModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load(source: str | Path | None = None, **options: Any) -> LoadedModel:
    """Load a model into this process: `flambeau.load("bundle").predict(image_bytes)`.

    `source` and the `options` are those of `flambeau serve`, with underscores. The model is built if it is not in the
    cache. A Python model runs in this process only (`runner="threads"`, the default here). Raises `SetupError`.
    """
    options.setdefault("runner", "threads")
    source_options, settings = split_options({"source": None if source is None else str(source), **options})
    opened = build_cache.open_source(source_options, progress=lambda event: None)
    if settings.runner != "threads" and isinstance(opened.manifest.pipeline, PythonConfig):
        raise ConfigError(
            f"{opened.manifest.name} is a Python model, which is given the objects themselves, and they stay in this "
            "process: leave runner='processes' out, or serve it (flambeau serve)"
        )
    return LoadedModel(BlockingService(lambda: Service([opened], settings)))


def _payload(kind: str, item: Any) -> Payload:
    if kind == "python":
        return Payload("value", item)
    if isinstance(item, str | Path) and kind in ("image", "audio"):
        return Payload("file", Path(item).read_bytes())
    if isinstance(item, bytes | bytearray | memoryview):
        return Payload("file", bytes(item))
    return Payload("json", encode(item).json)


def _told(error: RequestError) -> RequestError:
    """The error with the words of the exception that it stands for, which no client of a server gets to see."""
    cause = error.__cause__
    if cause is None:
        return error
    return RequestError(f"{error.message}: {type(cause).__name__}: {cause}", code=error.code, hint=error.hint)


def _unwrap(outcome: Outcome) -> Any:
    """The answer of a function to its item; what it raised is raised as it was."""
    result = outcome.result
    if isinstance(result, RequestError):
        raise result.__cause__ or result
    return result.returned()
