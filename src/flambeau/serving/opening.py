"""What the user named, to models that a service can be made of: sources opened, and built where need be.

One plain source is one bundle, and has to open. Of several models, or of a repository, each opens by itself: what is
wrong with one is kept beside it (`OpenedModel`), and the others are served.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from flambeau.bundle.storage import Bundle
from flambeau.errors import ConfigError, SetupError
from flambeau.settings.service import Settings
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache, declarations, remote
from flambeau.sources.build_cache import Progress
from flambeau.sources.declarations import Declaration, DeclaredModel
from flambeau.sources.request import BuildStep, Note
from flambeau.telemetry import logs


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A declared model, and for each version that is loaded at the start its bundle, or why there is none."""

    declared: DeclaredModel
    opened: dict[str, Bundle | SetupError]


Opened = Bundle | OpenedModel


def open_models(
    options: SourceOptions, settings: Settings, *, progress: Progress, more: Sequence[str] = ()
) -> list[Opened]:
    """The models that `options.source` and `more` name. Raises `SetupError`."""
    if options.source is not None and remote.is_remote(options.source):
        progress(Note(f"fetching {options.source}"))
        options = msgspec.structs.replace(options, source=str(remote.fetch(options.source)))
    more = [str(remote.fetch(each)) if remote.is_remote(each) else each for each in more]
    if settings.multi_model is not None:
        if options.source is not None:
            raise ConfigError(f"--multi-model {settings.multi_model} loads its models later: leave out SOURCE")
        return []
    if settings.model_store is not None and options.source is None and not more:
        return []
    sources = [each for each in (options.source, *more) if each is not None]
    declared = declarations.declare(sources, msgspec.structs.replace(options, source=None), keep=settings.keep_versions)
    if declared is None:
        bundle = build_cache.open_source(options, progress=progress)
        archive = declarations.declare_archive(options, name=settings.name)
        return [bundle if archive is None else OpenedModel(archive, {archive.versions[0].version: bundle})]
    if settings.name is not None:
        raise ConfigError(f"--name {settings.name} is for one model, and these have names of their own: leave it out")
    if settings.load == "on-demand":
        return [OpenedModel(each, {}) for each in declared]
    return [_open_model(each, progress) for each in declared]


def _open_model(declared: DeclaredModel, progress: Progress) -> OpenedModel:
    opened: dict[str, Bundle | SetupError] = {}
    for each in declared.wanted():
        progress(Note(f"model {each.name}, version {each.version}"))
        try:
            opened[each.version] = open_declaration(each, progress=progress)
        except SetupError as error:
            opened[each.version] = error
    return OpenedModel(declared, opened)


def open_declaration(declaration: Declaration, *, progress: Progress) -> Bundle:
    """The bundle of a version. Raises `SetupError`."""
    if declaration.fault:
        raise ConfigError(declaration.fault)
    return build_cache.open_source(declaration.source, progress=progress)


def open_while_serving(declaration: Declaration) -> Bundle:
    """The same for a running service: the steps of a build go to its log."""

    def log(event: object) -> None:
        model, version = declaration.name, declaration.version
        if isinstance(event, BuildStep):
            logs.event("build step", model=model, version=version, step=f"{event.number}/{event.of}", what=event.what)
        elif isinstance(event, Note):
            logs.event("build note", model=model, version=version, note=event.text)

    return open_declaration(declaration, progress=log)
