"""Adds up what fronts say of themselves: metrics in Prometheus' text form, KServe's statistics, and details of models.

Counters and histograms are summed, with those of fronts that are gone, so that they never fall. Gauges are summed, or
the largest or the least counts, as each means. It does not ask anybody; `flambeau.fronts.supervisor` does.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from flambeau.telemetry.counting import CountedMetric, in_prometheus_form

_LARGEST = frozenset({"flambeau_model_ready", "flambeau_build_info"})
"""Gauges that say whether something is so: it is, if it is at one front."""

_LEAST = frozenset({"process_start_time_seconds"})

_WORKERS = "flambeau_worker_memory_bytes"
_WORKER = re.compile(r'(?<=worker=")')
"""The label that counts the workers of one front; in the total it is made of the front's number and its own."""

_COUNTED = ("counter", "histogram", "summary")


def add_metrics(now: Mapping[int, bytes], gone: Sequence[bytes]) -> bytes:
    """The metrics of the service. `now`: the text of each front, by its number; 0 is the supervisor. `gone`: the last
    texts of fronts that have ended, of which only what is counted remains.

    All texts come from the same code, so a series has the same name and labels, byte for byte, at every front: labels
    are compared and not read, which takes a twentieth of the time.
    """
    families: dict[str, _Family] = {}
    for number, text in now.items():
        _read(families, text, front=number, all_of_it=True)
    for text in gone:
        _read(families, text, front=0, all_of_it=False)
    return "".join(each.text() for each in families.values()).encode()


_written: Callable[[float], str] = floatToGoString


def latest(texts: Sequence[bytes]) -> bytes:
    """What several texts of one front say was counted: of each series the largest value, as counts only grow."""
    families: dict[str, _Family] = {}
    for text in texts:
        _read(families, text, front=0, all_of_it=False, largest=True)
    return "".join(each.text() for each in families.values()).encode()


def left_in_memory(series: Iterable[tuple[CountedMetric, tuple[str, ...], Sequence[int], float]]) -> bytes:
    """The text of what a front that is gone had counted in its memory (`flambeau.telemetry.count_memory`)."""
    found: defaultdict[CountedMetric, list[tuple[tuple[str, ...], Sequence[int], float]]] = defaultdict(list)
    for family, labels, numbers, total in series:
        found[family].append((labels, numbers, total))
    return _text_of(in_prometheus_form(family, each) for family, each in found.items())


def counted(text: bytes, before: bytes) -> bytes:
    """What the counters of two texts come to: so that many fronts that are gone are one text."""
    return add_metrics({}, [before, text] if before else [text])


def _read(families: "dict[str, _Family]", text: bytes, *, front: int, all_of_it: bool, largest: bool = False) -> None:
    """Add a text in Prometheus' exposition format, version 0.0.4, in which a metric begins with its HELP and TYPE."""
    family: _Family | None = None
    meaning = ""
    for line in text.decode().splitlines():
        if line.startswith("# HELP "):
            meaning = line
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ", 3)
            family = None
            if all_of_it or kind in _COUNTED:
                family = families.setdefault(name, _Family(name, f"{meaning}\n{line}\n"))
        elif family is not None and line:
            series, _, value = line.rpartition(" ")
            if family.name == _WORKERS:
                series = _WORKER.sub(f"{front}.", series, count=1)
            family.add(series, float(value), largest=largest)


class _Family:
    """One metric, added up by series."""

    def __init__(self, name: str, head: str) -> None:
        self.name = name
        self._head = head
        self._series: dict[str, float] = {}

    def add(self, series: str, value: float, *, largest: bool) -> None:
        """Add the value of a series: its name with its labels. `largest`: in place of a smaller one, whatever it is."""
        before = self._series.get(series)
        if before is None:
            self._series[series] = value
        elif largest or self.name in _LARGEST:
            self._series[series] = max(before, value)
        elif self.name in _LEAST:
            self._series[series] = min(before, value)
        else:
            self._series[series] = before + value

    def text(self) -> str:
        """The total."""
        return self._head + "".join(f"{series} {_written(value)}\n" for series, value in self._series.items())


def about_fronts(
    *, present: int, of: int, restarts: Mapping[str, int], connections: Mapping[int, int], log_dropped: int
) -> bytes:
    """The metrics that a supervisor has of its own, and those of this process that fronts have as well."""
    fronts = GaugeMetricFamily("flambeau_fronts", "Fronts by state.", labels=("state",))
    fronts.add_metric(("ready",), present)
    fronts.add_metric(("missing",), of - present)
    ended = CounterMetricFamily(
        "flambeau_front_restarts", "Fronts that ended and were replaced, by reason.", labels=("reason",)
    )
    for reason, count in restarts.items():
        ended.add_metric((reason,), count)
    held = GaugeMetricFamily("flambeau_front_connections", "Connections of a front.", labels=("front",))
    for number, count in connections.items():
        held.add_metric((str(number),), count)
    lost = CounterMetricFamily(
        "flambeau_log_dropped", "Log lines that were dropped because nobody read them.", value=log_dropped
    )
    return _text_of([fronts, ended, held, lost])


def _text_of(metrics: Iterable[Metric]) -> bytes:
    registry = CollectorRegistry()
    registry.register(_Own([*metrics]))
    return generate_latest(registry)


class _Own(Collector):
    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics


# Documents


_LATEST = frozenset({"last_inference", "largest_difference"})
_SUMMED = frozenset(
    {"queued", "workers", "min_replicas", "max_replicas", "memory", "cost", "count"}
    | {"compared", "agreed", "failed", "skipped"}
)
"""What is summed in the details of a model; the rest is the same at every front, or that of the one that was asked."""


def add_statistics(answers: Sequence[bytes], gone: Sequence[bytes]) -> bytes:
    """KServe's statistics, added up by model and version. Of `gone` fronts, those of models that the others have."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for number, text in enumerate((*answers, *gone)):
        for entry in msgspec.json.decode(text)["model_stats"]:
            key = entry["name"], entry["version"]
            if key in found:
                found[key] = _added(found[key], entry)
            elif number < len(answers):
                found[key] = entry
    return msgspec.json.encode({"model_stats": list(found.values())})


def join_statistics(answers: Sequence[bytes]) -> bytes:
    """The same, of every model that any of them has."""
    return add_statistics(answers, ())


def _added(first: Any, second: Any) -> Any:
    """Two documents of one form, whose numbers are summed."""
    if isinstance(first, dict) and isinstance(second, dict):
        return {
            name: max(value, second.get(name, value)) if name in _LATEST else _added(value, second.get(name))
            for name, value in first.items()
        }
    numbers = isinstance(first, int | float) and isinstance(second, int | float)
    return first + second if numbers and not isinstance(first, bool) else first


def add_details(first: bytes, others: Sequence[bytes | msgspec.Raw]) -> bytes:
    """The details of a model, as the first of the fronts has them, with the numbers of all."""
    found = msgspec.json.decode(first)
    for each in others:
        found = _with(found, msgspec.json.decode(each))
    return msgspec.json.encode(found)


def _with(first: Any, second: Any) -> Any:
    if isinstance(first, dict) and isinstance(second, dict):
        return {name: _counted_in(name, value, second.get(name)) for name, value in first.items()}
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        return [_with(*pair) for pair in zip(first, second, strict=True)]
    return first


def _counted_in(name: str, first: Any, second: Any) -> Any:
    if isinstance(first, int | float) and isinstance(second, int | float):
        if name in _SUMMED:
            return first + second
        if name in _LATEST:
            return max(first, second)
    return _with(first, second)
