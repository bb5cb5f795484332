"""The kinds of metrics."""

import enum


class MetricTypes(enum.Enum):
    """How a metric's values come together."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
