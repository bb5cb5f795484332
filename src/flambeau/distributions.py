"""Histograms that only the loop writes to: without the locks of the Prometheus library's own, at a fifth of its cost.

They know no model and no names of metrics.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector


class Distribution:
    """How many observations fell into each bucket, the last one being without bound, and their sum."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """One observation: a bucket holds what is not above its bound."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class Distributions(Collector):
    """One distribution for each set of labels."""

    def __init__(self, name: str, meaning: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        self._name, self._meaning, self._labels, self._bounds = name, meaning, labels, bounds
        self._series: dict[tuple[str, ...], Distribution] = {}

    def labels(self, *labels: str) -> Distribution:
        """The distribution with those labels, made if need be."""
        return self._series.setdefault(labels, Distribution(self._bounds))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._meaning, labels=self._labels)
        bounds = [*map(str, map(float, self._bounds)), "+Inf"]
        for labels, series in list(self._series.items()):
            cumulated = [float(count) for count in accumulate(series.counts)]
            family.add_metric(labels, list(zip(bounds, cumulated, strict=True)), series.total)
        yield family
