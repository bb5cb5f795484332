"""Counters and timings, in Prometheus' names and units. They live in the front process only.

Labels come from loaded models and closed sets, never from request data, so the number of series is bounded. Requests
for no known model are counted under `_other`, a name that no model can have. Every series is there from the first
scrape, at 0. Queues, workers and their memory are read at each scrape.
"""

import platform
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flambeau.errors import Code
from flambeau.telemetry.counting import (
    CellStore,
    CountedMetric,
    Distribution,
    Distributions,
    OwnCells,
    PlainCounter,
    PlainCounters,
)
from flambeau.types import Timings, WorkerState, WorkerView, on_nodes
from flambeau.version import VERSION

Protocol = Literal["native", "page", "v1", "v2", "grpc", "platform", "torchserve"]
"""Where a request came from: a program that speaks the native protocol, one of KServe's, TorchServe's or that of the
platform, or the page's form.

`v2` and `grpc` are one protocol over two transports.
"""

OTHER = "_other"
"""The label of requests for no known model."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_STAGES = Timings.__struct_fields__


class Metrics:
    """The metrics of one service, in a registry of their own: two services in one process do not collide."""

    def __init__(self, log_dropped: Callable[[], int] = lambda: 0, memory: CellStore | None = None) -> None:
        """`log_dropped` returns how many lines of the log were lost so far. `memory`: where the counts lie."""
        memory = memory or OwnCells()
        self.registry = registry = CollectorRegistry()

        def counter(name: str, meaning: str, *labels: str) -> PlainCounters:
            made = PlainCounters(CountedMetric(f"flambeau_{name}", meaning, labels), memory)
            registry.register(made)
            return made

        self.requests = counter(
            "requests", "Answered requests by protocol and status.", "protocol", "model", "version", "status"
        )
        self.rejections = counter("rejections", "Requests refused before compute, by code.", "model", "version", "code")
        self.batches_closed = counter("batches_closed", "Batches by why they closed.", "model", "version", "reason")
        self.retries = counter("retries", "Items run again because their worker was lost.", "model", "version")
        stages = "Seconds an item spent in a stage; total: a request answered 200, from receipt to answer."
        self.stage_seconds = Distributions(
            CountedMetric("flambeau_stage_seconds", stages, ("model", "version", "stage"), _SECONDS), memory
        )
        self.batch_size = Distributions(
            CountedMetric("flambeau_batch_size", "Items computed together.", ("model", "version"), _SIZES), memory
        )
        self.model_ready = Gauge(
            "flambeau_model_ready", "1 when the model can answer.", ("model", "version"), registry=registry
        )
        self.refusals = counter("refusals", "Requests and connections that the front refused, by code.", "code")
        build = Gauge("flambeau_build_info", "1, with what is running.", ("version", "python"), registry=registry)
        build.labels(VERSION, platform.python_version()).set(1)
        self.watched: list[ModelMetrics] = []
        self._past_losses: defaultdict[tuple[str, str], defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        at_scrape = _AtScrape(self.watched, self._past_losses)
        for each in (self.stage_seconds, self.batch_size, at_scrape, _Log(log_dropped)):
            registry.register(each)
        ProcessCollector(registry=registry)
        self.other = RequestMetrics(self, OTHER, OTHER)

    def for_model(self, name: str, version: str) -> "ModelMetrics":
        """The metrics with the model's labels filled in."""
        made = ModelMetrics(self, name, version)
        self.watched.append(made)
        return made

    def forget(self, model: "ModelMetrics") -> None:
        """The model is gone: nothing of it is looked up any more. What was counted stays."""
        self.watched.remove(model)
        past = self._past_losses[model.name, model.version]
        for reason, count in model.losses().items():
            past[reason] += count
        self.model_ready.remove(model.name, model.version)

    def refused(self, code: Code, status: int, protocol: Protocol = "native") -> None:
        """Count a request or a connection that the front refused before it reached a model."""
        self.refusals.labels(code).add()
        self.other.answered(status, protocol)

    def render(self) -> bytes:
        """The text exposition format of Prometheus, version 0.0.4."""
        return generate_latest(_WithoutBirthdays(self.registry))


class _WithoutBirthdays:
    """A registry without the creation times of counters: a useless second series beside each."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


class RequestMetrics:
    """Counts how the requests to one model, or to none, were answered. May be called in any thread."""

    def __init__(self, metrics: Metrics, name: str, version: str) -> None:
        self._requests = metrics.requests
        self.name, self.version = name, version
        self._answered: dict[tuple[Protocol, int], PlainCounter] = {}
        self._rejected = {code: metrics.rejections.labels(name, version, code) for code in get_args(Code)}

    def answered(self, status: int, protocol: Protocol = "native") -> None:
        """Count an answered request."""
        counter = self._answered.get((protocol, status))
        if counter is None:
            counter = self._count(status, protocol)
        counter.add()

    def expect(self, statuses: Iterable[int]) -> None:
        """Make series that begin at 0 for these statuses. A second call does nothing."""
        for status in statuses:
            for protocol in get_args(Protocol):
                self._count(status, protocol)

    def rejected(self, code: Code) -> None:
        """Count a request that was refused before compute."""
        self._rejected[code].add()

    def _count(self, status: int, protocol: Protocol) -> PlainCounter:
        counter = self._requests.labels(protocol, self.name, self.version, str(status))
        return self._answered.setdefault((protocol, status), counter)


@dataclass(frozen=True, slots=True)
class VersionTotals:
    """What one version of a model has done so far: counts, and seconds in each stage of all its items together.

    `answered`, `seconds` and `failed` are of requests. `last` is when it last answered, by `time.time()`.
    """

    items: int = 0
    batches: int = 0
    queue: float = 0.0
    preprocess: float = 0.0
    inference: float = 0.0
    postprocess: float = 0.0
    answered: int = 0
    seconds: float = 0.0
    failed: int = 0
    last: float = 0.0


class ModelMetrics(RequestMetrics):
    """The metrics of one model, updated on the loop. Labels are resolved once, not per request."""

    def __init__(self, metrics: Metrics, name: str, version: str) -> None:
        super().__init__(metrics, name, version)
        self._stages: list[Distribution] = [metrics.stage_seconds.labels(name, version, stage) for stage in _STAGES]
        self._total = metrics.stage_seconds.labels(name, version, "total")
        self._batch_size = metrics.batch_size.labels(name, version)
        self._batches_closed = metrics.batches_closed
        self._closed: dict[str, PlainCounter] = {}
        self._retries = metrics.retries.labels(name, version)
        self._ready = metrics.model_ready.labels(name, version)
        self._failed = 0
        self._last = 0.0
        self._before = self._sums()  # of one of the same name and version that was unloaded
        self._shown: bool | None = None
        self.queue: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self.workers: Callable[[], Sequence[WorkerView]] = lambda: ()
        self.losses: Callable[[], Mapping[str, int]] = dict

    def answered(self, status: int, protocol: Protocol = "native", seconds: float | None = None) -> None:
        """Count an answered request. `seconds`: how long ago it was received, which counts if the status is 200."""
        counter = self._answered.get((protocol, status)) or self._count(status, protocol)
        counter.add()
        if status != 200:
            self._failed += 1
        elif seconds is not None:
            total = self._total
            total.counts[bisect_left(_SECONDS, seconds)] += 1
            total.sums[0] += seconds
            self._last = time.time()

    def timings(self, timings: Timings) -> None:
        """Count the stages of an item."""
        queue, preprocess, inference, postprocess = self._stages
        for series, seconds in (
            (queue, timings.queue), (preprocess, timings.preprocess), (inference, timings.inference),
            (postprocess, timings.postprocess),
        ):  # fmt: skip
            series.counts[bisect_left(_SECONDS, seconds)] += 1
            series.sums[0] += seconds

    def batch(self, size: int, reason: str) -> None:
        """Count a closed batch of `size` items."""
        self._batch_size.observe(size)
        self._closed[reason].add()

    def expect_batches(self, reasons: Iterable[str]) -> None:
        """Make series that begin at 0 for these reasons of closing a batch."""
        for reason in reasons:
            self._closed[reason] = self._batches_closed.labels(self.name, self.version, reason)

    def retried(self, items: int) -> None:
        """Count items that go back to the queue."""
        self._retries.add(items)

    def watch_queue(self, waiting: Callable[[], tuple[int, int]]) -> None:
        """Set the function that returns, at each scrape, how many items wait and how many bytes they hold."""
        self.queue = waiting

    def watch_workers(
        self, workers: Callable[[], Sequence[WorkerView]], losses: Callable[[], Mapping[str, int]]
    ) -> None:
        """Set the functions that return the model's workers, and how many were lost, by reason."""
        self.workers, self.losses = workers, losses

    def ready(self, ready: bool) -> None:
        """Record whether the model can answer."""
        if ready is not self._shown:
            self._shown = ready
            self._ready.set(int(ready))

    @property
    def totals(self) -> VersionTotals:
        """What was counted so far."""
        sums = [now - before for now, before in zip(self._sums(), self._before, strict=True)]
        items, batches, answered, queue, preprocess, inference, postprocess, seconds = sums
        return VersionTotals(
            int(items), int(batches), queue, preprocess, inference, postprocess, int(answered), seconds, self._failed,
            self._last,
        )  # fmt: skip

    def _sums(self) -> list[float]:
        each = (self._stages[0], self._batch_size, self._total)
        return [*(sum(series.counts) for series in each), *(series.sums[0] for series in (*self._stages, self._total))]


class _Log(Collector):
    """Counts the lost lines of the log."""

    def __init__(self, dropped: Callable[[], int]) -> None:
        self._dropped = dropped

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "flambeau_log_dropped", "Log lines that were dropped because nobody read them.", value=self._dropped()
        )


class _AtScrape(Collector):
    """Queues, workers and their memory, read at each scrape."""

    def __init__(
        self, models: Sequence[ModelMetrics], past_losses: Mapping[tuple[str, str], Mapping[str, int]]
    ) -> None:
        """`past_losses`: workers lost by versions that are unloaded by now, by name and version, and by reason."""
        self._models = models
        self._past_losses = past_losses

    def collect(self) -> Iterator[Metric]:
        own = ("model", "version")
        items = GaugeMetricFamily("flambeau_queue_items", "Items waiting.", labels=own)
        size = GaugeMetricFamily("flambeau_queue_bytes", "Bytes waiting.", labels=own)
        workers = GaugeMetricFamily("flambeau_workers", "Workers by state.", labels=(*own, "state"))
        memory = GaugeMetricFamily(
            "flambeau_worker_memory_bytes", "Resident memory of a worker process.", labels=(*own, "worker")
        )
        nodes = GaugeMetricFamily("flambeau_worker_nodes", "Workers on each node.", labels=(*own, "node"))
        restarts = CounterMetricFamily(
            "flambeau_worker_restarts", "Workers lost or unable to start, by reason.", labels=(*own, "reason")
        )
        lost = {labels: dict(counts) for labels, counts in list(self._past_losses.items())}
        for each in list(self._models):
            labels = (each.name, each.version)
            waiting, held = each.queue()
            items.add_metric(labels, waiting)
            size.add_metric(labels, held)
            seen = each.workers()
            for state in get_args(WorkerState):
                workers.add_metric((*labels, state), sum(worker.state == state for worker in seen))
            for number, worker in enumerate(seen):
                if worker.memory is not None:
                    memory.add_metric((*labels, str(number)), worker.memory)
            for node, count in on_nodes(seen).items():
                nodes.add_metric((*labels, node), count)
            counts = lost.setdefault(labels, {})
            for reason, count in each.losses().items():
                counts[reason] = counts.get(reason, 0) + count
        for labels, counts in lost.items():
            for reason, count in counts.items():
                restarts.add_metric((*labels, reason), count)
        yield from (items, size, workers, memory, nodes, restarts)
