"""`flambeau inspect` says what a source is; `flambeau build` makes a bundle of it."""

from pathlib import Path
from typing import Any

import click
import msgspec

from flambeau.checkpoints.report import Format
from flambeau.cli.options import HELP, SettingsCommand, engine_option, source_options
from flambeau.cli.terminal import ShowProgress, printable
from flambeau.identify.finding import Near
from flambeau.settings.service import EngineChoice
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache
from flambeau.sources.inspection import Inspection
from flambeau.sources.inspection import inspect as look

_FORMATS: dict[Format, str] = {
    "torch-zip": "torch.save, a zip archive",
    "torch-legacy": "torch.save before 1.6, bare pickles",
    "torch-tar": "torch.save before 0.2, a tar archive",
    "safetensors": "safetensors",
    "torchscript": "TorchScript",
    "pt2": "torch.export",
    "onnx": "ONNX",
    "mar": "TorchServe archive",
    "bundle": "bundle of flambeau build",
    "repository": "repository of models",
    "unknown": "unknown",
}
_MOST_SHOWN = 8


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
@click.option("--weights-key", metavar="KEY", help="Which of several sets of weights to look at.")
@click.option("--arch", metavar="NAME", help="Compare the weights with this architecture only.")
def inspect(file: Path, *, as_json: bool, weights_key: str | None, arch: str | None) -> None:
    """Say what FILE is, whether it is safe, and what `flambeau serve` would do with it.

    Nothing in the file is run, imported or unpickled. The exit code is 1 for a file that cannot be served as it is.
    """
    found = look(file, weights_key=weights_key, arch=arch)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
    else:
        for name, text in _lines(found):
            click.echo(f"{name:<14}{printable(text)}")
        for line in ("", *found.example.splitlines()) if found.example else ():
            click.echo(printable(line))
    if found.serve is None:
        raise click.exceptions.Exit(1)


def _lines(found: Inspection) -> list[tuple[str, str]]:
    """The lines of the report, as (word, text); the word is empty where a line continues the one before."""
    report = found.report
    lines = [("file", found.file), ("size", _size(report.size)), ("format", _FORMATS[report.format])]
    if found.sha256:
        lines.append(("sha256", found.sha256))
    safe = {"data": "yes: it holds data only", "code": f"no: it {report.reason}", "refused": f"no: it {report.reason}"}
    lines.append(("safe", safe[report.verdict]))
    lines += [("names", f"{each.name}: {each.danger}") for each in report.globals if not each.harmless][:_MOST_SHOWN]
    lines += list(report.facts.items())
    if found.weights:
        dtypes = ", ".join(f"{count} of {dtype}" for dtype, count in found.weights.dtypes.items())
        place = "" if found.weights.where == "." else f", under {found.weights.where}"
        lines.append(("weights", f"{_count(found.weights.parameters)} numbers, {_size(found.weights.bytes)}"))
        lines.append(("tensors", f"{found.weights.tensors} ({dtypes}){place}"))
        if found.weights.note:
            lines.append(("", found.weights.note))
    lines += _network_lines(found)
    if found.task:
        lines.append(("task", found.task))
    if found.serve:
        lines.append(("serve", found.serve))
    if found.needs:
        lines.append(("to do", found.needs))
    return lines


def _network_lines(found: Inspection) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    if found.architecture:
        official = f", the official weights {found.official.name}" if found.official else ""
        lines.append(("architecture", f"{found.architecture}{official}"))
        lines += [("", note) for note in found.notes]
        if found.preprocessing:
            names = found.report.classes
            listed = f": {', '.join(names[:_MOST_SHOWN])}{', …' if len(names) > _MOST_SHOWN else ''}" if names else ""
            lines.append(("features" if found.features else "classes", f"{found.classes}{listed}"))
            lines.append(("prepared", str(found.preprocessing)))
    elif found.weights:
        lines.append(("architecture", "none that is known"))
        lines += [("nearest", f"{near.name}: {_difference(near)}") for near in found.near]
    return lines


def _difference(near: Near) -> str:
    counts = len(near.missing), len(near.unexpected), len(near.misshaped)
    return "{} keys missing, {} unexpected, {} of another shape".format(*counts)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count} bytes"


def _count(number: int) -> str:
    return f"{number / 1e6:.2f} million" if number >= 100_000 else str(number)


# `flambeau build`


@click.command(cls=SettingsCommand, context_settings=HELP)
@source_options
@click.option("--threshold", type=click.FloatRange(0, 1), help="Probability below which nothing is recognised.")
@click.option("--allow-code", is_flag=True, help="Run code that the source carries.")
@engine_option("Engine that will serve it; auto measures those that are installed.")
@click.option(
    "--int8",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False),
    help="Add a quantised graph, calibrated with the images in DIR; used only with --engine onnxruntime-int8.",
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
    become ready if it does not reproduce their answers.
    """
    progress = ShowProgress()
    try:
        bundle = build_cache.build_into(SourceOptions(**options), output, progress=progress, engine=engine, int8=int8)
    finally:
        progress.done()
    size = sum((bundle.path / name).stat().st_size for name in bundle.manifest.members)
    click.echo(f"{output}: {bundle.manifest.name} for {bundle.manifest.engine}, {size / 1e6:.1f} MB")
