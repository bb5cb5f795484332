"""`flambeau build`."""

import typing
from pathlib import Path
from typing import Any

import click

from flambeau.cli.options import HELP, SettingsCommand, source_options
from flambeau.cli.terminal import ShowProgress
from flambeau.settings.service import EngineChoice
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache


@click.command(cls=SettingsCommand, context_settings=HELP)
@source_options
@click.option("--threshold", type=click.FloatRange(0, 1), help="Probability below which nothing is recognised.")
@click.option("--allow-code", is_flag=True, help="Run code that the source carries.")
@click.option(
    "--engine",
    type=click.Choice(typing.get_args(EngineChoice)),
    default="auto",
    show_default=True,
    help="What will serve it; auto measures those that are installed.",
)
@click.option(
    "--int8",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False),
    help="Add a quantised graph, calibrated with the images in DIR; taken by name only: --engine onnxruntime-int8.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder to make the bundle in.",
)
def build(*, output: Path, engine: EngineChoice, int8: str | None, **options: Any) -> None:
    """Make a bundle of SOURCE: a folder that `flambeau serve` opens without PyTorch.

    SOURCE is what `flambeau serve` takes. The export for ONNX Runtime is checked against PyTorch, and the figures are
    kept in the bundle's manifest.json. With --samples, inputs of yours are kept too, and `flambeau serve` refuses to
    become ready when their answers do not reproduce.
    """
    progress = ShowProgress()
    try:
        bundle = build_cache.build_into(SourceOptions(**options), output, progress=progress, engine=engine, int8=int8)
    finally:
        progress.done()
    size = sum((bundle.path / name).stat().st_size for name in bundle.manifest.members)
    click.echo(f"{output}: {bundle.manifest.name} for {bundle.manifest.engine}, {size / 1e6:.1f} MB")
