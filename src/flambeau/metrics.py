"""What is counted and timed, by Prometheus' names and units. Lives in the front process only.

Labels come from loaded models and closed sets, never from request data, so the number of series is bounded.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from flambeau.errors import Code
from flambeau.types import Timings

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The instruments of one service, in a registry of their own: two services in one process do not collide."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        model = ("model", "version")
        self.requests = Counter(
            "flambeau_requests", "Answered requests by status.", (*model, "status"), registry=registry
        )
        self.stage_seconds = _StageSeconds()
        registry.register(self.stage_seconds)
        self.batch_size = Histogram(
            "flambeau_batch_size", "Items computed together.", model, buckets=_SIZES, registry=registry
        )
        self.batches_closed = Counter(
            "flambeau_batches_closed", "Batches by why they closed.", (*model, "reason"), registry=registry
        )
        self.rejections = Counter(
            "flambeau_rejections", "Requests refused before compute, by code.", (*model, "code"), registry=registry
        )
        self.retries = Counter(
            "flambeau_retries", "Items run again because their worker was lost.", model, registry=registry
        )
        self.queue_items = Gauge("flambeau_queue_items", "Items waiting.", model, registry=registry)
        self.queue_bytes = Gauge("flambeau_queue_bytes", "Bytes waiting.", model, registry=registry)
        self.refusals = Counter(
            "flambeau_refusals", "Requests and connections that the front refused, by code.", ("code",),
            registry=registry,
        )  # fmt: skip
        self.model_ready = Gauge("flambeau_model_ready", "1 when the model can answer.", model, registry=registry)

    def for_model(self, name: str, version: str) -> "ModelMetrics":
        """The instruments with the model's labels filled in."""
        return ModelMetrics(self, name, version)

    def render(self) -> bytes:
        """The text exposition format of Prometheus, version 0.0.4."""
        return generate_latest(self.registry)


class _Distribution:
    """How many observations fell into each bucket, the last one being without bound, and their sum."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(_SECONDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(_SECONDS, seconds)] += 1
        self.total += seconds


class _StageSeconds(Collector):
    """A histogram that only the loop writes to: without the locks of the library's own, and a fifth of its cost."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, ...], _Distribution] = {}

    def labels(self, *labels: str) -> _Distribution:
        return self._series.setdefault(labels, _Distribution())

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(
            "flambeau_stage_seconds", "Seconds an item spent in a stage.", labels=("model", "version", "stage")
        )
        bounds = [*map(str, _SECONDS), "+Inf"]
        for labels, series in self._series.items():
            cumulated = [float(count) for count in accumulate(series.counts)]
            family.add_metric(labels, list(zip(bounds, cumulated, strict=True)), series.total)
        yield family


class ModelMetrics:
    """What one model reports. The labels are resolved once, not per request."""

    def __init__(self, metrics: Metrics, name: str, version: str) -> None:
        labels = (name, version)
        self._metrics = metrics
        self._labels = labels
        self._queue, self._prepare, self._compute, self._finish = (
            metrics.stage_seconds.labels(*labels, stage.name) for stage in fields(Timings)
        )
        self._answered: dict[int, Counter] = {}
        self._closed: dict[str, Counter] = {}
        self._batch_size = metrics.batch_size.labels(*labels)
        self._ready = metrics.model_ready.labels(*labels)

    def answered(self, status: int) -> None:
        """One request was answered."""
        counter = self._answered.get(status)
        if counter is None:
            counter = self._answered[status] = self._metrics.requests.labels(*self._labels, str(status))
        counter.inc()

    def timings(self, timings: Timings) -> None:
        """One item went through."""
        self._queue.observe(timings.queue)
        self._prepare.observe(timings.prepare)
        self._compute.observe(timings.compute)
        self._finish.observe(timings.finish)

    def batch(self, size: int, reason: str) -> None:
        """One batch closed."""
        self._batch_size.observe(size)
        counter = self._closed.get(reason)
        if counter is None:
            counter = self._closed[reason] = self._metrics.batches_closed.labels(*self._labels, reason)
        counter.inc()

    def retried(self, items: int) -> None:
        """So many items go back to the queue."""
        self._metrics.retries.labels(*self._labels).inc(items)

    def rejected(self, code: Code) -> None:
        """One request was refused before compute."""
        self._metrics.rejections.labels(*self._labels, code).inc()

    def watch_queue(self, items: Callable[[], float], size: Callable[[], float]) -> None:
        """From now on these tell, whenever somebody asks, how many items wait and how many bytes they hold."""
        self._metrics.queue_items.labels(*self._labels).set_function(items)
        self._metrics.queue_bytes.labels(*self._labels).set_function(size)

    def ready(self, ready: bool) -> None:
        """The model can answer, or cannot."""
        self._ready.set(int(ready))
