"""One run of `flambeau predict`, from its order to its exit code, and what is said about it on standard error."""

import asyncio
import contextlib
import itertools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import click
from rich.console import Console

from flambeau.bundle.storage import Bundle, ImageConfig, PythonConfig, TensorConfig
from flambeau.cli.terminal import ProgressBar, StreamSink, TableSink, number_of
from flambeau.errors import ConfigError, SetupError
from flambeau.offline import job, parquet
from flambeau.offline.entries import InputEntry, Wanted, WantedKind
from flambeau.offline.inputs import Inputs
from flambeau.offline.job import RowSink, Tally
from flambeau.offline.journal import Journal, JournalPlace, Record, identify
from flambeau.offline.rows import CsvLines, JsonLines, Layout, Lines
from flambeau.serving.service import Service
from flambeau.settings.service import Settings, usable_cores
from flambeau.tasks import TASKS

# What the user of `flambeau predict` asked for, besides the model and the settings, and whether it can be written.

TableFormat = Literal["table", "csv", "jsonl", "parquet"]

_FORMATS: dict[str, TableFormat] = {
    ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What the user asked for, besides the model and the settings."""

    inputs: tuple[str, ...]
    output: Path | None
    format: TableFormat
    overwrite: bool
    top_k: int | None
    probabilities: bool
    column: str | None
    columns: tuple[str, ...]

    @property
    def resumes(self) -> bool:
        """Whether the rows go into a file that a later start can go on from, and not into a pipe or a device."""
        return self.output is not None and (self.output.is_file() or not self.output.exists())


def read_order(inputs: tuple[str, ...], options: dict[str, Any]) -> PredictOptions:
    """Take what is ours out of the options of the command. Raises `SetupError` for what cannot be written."""
    columns = options.pop("columns")
    ours = {name: options.pop(name) for name in ("output", "format", "overwrite", "top_k", "probabilities", "column")}
    ours["format"] = _format(ours["output"], ours["format"])
    order = PredictOptions(inputs=inputs, columns=tuple(columns.split(",")) if columns else (), **ours)
    if order.probabilities and order.format not in ("jsonl", "parquet"):
        raise ConfigError(f"--probabilities are too many for a {order.format}: write .jsonl or .parquet with -o")
    if order.output is None:
        if order.format == "parquet":
            raise ConfigError("--format parquet needs a file: name it with -o")
    elif order.output.is_dir() or not order.output.parent.is_dir():
        raise ConfigError(f"-o {order.output} cannot be a file: name one in a folder that exists")
    elif order.format == "table" or (order.format == "parquet" and not order.resumes):
        raise ConfigError(f"--format {order.format} cannot be written to {order.output}: leave -o out, or take csv")
    if order.format == "parquet":
        parquet.require()
    return order


def _format(output: Path | None, wanted: TableFormat | None) -> TableFormat:
    if wanted is not None:
        return wanted
    if output is None:
        return "table" if sys.stdout.isatty() else "jsonl"
    try:
        return _FORMATS[output.suffix.lower()]
    except KeyError:
        raise ConfigError(
            f"-o {output} does not tell its format: call it .csv, .jsonl or .parquet, or add --format"
        ) from None


_KINDS: dict[type, WantedKind] = {ImageConfig: "image", TensorConfig: "tensor", PythonConfig: "python"}
_BATCHES: dict[WantedKind, int] = {"image": 8, "python": 8, "tensor": 64}
_OF_CLASSES = ("top_k", "probabilities")  # options of a classifier: where several labels may be right, all are there
_EXIT_WITH_ERRORS = 3
_EXIT_BROKEN_PIPE = 141  # as a shell shows a program that SIGPIPE ended
_WIDTH_OF_A_FILE = 120  # columns of a table that goes into a pipe


class Scoring:
    """All inputs through one model. Its two ways return the exit code and raise `SetupError`."""

    def __init__(
        self, order: PredictOptions, bundle: Bundle, settings: Settings, *, max_batch_size: int | None
    ) -> None:
        """Raises `SetupError` when the model may not be run so, or an option has no effect on it."""
        kind = _KINDS[type(bundle.manifest.pipeline)]
        does = TASKS[bundle.manifest.what_it_does]
        idle = [*(["columns"] if kind == "image" else []), *([] if does.ranked else _OF_CLASSES)]
        for name in idle:
            if getattr(order, name):
                raise SetupError(f"--{name.replace('_', '-')} has no effect on {bundle.manifest.name}: leave it out")
        self._order = order
        self._bundle = bundle
        self._replicas = settings.replicas or usable_cores()
        settings = replace(settings, max_batch_size=max_batch_size or _BATCHES[kind])
        self._settings = job.settle(settings, replicas=self._replicas)
        self._service = Service([bundle], self._settings)
        self._kind = kind
        named = does.columns_of(bundle.manifest.outputs)
        self._layout = Layout(task=does.name, top_k=order.top_k, probabilities=order.probabilities, named=named)

    def to_stream(self) -> int:
        """Compute all rows, and show them or send them to standard output, a pipe or a device."""
        inputs, tally = self._inputs(), Tally()
        total = inputs.count()
        with contextlib.ExitStack() as stack:
            bar_on = Console(stderr=True)
            sink: RowSink
            if self._order.format == "table":
                screen = Console() if sys.stdout.isatty() else Console(width=_WIDTH_OF_A_FILE)
                bar_on = screen if screen.is_terminal else bar_on  # one terminal: the bar stays below the rows
                sink = TableSink(screen, self._layout.task)
            else:
                output = self._order.output
                file = stack.enter_context(output.open("wb")) if output else sys.stdout.buffer
                sink = StreamSink(file, self._lines())
            try:
                seconds = self._score(iter(inputs), sink, tally=tally, total=total, bar_on=bar_on)
            except BrokenPipeError:  # whoever read them has enough
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's last flush
                return _EXIT_BROKEN_PIPE
        return self._end(inputs, tally, seconds)

    def to_file(self) -> int:
        """Compute the rows that a file lacks, and append them."""
        output = self._order.output
        assert output is not None  # an order that resumes has one
        place = JournalPlace(output, parquet=self._order.format == "parquet")
        for name in self._order.inputs:
            if Path(name).resolve() in place.own:
                raise ConfigError(f"{name} is both read and written: name another file with -o")
        inputs = self._inputs(place.own)
        total = inputs.count()
        if total == 0:
            raise self._nothing()
        journal = Journal(place, self._record(inputs), self._lines(), overwrite=self._order.overwrite)
        with contextlib.closing(journal):
            entries = iter(inputs)
            tally = job.pass_by(entries, journal.written(), where=output)
            if tally.kept and tally.kept != total:
                click.echo(f"{output} has {number_of(tally.kept, 'row')} already: going on from there", err=True)
            seconds = self._score(entries, journal, tally=tally, total=total, bar_on=Console(stderr=True))
            journal.finish(rows=tally.rows, errors=tally.errors, layout=self._layout)
        return self._end(inputs, tally, seconds)

    def _inputs(self, own: frozenset[Path] = frozenset()) -> Inputs:
        order = self._order
        wanted = Wanted(kind=self._kind, column=order.column, columns=order.columns)
        return Inputs(order.inputs, wanted, own=own, listed=lambda: open(0, "rb", closefd=False))

    def _lines(self) -> Lines:
        return CsvLines(self._layout) if self._order.format == "csv" else JsonLines()

    def _record(self, inputs: Inputs) -> Record:
        order, settings = self._order, self._settings
        tables = {str(table): table.stat() for table in inputs.tables() if table.is_file()}
        return Record(
            model=self._bundle.manifest.name,
            bundle=identify(self._bundle),
            engine=self._service.get().engine,
            options={
                "format": order.format,
                "top-k": order.top_k,
                "probabilities": order.probabilities,
                "column": order.column,
                "columns": list(order.columns),
                "threshold": settings.threshold,
                "max-image-pixels": settings.max_image_pixels,
            },
            tables={name: (found.st_size, found.st_mtime_ns) for name, found in tables.items()},
        )

    def _score(
        self, entries: Iterator[InputEntry], sink: RowSink, *, tally: Tally, total: int | None, bar_on: Console
    ) -> float:
        """Compute the rows of these entries, and return the seconds it took.

        Raises `SetupError` when there is nothing to be computed and never was.
        """
        first = next(entries, None)
        if first is None:
            if not tally.rows:
                raise self._nothing()
            return 0.0
        with ProgressBar(tally, total=total, log_level=self._settings.log_level, console=bar_on) as bar:
            try:
                asyncio.run(
                    job.run(
                        self._service, itertools.chain([first], entries), self._layout,
                        sink=sink, tally=tally, replicas=self._replicas, on_rows=bar.update,
                    )
                )  # fmt: skip
            except (KeyboardInterrupt, SystemExit):
                hint = "the same command goes on" if self._order.resumes else "name a file with -o to keep them"
                click.echo(f"stopped after {number_of(tally.rows, 'row')}: {hint}", err=True)
                raise
            return bar.seconds()

    def _nothing(self) -> SetupError:
        return SetupError(f"there is nothing to predict in {' '.join(self._order.inputs)}: name other inputs")

    def _end(self, inputs: Inputs, tally: Tally, seconds: float) -> int:
        """Say what came of it, and return the exit code."""
        if inputs.passed_over:
            what = ", ".join(f"{count} {suffix}" for suffix, count in sorted(inputs.passed_over.items()))
            click.echo(f"passed over: {what}", err=True)
        if tally.nonfinite:
            click.echo(f"numbers that were NaN or infinite, and are null now: {tally.nonfinite}", err=True)
        counted = f"{number_of(tally.rows, 'row')}, {number_of(tally.errors, 'error')}"
        fresh = tally.rows - tally.kept
        if fresh:
            told = f"{counted} ({tally.kept} rows from before)" if tally.kept else counted
            told += f", {seconds:.1f} s, {fresh / seconds:.1f} rows/s"
        else:
            told = f"{self._order.output} is complete: {counted}"
        click.echo(told, err=True)
        return _EXIT_WITH_ERRORS if tally.errors else 0
