"""Outcomes to rows with their columns, and rows to lines of CSV or JSONL and back."""

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from flambeau.errors import RequestError
from flambeau.tasks import TASKS, CellKind, TaskName
from flambeau.types import Outcome

Row = dict[str, Any]
"""The cells of a row by column. A cell is `None` if there is nothing, and a list if there are several values."""

_ERROR = ("error", "code")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The columns of a row.

    These are the cells of its task. A task that ranks adds, with `top_k`, the ranked classes under `predictions`, and
    with `probabilities` the whole vector.
    """

    task: TaskName
    top_k: int | None = None
    probabilities: bool = False
    named: Mapping[str, CellKind] | None = None

    @property
    def cells(self) -> Mapping[str, CellKind]:
        """The columns of the task and the kinds of their cells: those `named` for this network, or else all."""
        return TASKS[self.task].columns if self.named is None else self.named

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns, in order. Every row has all of them."""
        ranked = ("predictions",) if self.top_k else ()
        vector = ("probabilities",) if self.probabilities else ()
        return ("input", *self.cells, *ranked, *vector, *_ERROR)

    @property
    def flat_columns(self) -> tuple[str, ...]:
        """The columns of CSV, in which the second and every further class has columns of its own."""
        cells = TASKS[self.task].ranked
        ranked = tuple(f"{name}_{rank}" for rank in range(2, (self.top_k or 1) + 1) for name in cells)
        named = (name for name in self.columns if name not in ("predictions", "probabilities", *_ERROR))
        return (*named, *ranked, *_ERROR)

    def row(self, name: str, outcome: Outcome) -> Row:
        """The row of one input."""
        result = outcome.result
        row: Row = dict.fromkeys(self.columns) | {"input": name}
        if isinstance(result, RequestError):
            return row | {"error": result.message, "code": result.code}
        return row | result.row(top_k=self.top_k, probabilities=self.probabilities)

    def flat(self, row: Row) -> Row:
        """The row for `flat_columns`."""
        flat = {name: row.get(name) for name in self.flat_columns}
        for rank, each in enumerate(row.get("predictions") or (), 1):
            if rank > 1:
                flat |= {f"{name}_{rank}": cell for name, cell in each.items()}
        return flat


# Rows to lines of text and back: CSV and JSONL. Every row is one line, so that a truncated file can be repaired.


class WrittenRow(msgspec.Struct, frozen=True):
    """What a later run must know about a row: its input, and the error's code if it failed."""

    input: str
    code: str | None = None


class Lines(Protocol):
    """A text format of rows."""

    header: bytes
    """The first line of a file, with its line end; empty if the format has none."""

    def encode(self, rows: Iterable[Row]) -> bytes:
        """Complete lines, one for each row."""
        ...

    def read(self, line: bytes) -> WrittenRow:
        """Read a line. Raises `ValueError` for one that we did not write."""
        ...


class JsonLines:
    """One JSON object per line; all have the same keys."""

    header = b""
    _decoder = msgspec.json.Decoder(WrittenRow)

    def encode(self, rows: Iterable[Row]) -> bytes:
        return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)

    def read(self, line: bytes) -> WrittenRow:
        return self._decoder.decode(line)


class CsvLines:
    """Cells separated by commas; a list in a cell is JSON, and line ends within a cell are escaped."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.header = self._join([layout.flat_columns])

    def encode(self, rows: Iterable[Row]) -> bytes:
        return self._join([_cell(cell) for cell in self._layout.flat(row).values()] for row in rows)

    def read(self, line: bytes) -> WrittenRow:
        [cells] = csv.reader([line.decode()])
        row = dict(zip(self._layout.flat_columns, cells, strict=True))
        return WrittenRow(row["input"], row["code"] or None)

    def _join(self, rows: Iterable[Iterable[str]]) -> bytes:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue().encode()


def _cell(value: Any) -> str:
    if isinstance(value, msgspec.Raw):
        text = bytes(value)
        if text.startswith(b'"'):
            return _cell(msgspec.json.decode(text))
        return "" if text == b"null" else text.decode()
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list):
        return msgspec.json.encode(value).decode()
    return str(value).replace("\r", "\\r").replace("\n", "\\n")
