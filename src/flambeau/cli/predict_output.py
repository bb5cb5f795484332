"""Output of `flambeau predict`: its progress, and its rows as a table for people or as lines for programs."""

import time
from collections.abc import Iterable
from typing import BinaryIO

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from flambeau.offline.entries import shown
from flambeau.offline.job import Tally
from flambeau.offline.rows import Lines, Row
from flambeau.tasks import TASKS, TaskName
from flambeau.telemetry import logs

_SECONDS_BETWEEN_LINES = 10.0
_WIDEST = 120  # columns of a table


class ProgressBar:
    """A moving bar on a terminal; elsewhere a line every ten seconds."""

    def __init__(self, tally: Tally, *, total: int | None, log_level: str, console: Console) -> None:
        """`total` is the final number of rows, if it is known."""
        self._tally = tally
        self._total = total
        self._log_level = log_level
        self._moves = console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[errors]}", style="red"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> "ProgressBar":
        self._started = self._last_line = time.monotonic()
        if self._moves:
            self._progress.start()
            self._task = self._progress.add_task(
                "predict", total=self._total, completed=self._tally.rows, rate="", errors=""
            )
            logs.configure(self._log_level)  # again, because standard error now prints above the bar
        return self

    def __exit__(self, *_: object) -> None:
        if self._moves:
            self._progress.stop()
            logs.configure(self._log_level)

    def update(self) -> None:
        """Show the tally, which has changed."""
        tally = self._tally
        errors = number_of(tally.errors, "error") if tally.errors else ""
        if self._moves:
            rate = f"{self.rate():.0f} rows/s"
            self._progress.update(self._task, completed=tally.rows, rate=rate, errors=errors)
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            of = "" if self._total is None else f" of {self._total}"
            left = "" if self._total is None else f", {_clock((self._total - tally.rows) / self.rate())} left"
            click.echo(f"{tally.rows}{of} rows, {errors or 'no errors'}, {self.rate():.1f} rows/s{left}", err=True)

    def seconds(self) -> float:
        """Seconds since this run began."""
        return time.monotonic() - self._started

    def rate(self) -> float:
        """Rows per second in this run."""
        return (self._tally.rows - self._tally.kept) / max(self.seconds(), 1e-3)


def number_of(count: int, what: str) -> str:
    """A count in words: 1 row, 2 rows."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class TableSink:
    """Rows as lines of a table, shown as they come: column widths depend on the terminal, not on the rows."""

    def __init__(self, console: Console, task: TaskName) -> None:
        self._console = console
        self._task = TASKS[task]
        self._begun = False

    def write(self, rows: Iterable[Row]) -> None:
        """Show some rows."""
        table = Table(
            box=None, pad_edge=False, expand=True, width=min(self._console.width, _WIDEST), show_header=not self._begun
        )
        table.add_column("input", ratio=1, no_wrap=True, overflow="ellipsis")
        table.add_column("answer", ratio=1, no_wrap=True, overflow="ellipsis")
        for row in rows:
            table.add_row(Text(row["input"]), self._answer(row))
        self._begun = True
        self._console.print(table)

    def _answer(self, row: Row) -> Text:
        if row["error"] is not None:
            return Text(shown(row["error"]), style="red")
        text, found = self._task.line(row)
        return Text(shown(text), style="" if found else "dim")


class StreamSink:
    """Rows as lines of text, for another program."""

    def __init__(self, file: BinaryIO, lines: Lines) -> None:
        self._file = file
        self._lines = lines
        self._file.write(lines.header)

    def write(self, rows: Iterable[Row]) -> None:
        """Write some rows."""
        self._file.write(self._lines.encode(rows))
        self._file.flush()
