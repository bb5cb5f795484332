"""The ledger: a row for every request that was begun, and what all of them together come to.

Every request ends in exactly one way: answered, aborted by its own client, unsent (the server could not have received
it whole), or lost.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TextIO

GRACE = 0.25
"""Seconds after its deadline from which on an answer is late."""

How = Literal["open", "answered", "aborted", "unsent", "lost"]


@dataclass(slots=True)
class Row:
    """One request. Times are of `time.monotonic()`; `ok` is whether the answer was its own, where one can tell."""

    id: int
    nonce: str
    do: str
    group: str
    deadline: float
    t_send: float = 0.0
    t_last_byte_sent: float = 0.0
    t_done: float = 0.0
    how: How = "open"
    status: int = 0
    code: str = ""
    retry_after: bool = False
    expected: bool = False
    ok: bool | None = None
    err: str = ""

    @property
    def seconds(self) -> float:
        """From its last byte to its answer."""
        return self.t_done - self.t_last_byte_sent

    @property
    def late(self) -> bool:
        """Whether its answer came after its deadline."""
        return self.how == "answered" and self.seconds > self.deadline + GRACE

    @property
    def good(self) -> bool:
        """Whether it was answered 200 with its own answer."""
        return self.status == 200 and self.ok is True


@dataclass(slots=True)
class Ledger:
    """The rows of one run. With `keep=False` rows are counted and forgotten, for long runs."""

    keep: bool = True
    rows: list[Row] = field(default_factory=list)
    begun: int = 0
    stray_bytes: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    statuses: Counter[tuple[int, str]] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def open(self, *, nonce: str, do: str, group: str, deadline: float) -> Row:
        """Begin a request."""
        self.begun += 1
        row = Row(self.begun, nonce, do, group, deadline)
        if self.keep:
            self.rows.append(row)
        return row

    def settle(self, row: Row, how: How) -> None:
        """End a request; called once for each."""
        row.how = how
        self.counts[how] += 1
        if how == "answered":
            self.statuses[(row.status, row.code)] += 1
            self._judge(row, "wrong", row.ok is False)
            self._judge(row, "late", row.late)
            self._judge(row, "unexpected", not row.expected)
        elif how == "lost":
            self._judge(row, "", wrong=True)

    def _judge(self, row: Row, what: str, wrong: bool) -> None:
        if not wrong:
            return
        if what:
            self.counts[what] += 1
        if len(self.examples) < 3:
            told = f"{row.status} {row.code} {row.err}".strip()
            self.examples.append(f"{what or row.how} #{row.id} {row.do} after {row.seconds:.3f} s: {told}")

    @property
    def good(self) -> int:
        """How many were answered 200."""
        return sum(count for (status, _), count in self.statuses.items() if status == 200)

    def complaints(self) -> list[str]:
        """What breaks a promise: empty when every request got its own answer in time, and nothing else."""
        found = [f"{self.counts[what]} {what}" for what in ("lost", "wrong", "late", "unexpected") if self.counts[what]]
        if self.stray_bytes:
            found.append(f"duplicate answers ({self.stray_bytes} bytes unasked)")
        ended = sum(self.counts[how] for how in ("answered", "aborted", "unsent", "lost"))
        if ended != self.begun:
            found.append(f"{self.begun - ended} of {self.begun} requests unaccounted for")
        return [*found, *self.examples] if found else []

    def summary(self) -> str:
        """The statuses as text: `200 × 1234, 500 model_error × 5`."""
        parts = [f"{status} {code}".strip() + f" × {n}" for (status, code), n in sorted(self.statuses.items())]
        parts += [f"{how} × {self.counts[how]}" for how in ("aborted", "unsent", "lost") if self.counts[how]]
        return ", ".join(parts) or "nothing"

    def write(self, file: TextIO, fault: str) -> None:
        """Append the rows as JSON lines."""
        for row in self.rows:
            file.write(json.dumps({"fault": fault, **asdict(row)}) + "\n")


def append(path: Path | None, fault: str, ledgers: Iterable[Ledger]) -> None:
    """Append ledgers to a file, where one is asked for."""
    if path is None:
        return
    with path.open("a", encoding="utf-8") as file:
        for ledger in ledgers:
            ledger.write(file, fault)


def percentile(values: Iterable[float], share: float) -> float:
    """The value that `share` of the values do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
