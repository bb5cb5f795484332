"""What is counted and timed, by Prometheus' names and units. Lives in the front process only.

Labels come from loaded models and closed sets, never from request data, so the number of series is bounded.
"""

from dataclasses import fields

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

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
        self.stage_seconds = Histogram(
            "flambeau_stage_seconds", "Seconds an item spent in a stage.", (*model, "stage"),
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
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
        self.model_ready = Gauge("flambeau_model_ready", "1 when the model can answer.", model, registry=registry)

    def for_model(self, name: str, version: str) -> "ModelMetrics":
        """The instruments with the model's labels filled in."""
        return ModelMetrics(self, name, version)

    def render(self) -> bytes:
        """The text exposition format of Prometheus, version 0.0.4."""
        return generate_latest(self.registry)


class ModelMetrics:
    """What one model reports. The labels are resolved once, not per request."""

    def __init__(self, metrics: Metrics, name: str, version: str) -> None:
        labels = (name, version)
        self._metrics = metrics
        self._labels = labels
        self._stages = {stage.name: metrics.stage_seconds.labels(*labels, stage.name) for stage in fields(Timings)}
        self._batch_size = metrics.batch_size.labels(*labels)
        self._queue_items = metrics.queue_items.labels(*labels)
        self._queue_bytes = metrics.queue_bytes.labels(*labels)
        self._ready = metrics.model_ready.labels(*labels)

    def answered(self, status: int) -> None:
        """One request was answered."""
        self._metrics.requests.labels(*self._labels, str(status)).inc()

    def timings(self, timings: Timings) -> None:
        """One item went through."""
        for stage, histogram in self._stages.items():
            histogram.observe(getattr(timings, stage))

    def batch(self, size: int, reason: str) -> None:
        """One batch closed."""
        self._batch_size.observe(size)
        self._metrics.batches_closed.labels(*self._labels, reason).inc()

    def retried(self, items: int) -> None:
        """So many items go back to the queue."""
        self._metrics.retries.labels(*self._labels).inc(items)

    def rejected(self, code: Code) -> None:
        """One request was refused before compute."""
        self._metrics.rejections.labels(*self._labels, code).inc()

    def queue(self, items: int, size: int) -> None:
        """The queue holds so many items and bytes."""
        self._queue_items.set(items)
        self._queue_bytes.set(size)

    def ready(self, ready: bool) -> None:
        """The model can answer, or cannot."""
        self._ready.set(int(ready))
