"""`flambeau package`: from a source to a folder that builds a container image, and to the image."""

import glob
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from flambeau.bundle import storage
from flambeau.bundle.storage import Bundle
from flambeau.cli.options import HELP, SettingsCommand, engine_option, source_options
from flambeau.cli.terminal import ShowProgress
from flambeau.deploy import explain as explanation
from flambeau.deploy import folder, image
from flambeau.errors import ConfigError, SourceError
from flambeau.settings.service import EngineChoice
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache
from flambeau.sources.request import BuildStep
from flambeau.system import staging

_EPOCH = "SOURCE_DATE_EPOCH"
_STEPS = 4  # the bundle, the packages, their hashes, the folder


@click.command(cls=SettingsCommand, context_settings=HELP)
@source_options
@click.option("--threshold", type=click.FloatRange(0, 1), help="Probability below which nothing is recognised.")
@click.option("--allow-code", is_flag=True, help="Run code that the source carries, here and in the image.")
@engine_option("Engine of the image; eager and compile put PyTorch into it.")
@click.option("--with", "more", multiple=True, metavar="PACKAGE", help="A further installed package; can be repeated.")
@click.option("--tag", metavar="NAME", help="Name of the image. Default: the model's name.")
@click.option("--build", "builds", is_flag=True, help="Build the image too, with docker, podman or buildah.")
@click.option("--explain", is_flag=True, help="Show where the image's bytes lie.")
@click.option(
    "--keep-optimised", is_flag=True, help="Keep the graph optimised for this machine's processor, for others like it."
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="New folder to write.",
)
def package(
    *, output: Path, engine: EngineChoice, more: tuple[str, ...], tag: str | None, builds: bool, explain: bool,
    keep_optimised: bool, **options: Any,
) -> None:  # fmt: skip
    """Write a folder that builds a container image of SOURCE with docker, podman, buildah or Kaniko.

    SOURCE is what `flambeau build` takes, or a bundle that it made. The image holds what serving needs and no more: no
    PyTorch, no compilers, no pip. It runs as any user with a read-only root, and answers on port 5000.

    \b
      flambeau package my.pth -o image --tag my-model --build
      docker run --rm -p 127.0.0.1:5000:5000 -e FLAMBEAU_INSECURE_NO_AUTH=1 \
        -e FLAMBEAU_ALLOWED_HOSTS=localhost,127.0.0.1 my-model

    A bundle and the packages that are installed here always make the same folder. SOURCE_DATE_EPOCH sets the time of
    its files.
    """
    epoch = _epoch(os.environ.get(_EPOCH))
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise SourceError(f"{output} exists and is not empty: name a new folder with -o")
    builder = image.find() if builds else None  # before anything takes time
    progress, steps = ShowProgress(), iter(range(2, _STEPS + 1))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        staging.clear(output.parent, glob.escape(output.name))
        with tempfile.TemporaryDirectory(prefix="flambeau-") as beside, staging.filling(output) as filled:
            bundle = _bundle(SourceOptions(**options), Path(beside, "bundle"), engine, progress)
            written = folder.write(
                bundle, filled, engine=engine, tag=tag, more=more, allow_code=bool(options["allow_code"]),
                keep_optimised=keep_optimised, epoch=epoch,
                progress=lambda what: progress(BuildStep(next(steps), _STEPS, what)),
            )  # fmt: skip
            found = [*explanation.lines(written)] if explain else []
            if output.exists():
                output.rmdir()
            filled.rename(output)
    except OSError as error:
        raise SourceError(f"{output} cannot be written ({error.strerror}): name another folder with -o") from error
    finally:
        progress.done()
    for line in found:
        click.echo(line)
    _tell(written, output)
    if builder is not None:
        _build(builder, output, written.tag, epoch)


def _bundle(options: SourceOptions, target: Path, engine: EngineChoice, progress: ShowProgress) -> Bundle:
    """The bundle: the one that SOURCE is, or a new one built into `target`."""
    if options.source and (Path(options.source) / storage.MANIFEST).is_file():
        progress(BuildStep(1, _STEPS, "reading the bundle"))
        return build_cache.open_source(options, progress=progress)
    click.echo(f"[1/{_STEPS}] building the bundle", err=True)
    return build_cache.build_into(options, target, progress=progress, engine=engine)


def _tell(written: folder.Packaged, output: Path) -> None:
    torch = next((each for each in written.packages if each.name == "torch"), None)
    packages = sum(each.bytes for each in written.packages)
    click.echo(
        f"{output}: {written.manifest.name} for {written.engine} on {' and '.join(written.hashes.processors)}; "
        f"packages {packages / 1e6:.0f} MB, bundle {written.bundle_bytes / 1e6:.0f} MB"
    )
    if torch is not None:
        click.echo(f"PyTorch is in it, because of the engine {written.engine}: it weighs {torch.bytes / 1e6:.0f} MB")
    if written.engine == "python":
        click.echo("what the model's own code imports is not known here: name its packages with --with PACKAGE")
    for processor, why in written.hashes.without.items():
        click.echo(f"it cannot be built for {processor}: {why}")


def _build(builder: image.Builder, output: Path, tag: str, epoch: int) -> None:
    click.echo(f"== {builder.name} builds {tag}", err=True)
    began = time.monotonic()
    image.build(builder, output, tag, epoch=epoch)
    size = image.size(builder, tag)
    told = f", {size / 1e6:.0f} MB unpacked" if size else ""
    click.echo(f"{tag}: built by {builder.name} in {time.monotonic() - began:.0f} s{told}")


def _epoch(text: str | None) -> int:
    if not text:
        return folder.EPOCH
    if not text.isdecimal():
        raise ConfigError(f"{_EPOCH}={text} is not a number of seconds since 1970: write it as in {folder.EPOCH}")
    return int(text)
