"""The metrics of a handler: each is a line of the log, at the level debug, and a number that can be read again."""

from collections.abc import Callable
from typing import Any

from .metric_type_enum import MetricTypes


class HandlerMetric:
    """One number under a name."""

    def __init__(self, name: str, unit: str, kind: MetricTypes, tell: Callable[[str, float, str], None]) -> None:
        self.name, self.unit, self.metric_type = name, unit, kind
        self.value = 0.0
        self._tell = tell

    def add_or_update(self, value: float, dimension_values: list[Any] | None = None, request_id: str = "") -> None:
        """Add to a counter, or set anything else."""
        self.value = self.value + value if self.metric_type is MetricTypes.COUNTER else value
        self._tell(self.name, self.value, self.unit)

    def update(self, value: float, request_id: str = "", dimensions: list[Any] | None = None) -> None:
        """The same, by an older name."""
        self.add_or_update(value)


class MetricsStore:
    """All of a worker's."""

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name
        self.request_ids: dict[int, str] | None = None
        self.cache: dict[str, HandlerMetric] = {}
        self.tell: Callable[[str, float, str], None] = lambda name, value, unit: None

    def add_counter(self, name: str, value: float, idx: int | None = None, dimensions: list[Any] | None = None) -> None:
        """Add to a counter."""
        self.add_metric(name, value, "Count", idx, dimensions, MetricTypes.COUNTER)

    def add_time(
        self, name: str, value: float, idx: int | None = None, unit: str = "ms",
        dimensions: list[Any] | None = None, metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:  # fmt: skip
        """A time, in `ms` or `s`."""
        self.add_metric(
            name, value, {"ms": "Milliseconds", "s": "Seconds"}.get(unit, unit), idx, dimensions, metric_type
        )

    def add_size(
        self, name: str, value: float, idx: int | None = None, unit: str = "MB",
        dimensions: list[Any] | None = None, metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:  # fmt: skip
        """A size."""
        self.add_metric(name, value, unit, idx, dimensions, metric_type)

    def add_percent(
        self, name: str, value: float, idx: int | None = None, dimensions: list[Any] | None = None,
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:  # fmt: skip
        """A share of a hundred."""
        self.add_metric(name, value, "Percent", idx, dimensions, metric_type)

    def add_error(self, name: str, value: Any, dimensions: list[Any] | None = None) -> None:
        """An error, as a metric without a unit."""
        self.tell(name, 1.0, str(value))

    def add_metric(
        self, name: str, value: float, unit: str = "", idx: int | None = None,
        dimensions: list[Any] | None = None, metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> None:  # fmt: skip
        """Any metric."""
        self.add_metric_to_cache(name, unit, metric_type=metric_type).add_or_update(value)

    def add_metric_to_cache(
        self, metric_name: str, unit: str = "", dimension_names: list[str] | None = None,
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> HandlerMetric:  # fmt: skip
        """The metric of that name, made if need be."""
        if metric_name not in self.cache:
            self.cache[metric_name] = HandlerMetric(
                metric_name, unit, metric_type, lambda name, value, of: self.tell(name, value, of)
            )
        return self.cache[metric_name]

    def get_metric(self, metric_name: str, metric_type: MetricTypes = MetricTypes.COUNTER) -> HandlerMetric:
        """The metric of that name. Raises `KeyError`."""
        return self.cache[metric_name]
