"""Counters and histograms as plain numbers, which take Prometheus' form when they are asked for: at a fifth of the cost
of the library's own.

Only the loop writes to histograms; counters are written to in any thread. The numbers may lie in a memory that
outlives the process (`flambeau.telemetry.count_memory`).
"""

import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Protocol, TypeVar

import msgspec
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

T = TypeVar("T")


class Cells(Protocol[T]):
    """A row of numbers: a list, or a view of a memory."""

    def __getitem__(self, index: int, /) -> T: ...
    def __setitem__(self, index: int, value: T, /) -> None: ...
    def __iter__(self) -> Iterator[T]: ...


class CountedMetric(msgspec.Struct, frozen=True, array_like=True):
    """One metric, with the names of its labels. `bounds` are those of a histogram's buckets; a counter has none."""

    name: str
    meaning: str
    labels: tuple[str, ...]
    bounds: tuple[float, ...] | None = None

    @property
    def width(self) -> int:
        """How many whole numbers a series has: one, or one for each bucket, of which the last has no bound."""
        return 1 if self.bounds is None else len(self.bounds) + 1


class CellStore(Protocol):
    """Where the numbers lie."""

    def take(self, family: CountedMetric, labels: tuple[str, ...]) -> tuple[Cells[int], Cells[float]]:
        """Room for the numbers of one series: whole ones, and one with a fraction. All are 0. For any thread."""
        ...


class OwnCells:
    """That of this process alone."""

    def take(self, family: CountedMetric, labels: tuple[str, ...]) -> tuple[Cells[int], Cells[float]]:
        """As `CellStore.take`."""
        return [0] * family.width, [0.0]


class PlainCounter:
    """One number that only grows."""

    __slots__ = ("_cell", "_lock")

    def __init__(self, lock: threading.Lock, cell: Cells[int]) -> None:
        self._lock = lock
        self._cell = cell

    @property
    def value(self) -> int:
        """The number."""
        return self._cell[0]

    def add(self, more: int = 1) -> None:
        """Count so many more. May be called in any thread."""
        with self._lock:
            self._cell[0] += more


class PlainCounters(Collector):
    """One number for each set of labels."""

    def __init__(self, family: CountedMetric, memory: CellStore) -> None:
        self._family, self._memory = family, memory
        self._series: dict[tuple[str, ...], PlainCounter] = {}
        self._lock, self._making = threading.Lock(), threading.Lock()

    def labels(self, *labels: str) -> PlainCounter:
        """The number with these labels, made on first use."""
        found = self._series.get(labels)
        if found is None:
            with self._making:
                if (found := self._series.get(labels)) is None:
                    found = PlainCounter(self._lock, self._memory.take(self._family, labels)[0])
                    self._series[labels] = found
        return found

    def collect(self) -> Iterator[Metric]:
        yield in_prometheus_form(
            self._family, ((labels, [series.value], 0.0) for labels, series in list(self._series.items()))
        )


class Distribution:
    """The number of observations in each bucket (the last has no bound), and in `sums[0]` their sum."""

    __slots__ = ("_bounds", "counts", "sums")

    def __init__(self, bounds: Sequence[float], counts: Cells[int], sums: Cells[float]) -> None:
        self._bounds = bounds
        self.counts, self.sums = counts, sums

    def observe(self, value: float) -> None:
        """Count one observation. A bucket holds the values up to and including its bound."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sums[0] += value


class Distributions(Collector):
    """One distribution for each set of labels."""

    def __init__(self, family: CountedMetric, memory: CellStore) -> None:
        assert family.bounds is not None
        self._family, self._memory, self._bounds = family, memory, family.bounds
        self._series: dict[tuple[str, ...], Distribution] = {}

    def labels(self, *labels: str) -> Distribution:
        """The distribution with these labels, made on first use, on the loop."""
        found = self._series.get(labels)
        if found is None:
            found = self._series[labels] = Distribution(self._bounds, *self._memory.take(self._family, labels))
        return found

    def collect(self) -> Iterator[Metric]:
        yield in_prometheus_form(
            self._family, ((labels, [*each.counts], each.sums[0]) for labels, each in list(self._series.items()))
        )


def in_prometheus_form(family: CountedMetric, series: Iterable[tuple[tuple[str, ...], Sequence[int], float]]) -> Metric:
    """A metric with its series: of each the labels, the whole numbers and, for a histogram, the sum."""
    if family.bounds is None:
        counter = CounterMetricFamily(family.name, family.meaning, labels=family.labels)
        for labels, numbers, _ in series:
            counter.add_metric(labels, numbers[0])
        return counter
    histogram = HistogramMetricFamily(family.name, family.meaning, labels=family.labels)
    bounds = [*map(str, map(float, family.bounds)), "+Inf"]
    for labels, numbers, total in series:
        cumulated = [float(count) for count in accumulate(numbers)]
        histogram.add_metric(labels, list(zip(bounds, cumulated, strict=True)), total)
    return histogram
