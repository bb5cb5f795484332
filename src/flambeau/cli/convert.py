"""`flambeau convert`: from an archive of TorchServe to a bundle, with a report of what became of everything in it."""

from pathlib import Path

import click

from flambeau.bundle.storage import Bundle, HandlerConfig
from flambeau.checkpoints import model_archive
from flambeau.checkpoints.model_archive import ArchivedModel
from flambeau.cli.terminal import ShowProgress, printable
from flambeau.errors import SourceError
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache

_KEPT_BY_HANDLERS = ("batchSize", "maxBatchDelay", "minWorkers", "maxWorkers", "responseTimeout", "startupTimeout")


@click.command()
@click.argument("archive", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="New folder to write."
)
@click.option("--allow-code", is_flag=True, help="Run code that the archive carries: its network, or its handler.")
def convert(archive: Path, *, output: Path, allow_code: bool) -> None:
    """Make a bundle of an ARCHIVE of TorchServe (.mar), and say what was kept, mapped and dropped.

    The export of a network is checked against PyTorch, as `flambeau build` does it.
    """
    found = model_archive.read(archive)
    if found is None:
        raise SourceError(f"{archive} is not an archive of TorchServe: flambeau build takes other sources")
    progress = ShowProgress()
    try:
        options = SourceOptions(source=str(archive), allow_code=allow_code)
        bundle = build_cache.build_into(options, output, progress=progress)
    finally:
        progress.done()
    for word, what in _report(found, bundle):
        click.echo(f"{word:<8} {printable(what)}")
    click.echo(f"{output}: {bundle.manifest.name} for {bundle.manifest.engine}")


def _report(found: ArchivedModel, bundle: Bundle) -> list[tuple[str, str]]:
    manifest = bundle.manifest
    lines = [("kept", f"the name {manifest.name}")]
    if isinstance(manifest.pipeline, HandlerConfig):
        lines.append(("kept", f"the handler {found.handler}, with its {len(found.names) - 1} files"))
        lines += [("kept", f"{name} {found.config[name]}") for name in _KEPT_BY_HANDLERS if name in found.config]
        lines += [("kept", f"{name}, for the handler") for name in found.config if name not in _KEPT_BY_HANDLERS]
    else:
        agreement = f": {manifest.agreement}" if manifest.agreement is not None else ""
        lines.append(("kept", f"the weights in {found.weights}{agreement}"))
        if found.labels:
            lines.append(("kept", f"the class names in {found.labels}"))
        lines.append(
            ("mapped", f"the handler {found.handler} to the task {manifest.what_it_does}, {manifest.pipeline}")
        )
        if found.network:
            code = manifest.architecture is not None and manifest.architecture.code is not None
            arch = manifest.architecture.name if manifest.architecture is not None else "the graph"
            lines.append(("kept" if code else "mapped", f"the class in {found.network}, to {arch}"))
        named = {found.weights, found.labels, found.network, found.requirements, model_archive.MANIFEST}
        config = found.manifest.get("model", {}).get("configFile")
        lines += [("dropped", f"{name}, which no code reads") for name in found.names if name not in {*named, config}]
        lines += [("dropped", f"{name}: measured here, or set by a flag") for name in found.config]
    lines.append(("dropped", f"the version {found.version}: a bundle's is that of its folder"))
    if found.requirements:
        lines.append(("dropped", f"{found.requirements}: install what it names beside Flambeau"))
    return lines
