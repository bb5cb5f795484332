"""What was measured, and the medians of it. Plain values, which become the line of JSON as they are."""

import math
import statistics
from collections.abc import Callable, Iterable

import msgspec

from benchmarks.load import Window
from benchmarks.measure import Turn

OURS = "Flambeau"
TWO_FRONTS = "Flambeau two fronts"


class Row(msgspec.Struct):
    """One peer in one comparison: its turns, one for each round, or why there are none."""

    peer: str
    setting: str
    turns: list[Turn] = []
    failure: str = ""

    def cold(self) -> float:
        """Median seconds from the start to the first answer."""
        return statistics.median(turn.cold for turn in self.turns)

    def idle(self) -> float:
        """Median bytes of memory before any load."""
        return statistics.median(turn.idle for turn in self.turns)

    def loaded(self) -> float:
        """Median bytes of memory right after the load."""
        return statistics.median(turn.loaded for turn in self.turns)

    def per_second(self, clients: int) -> float:
        """Median requests per second."""
        return statistics.median(window.per_second for window in self.windows(clients))

    def p50(self, clients: int) -> float:
        """Median of the turns' median milliseconds; infinite where most turns had no answer at all."""
        return statistics.median(window.p50_ms if window.good else math.inf for window in self.windows(clients))

    def p99(self, clients: int) -> float:
        """Median of the turns' 99th percentiles, milliseconds."""
        return statistics.median(window.p99_ms if window.good else math.inf for window in self.windows(clients))

    def wrong(self, clients: int) -> int:
        """Answers that were not right, in all turns."""
        return sum(window.wrong for window in self.windows(clients))

    def windows(self, clients: int) -> list[Window]:
        """Those with that many clients."""
        return [window for turn in self.turns for window in turn.windows if window.clients == clients]

    @property
    def sound(self) -> bool:
        """Whether it was measured, and never answered wrong."""
        return bool(self.turns) and not self.failure and not any(w.wrong for turn in self.turns for w in turn.windows)


class Result(msgspec.Struct):
    """One comparison: the same work and clients for all rows. `limits` are images per second of bare loops, a value
    per round, by what looped."""

    name: str
    title: str
    clients: tuple[int, ...]
    rows: list[Row]
    limits: dict[str, list[float]] = {}

    def row(self, peer: str) -> Row | None:
        """A peer's row, if it was measured soundly."""
        return next((row for row in self.rows if row.peer == peer and row.sound), None)

    def others(self, *, without: Iterable[str] = ()) -> list[Row]:
        """The sound rows that are not ours."""
        return [row for row in self.rows if row.sound and row.peer not in (OURS, TWO_FRONTS, *without)]

    def limit(self, engine: str = "") -> float:
        """The best bare loop's images per second, of one engine or of all; 0 where none was measured."""
        return max((statistics.median(v) for name, v in self.limits.items() if name.startswith(engine)), default=0.0)


def best(rows: Iterable[Row], figure: Callable[[Row], float], *, least: bool = False) -> Row | None:
    """The row with the greatest figure, or with the least."""
    return (min if least else max)(rows, key=figure, default=None)
