"""`flambeau predict`: answers many inputs without a server."""

import asyncio
import contextlib
import itertools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click
from rich.console import Console

from flambeau.answers import Answer
from flambeau.bundle.pipeline_config import kind_of
from flambeau.bundle.storage import Bundle
from flambeau.cli.options import HELP, SettingOption, SettingsCommand, source_options
from flambeau.cli.predict_output import ProgressBar, StreamSink, TableSink, number_of
from flambeau.cli.terminal import ShowProgress
from flambeau.errors import ConfigError, SetupError
from flambeau.offline import coco, job, parquet
from flambeau.offline.coco import CocoLayout
from flambeau.offline.entries import CSV, TABLES, InputEntry, Wanted, WantedKind
from flambeau.offline.inputs import Inputs, may_have
from flambeau.offline.job import RowSink, Tally
from flambeau.offline.journal import Journal, JournalPlace, MadeAtOnce, Record, identify
from flambeau.offline.picture_folder import PictureFolder
from flambeau.offline.rows import CsvLines, JsonLines, Layout, Lines
from flambeau.serving.service import Service, split_options
from flambeau.settings import service
from flambeau.settings.service import Settings
from flambeau.sources import build_cache
from flambeau.system import staging
from flambeau.system.machine import usable_cores
from flambeau.tasks import TASKS
from flambeau.tasks.object_detection import ObjectDetection
from flambeau.telemetry import logs

_SETTINGS = (  # settings of `serve` that have a meaning without HTTP
    "engine", "device", "runner", "replicas", "threads", "max_batch_size", "threshold", "max_image_pixels",
    "compute_timeout", "startup_timeout", "max_worker_memory", "log_level", "allow_code", "allow_installs",
)  # fmt: skip
_DEFAULTS = {"max_batch_size": None, "compute_timeout": 60.0, "log_level": "warning"}  # those that differ from `serve`


@click.command(cls=SettingsCommand, context_settings=HELP)
@source_options
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A .csv, .jsonl, .parquet or .json (COCO) file.",
)
@click.option(
    "--format", type=click.Choice(("table", "csv", "jsonl", "parquet", "coco")), help="Default: by the name of FILE."
)
@click.option("--overwrite", is_flag=True, help="Start again and replace FILE.")
@click.option("--top-k", type=click.IntRange(1, 1000), metavar="K", help="Add the best K classes of each image.")
@click.option("--probabilities", is_flag=True, help="Add all probabilities of each image.")
@click.option(
    "--pictures", type=click.Path(path_type=Path), metavar="DIR",
    help="Write each answer that is a picture, such as a mask, into this folder.",
)  # fmt: skip
@click.option(
    "--coco-annotations", type=click.Path(path_type=Path), metavar="FILE",
    help="Take the ids of images and categories from this file of COCO's, for --format coco.",
)  # fmt: skip
@click.option(
    "--column", metavar="NAME", help="Column of a table with images' names or texts, or field of a JSON line."
)
@click.option("--columns", metavar="A,B,...", help="Columns of a CSV file that hold the numbers.")
def predict(*, source: str | None, inputs: tuple[str, ...], max_batch_size: int | None, **flags: Any) -> None:
    """Predict each INPUT with the model SOURCE, on all cores, into a table or a file.

    \b
    SOURCE is what `flambeau serve` takes, and `default` is the built-in model. INPUT is one of
      photo.jpg             an image; for a Python model any file
      photos/               all images below a folder
      'photos/**/*.png'     a pattern, in quotes
      list.csv, list.jsonl  a table: of paths for an image model, of inputs for others
      -                     paths on standard input, one a line

    Rows are in the order of the inputs, and a bad input gives a row with its error. The same command, run again,
    resumes where it was interrupted.
    """
    if source is None or not inputs:
        raise click.UsageError("name a SOURCE and at least one INPUT, such as: flambeau predict default photos/")

    options = read_options(inputs, flags)
    source_part, settings = split_options(flags | {"source": source})
    logs.configure(settings.log_level)
    progress = ShowProgress()
    try:
        bundle = build_cache.open_source(source_part, progress=progress)
    finally:
        progress.done()
    scoring = Scoring(options, bundle, settings, max_batch_size=max_batch_size)
    try:
        code = scoring.to_file() if options.resumes else scoring.to_stream()
    except OSError as error:
        if not staging.no_space(error):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's last flush
        onwards = ", and run it again: it resumes there" if options.resumes else ""
        where = options.output or "standard output"
        raise SetupError(f"the rows cannot be written to {where}: it has no space left: make room{onwards}") from None
    sys.exit(code)


predict.params.extend(
    SettingOption(each, default=_DEFAULTS.get(each.name, each.default))
    for each in service.rows()
    if each.name in _SETTINGS
)


TableFormat = Literal["table", "csv", "jsonl", "parquet", "coco"]

_FORMATS: dict[str, TableFormat] = {
    ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet",
    ".json": "coco",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """The command's options, except those of the source and the service."""

    inputs: tuple[str, ...]
    output: Path | None
    format: TableFormat
    overwrite: bool
    top_k: int | None
    probabilities: bool
    column: str | None
    columns: tuple[str, ...]
    pictures: Path | None = None
    coco_annotations: Path | None = None

    @property
    def made(self) -> bool:
        """Whether the file is made of all rows at once, when they are there."""
        return self.format in ("parquet", "coco")

    @property
    def resumes(self) -> bool:
        """Whether the rows go into a file that a later run can resume, rather than into a pipe or a device."""
        return self.output is not None and (self.output.is_file() or not self.output.exists())


def read_options(inputs: tuple[str, ...], flags: dict[str, Any]) -> PredictOptions:
    """Take these options out of the command's flags. Raises `SetupError` if the output cannot be written like that."""
    columns = flags.pop("columns")
    ours = {name: flags.pop(name) for name in _TAKEN}
    ours["format"] = _format(ours["output"], ours["format"])
    options = PredictOptions(inputs=inputs, columns=tuple(columns.split(",")) if columns else (), **ours)
    for name in inputs:
        if options.pictures and Path(name).is_dir() and options.pictures.resolve().is_relative_to(Path(name).resolve()):
            raise ConfigError(f"--pictures {options.pictures} lies below the input {name}: name a folder outside of it")
    if options.output is None:
        if options.made:
            raise ConfigError(f"--format {options.format} needs a file: name it with -o")
    elif options.output.is_dir() or not options.output.parent.is_dir():
        raise ConfigError(f"-o {options.output} cannot be a file: name one in a folder that exists")
    elif options.format == "table" or (options.made and not options.resumes):
        raise ConfigError(f"--format {options.format} cannot be written to {options.output}: leave -o out, or take csv")
    if options.format == "parquet":
        parquet.require()
    if options.coco_annotations and options.format != "coco":
        raise ConfigError(
            "--coco-annotations has an effect on --format coco only: leave it out, or write .json with -o"
        )
    return options


def _format(output: Path | None, wanted: TableFormat | None) -> TableFormat:
    if wanted is not None:
        return wanted
    if output is None:
        return "table" if sys.stdout.isatty() else "jsonl"
    try:
        return _FORMATS[output.suffix.lower()]
    except KeyError:
        raise ConfigError(
            f"-o {output} does not tell its format: call it .csv, .jsonl, .parquet or .json, or add --format"
        ) from None


_TAKEN = ("output", "format", "overwrite", "top_k", "probabilities", "column", "pictures", "coco_annotations")
_BATCHES: dict[WantedKind, int] = {"image": 8, "text": 16, "audio": 8, "python": 8, "tensor": 64}
_OF_CLASSES = ("top_k", "probabilities")  # options of a ranked task: a multi-label answer has every label anyway
_EXIT_WITH_ERRORS = 3
_EXIT_BROKEN_PIPE = 141  # what a shell reports for a program ended by SIGPIPE
_WIDTH_OF_A_FILE = 120  # columns of a table written to a pipe


class Scoring:
    """Runs all inputs through one model. `to_stream` and `to_file` return the exit code and raise `SetupError`."""

    def __init__(
        self, options: PredictOptions, bundle: Bundle, settings: Settings, *, max_batch_size: int | None
    ) -> None:
        """Raises `SetupError` when the settings do not allow the model, or an option has no effect on it."""
        kind = kind_of(bundle.manifest.pipeline)
        does = TASKS[bundle.manifest.what_it_does]
        idle = [*(["columns"] if kind in ("image", "text", "audio") else []), *([] if does.ranked else _OF_CLASSES)]
        if does.pictorial and options.pictures is None:
            raise SetupError(f"{bundle.manifest.name} makes pictures: name a folder for them with --pictures DIR")
        if does.answer.picture is Answer.picture:
            idle.append("pictures")
        if options.format == "coco" and not issubclass(does.answer, ObjectDetection):
            raise SetupError(
                f"--format coco is for detectors, and {bundle.manifest.name} does {does.name}: write .jsonl with -o"
            )
        for name in idle:
            if getattr(options, name):
                raise SetupError(f"--{name.replace('_', '-')} has no effect on {bundle.manifest.name}: leave it out")
        for name, suffixes in (("column", TABLES), ("columns", CSV)):
            if getattr(options, name) and not may_have(options.inputs, suffixes, kind):
                raise SetupError(
                    f"--{name} has no effect on {' '.join(options.inputs)}: it is for "
                    f"{'tables' if name == 'column' else 'CSV'} ({', '.join(sorted(suffixes))}): leave it out"
                )
        if options.probabilities and options.format not in ("jsonl", "parquet"):  # once they are known to be an answer
            raise ConfigError(f"--probabilities are too many for a {options.format}: write .jsonl or .parquet with -o")
        names = [spec.name for spec in bundle.manifest.inputs]
        if kind == "tensor" and len(names) > 1 and any(Path(each).suffix.lower() in CSV for each in options.inputs):
            raise SetupError(
                f"{bundle.manifest.name} takes {', '.join(names)} by their names, and a line of CSV is one list of "
                "numbers: give it .jsonl, in whose lines they are the members of an object"
            )
        self._options = options
        self._bundle = bundle
        self._replicas = settings.replicas or usable_cores()
        settings = replace(settings, max_batch_size=max_batch_size or _BATCHES[kind])
        self._settings = job.settle(settings, replicas=self._replicas)
        self._service = Service([bundle], self._settings)
        self._kind = kind
        self._missing = kind == "tensor" and bundle.manifest.inputs[0].missing
        named = dict(does.columns_of(bundle.manifest.outputs)) | ({"file": "text"} if options.pictures else {})
        layout = CocoLayout if options.format == "coco" else Layout
        self._layout = layout(task=does.name, top_k=options.top_k, probabilities=options.probabilities, named=named)
        self._labels = bundle.labels()
        self._ids = coco.numbers(self._labels, options.coco_annotations) if options.format == "coco" else None

    def to_stream(self) -> int:
        """Compute all rows, and write them to the terminal, standard output, a pipe or a device."""
        inputs, tally = self._inputs(), Tally()
        total = inputs.count()
        with contextlib.ExitStack() as stack:
            bar_on = Console(stderr=True)
            sink: RowSink
            if self._options.format == "table":
                screen = Console() if sys.stdout.isatty() else Console(width=_WIDTH_OF_A_FILE)
                bar_on = screen if screen.is_terminal else bar_on  # one terminal: the bar stays below the rows
                sink = TableSink(screen, self._layout.task)
            else:
                output = self._options.output
                file = stack.enter_context(output.open("wb")) if output else sys.stdout.buffer
                sink = StreamSink(file, self._lines())
            try:
                seconds = self._score(iter(inputs), sink, tally=tally, total=total, bar_on=bar_on)
            except BrokenPipeError:  # the reader has enough
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's last flush
                return _EXIT_BROKEN_PIPE
        return self._end(inputs, tally, seconds)

    def to_file(self) -> int:
        """Compute the rows that are missing in the file, and append them."""
        output = self._options.output
        assert output is not None  # one that resumes has one
        place = JournalPlace(output, self._made(output))
        given = self._options.coco_annotations
        for name in (*map(Path, self._options.inputs), *([given] if given else [])):
            if name.resolve() in place.own:
                raise ConfigError(f"{name} is both read and written: name another file with -o")
        inputs = self._inputs(place.own)
        total = inputs.count()
        if total == 0:
            raise self._nothing()
        journal = Journal(place, self._record(inputs), self._lines(), overwrite=self._options.overwrite)
        with contextlib.closing(journal):
            entries = iter(inputs) if self._ids is None else self._ids.only_known(inputs)
            tally = job.pass_by(entries, journal.written(), where=output)
            if tally.kept and tally.kept != total:
                click.echo(f"{output} has {number_of(tally.kept, 'row')} already: going on from there", err=True)
            seconds = self._score(entries, journal, tally=tally, total=total, bar_on=Console(stderr=True))
            journal.finish(rows=tally.rows, errors=tally.errors)
        if self._ids is not None:
            click.echo(f"{self._ids.told}; {coco.beside(output)} lists them", err=True)
        return self._end(inputs, tally, seconds)

    def _made(self, output: Path) -> MadeAtOnce | None:
        if self._ids is not None:
            write = partial(coco.write, ids=self._ids, labels=self._labels)
            return MadeAtOnce(write, coco.written, (coco.beside(output),))
        if self._options.format == "parquet":
            return MadeAtOnce(partial(parquet.write, layout=self._layout), parquet.written)
        return None

    def _inputs(self, own: frozenset[Path] = frozenset()) -> Inputs:
        options = self._options
        wanted = Wanted(kind=self._kind, column=options.column, columns=options.columns, missing=self._missing)
        return Inputs(options.inputs, wanted, own=own, listed=lambda: open(0, "rb", closefd=False))

    def _lines(self) -> Lines:
        return CsvLines(self._layout) if self._options.format == "csv" else JsonLines()

    def _record(self, inputs: Inputs) -> Record:
        options, settings = self._options, self._settings
        read = [*inputs.tables(), *([options.coco_annotations] if options.coco_annotations else [])]
        tables = {str(table): table.stat() for table in read if table.is_file()}
        return Record(
            model=self._bundle.manifest.name,
            bundle=identify(self._bundle),
            engine=self._service.get().engine,
            options={
                "format": options.format,
                "top-k": options.top_k,
                "probabilities": options.probabilities,
                "column": options.column,
                "columns": list(options.columns),
                "pictures": str(options.pictures) if options.pictures else None,
                "coco-annotations": str(options.coco_annotations) if options.coco_annotations else None,
                "threshold": settings.threshold,
                "max-image-pixels": settings.max_image_pixels,
            },
            tables={name: (found.st_size, found.st_mtime_ns) for name, found in tables.items()},
        )

    def _score(
        self, entries: Iterator[InputEntry], sink: RowSink, *, tally: Tally, total: int | None, bar_on: Console
    ) -> float:
        """Compute the rows of these entries, and return the seconds it took.

        Raises `SetupError` when there is nothing to compute now and was nothing before.
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
                        pictures=PictureFolder(self._options.pictures) if self._options.pictures else None,
                    )
                )  # fmt: skip
            except (KeyboardInterrupt, SystemExit):
                hint = "run the same command to resume" if self._options.resumes else "name a file with -o to keep them"
                click.echo(f"stopped after {number_of(tally.rows, 'row')}: {hint}", err=True)
                raise
            return bar.seconds()

    def _nothing(self) -> SetupError:
        return SetupError(f"there is nothing to predict in {' '.join(self._options.inputs)}: name other inputs")

    def _end(self, inputs: Inputs, tally: Tally, seconds: float) -> int:
        """Print the summary, and return the exit code."""
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
            told = f"{self._options.output} is complete: {counted}"
        click.echo(told, err=True)
        return _EXIT_WITH_ERRORS if tally.errors else 0
