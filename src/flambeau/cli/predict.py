"""`flambeau predict`: answers to many inputs, without a server."""

import os
import sys
from pathlib import Path
from typing import Any

import click

from flambeau.cli.options import HELP, SettingOption, SettingsCommand, source_options
from flambeau.cli.scoring import read_order
from flambeau.cli.terminal import ShowProgress
from flambeau.errors import SetupError
from flambeau.serving.service import split_options
from flambeau.settings import service
from flambeau.sources import build_cache
from flambeau.system import staging
from flambeau.telemetry import logs

_SETTINGS = (  # of `serve`: those that mean something without HTTP
    "engine", "device", "runner", "replicas", "threads", "max_batch_size", "threshold", "max_image_pixels",
    "compute_timeout", "startup_timeout", "max_worker_memory", "log_level", "allow_code",
)  # fmt: skip
_DEFAULTS = {"max_batch_size": None, "compute_timeout": 60.0, "log_level": "warning"}  # that differ from `serve`'s


@click.command(cls=SettingsCommand, context_settings=HELP)
@source_options
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="A .csv, .jsonl or .parquet file."
)
@click.option("--format", type=click.Choice(("table", "csv", "jsonl", "parquet")), help="Whatever FILE is called.")
@click.option("--overwrite", is_flag=True, help="Start anew, whatever FILE holds.")
@click.option("--top-k", type=click.IntRange(1, 1000), metavar="K", help="Add the best K classes of each image.")
@click.option("--probabilities", is_flag=True, help="Add all probabilities of each image.")
@click.option("--column", metavar="NAME", help="Column of a table that names images, or field of a JSON line.")
@click.option("--columns", metavar="A,B,...", help="Columns of a CSV file that hold the numbers.")
def predict(*, source: str | None, inputs: tuple[str, ...], max_batch_size: int | None, **options: Any) -> None:
    """Predict each INPUT with the model SOURCE, on all cores, into a table or a file.

    \b
    SOURCE is what `flambeau serve` takes, and `default` is the built-in model. INPUT is one of
      photo.jpg             an image, or for a model in Python any file
      photos/               all images below a folder
      'photos/**/*.png'     a pattern, in quotes
      list.csv, list.jsonl  a table: of paths for an image model, of inputs for others
      -                     paths on standard input, one a line

    Rows stand in the order of the inputs, and a bad input is a row with its error. The same command goes on where an
    earlier one was interrupted.
    """
    if source is None or not inputs:
        raise click.UsageError("name a SOURCE and at least one INPUT, such as: flambeau predict default photos/")
    from flambeau.cli.scoring import Scoring  # with all that draws on the terminal, which the other commands do without

    order = read_order(inputs, options)
    source_part, settings = split_options(options | {"source": source})
    logs.configure(settings.log_level)
    progress = ShowProgress()
    try:
        bundle = build_cache.open_source(source_part, progress=progress)
    finally:
        progress.done()
    scoring = Scoring(order, bundle, settings, max_batch_size=max_batch_size)
    try:
        code = scoring.to_file() if order.resumes else scoring.to_stream()
    except OSError as error:
        if not staging.no_space(error):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's last flush
        onwards = ", and start it again: it goes on from there" if order.resumes else ""
        where = order.output or "standard output"
        raise SetupError(f"the rows cannot be written to {where}: it has no space left: make room{onwards}") from None
    sys.exit(code)


predict.params.extend(  # the options of `serve` that mean something here
    SettingOption(each, default=_DEFAULTS.get(each.name, each.default))
    for each in service.rows()
    if each.name in _SETTINGS
)
