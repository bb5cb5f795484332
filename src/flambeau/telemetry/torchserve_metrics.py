"""Metrics under the names of TorchServe, which dashboards and scaling rules read: the same numbers as ours.

They are there beside ours where TorchServe's management API is. Counts and microseconds, as sums since the start.
"""

import socket
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from flambeau.telemetry.metrics import ModelMetrics

_MICROSECONDS = 1e6


class TorchServeMetrics(Collector):
    """Requests, and the time in the queue and in the handler, of each model."""

    def __init__(self, watched: "Sequence[ModelMetrics]") -> None:
        self._watched = watched
        self._host = socket.gethostname()

    def collect(self) -> Iterator[Metric]:
        # Not counters for the library, which would put "_total" behind their names.
        requests = Metric("ts_inference_requests_total", "Requests for inference.", "unknown")
        inference = Metric("ts_inference_latency_microseconds", "Microseconds from receipt to answer.", "unknown")
        queue = Metric("ts_queue_latency_microseconds", "Microseconds of items in the queue.", "unknown")
        for each in list(self._watched):
            labels = {"model_name": each.name, "model_version": each.version, "hostname": self._host}
            totals = each.totals
            for metric, value in (
                (requests, totals.answered + totals.failed),
                (inference, totals.seconds * _MICROSECONDS),
                (queue, totals.queue * _MICROSECONDS),
            ):
                metric.add_sample(metric.name, labels, float(value))
        yield from (requests, inference, queue)
