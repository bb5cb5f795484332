"""What is to be served, before any of it is opened: `NAME=SOURCE` on the command line, or a repository's folder.

A declaration says where a version of a model comes from and what is set for it alone. One that cannot be read is
declared all the same, with the reason: it must not keep the others from being served.
"""

import contextlib
import tomllib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec

from flambeau.bundle import storage
from flambeau.checkpoints import model_archive, repository
from flambeau.checkpoints.repository import NAME, OPTIONS, Place, newest_first
from flambeau.errors import ConfigError
from flambeau.settings import loading, table
from flambeau.settings.source import SourceOptions
from flambeau.sources import request
from flambeau.sources.request import refuse_idle

_GROUPS = frozenset({"Source", "Images", "Model", "Batches and queue", "Workers"})
_OF_THE_SERVICE = frozenset(
    {
        "name",
        "default",
        "strict",
        "keep_loaded",
        "keep_versions",
        "watch",
        "watch_interval",
        "load",
        "max_memory",
        *table.PERMISSIONS,
    }
)
_OF_SOURCES = frozenset(SourceOptions.__struct_fields__) - {"threshold"}
"""The options of a source. The threshold is the service's: it must not make another bundle."""

_TABLE_KEYS = ("default_version", "aliases", "keep_versions")


@dataclass(frozen=True, slots=True)
class Declaration:
    """A version of a model: its source, and the settings of the service that have other values for it.

    `fault` says why it cannot even be opened. `stamp` changes with the files.
    """

    name: str
    version: str
    source: SourceOptions
    settings: dict[str, Any] = field(default_factory=dict)
    fault: str = ""
    stamp: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class DeclaredModel:
    """A model with its versions, newest first.

    `default` is the version that `model.toml` names; `repository` the folder that is to be read again for newer ones.
    """

    name: str
    versions: tuple[Declaration, ...]
    default: str | None = None
    aliases: dict[str, str] = field(default_factory=dict)
    repository: Path | None = None

    def wanted(self) -> list[Declaration]:
        """The versions to load at the start: the one that answers by default, and those that have an alias."""
        names = {self.default or self.versions[0].version, *self.aliases.values()}
        return [each for each in self.versions if each.version in names]


def declare(sources: Sequence[str], options: SourceOptions, *, keep: int | None = None) -> list[DeclaredModel] | None:
    """The models of several `NAME=SOURCE`, or of one folder that is a repository; `None` for one plain source.

    `options` are what else was said about the source: of several models there is nothing to say together but that
    their code may run. `keep`: as for `declare_repository`. Raises `ConfigError`.
    """
    named = [_split(text) for text in sources]
    if len(named) == 1 and named[0] is None:
        folder = Path(sources[0])
        try:
            plain = folder.is_dir() and not model_archive.is_folder_of_one(folder)
            found = declare_repository(folder, options, keep=keep) if plain else []
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot be read ({error.strerror}): let this user read it, or name another"
            ) from None
        if found:
            _refuse_options(options, f"the repository {folder}")
        return found or None
    if not named:
        return None
    _refuse_options(options, "several models")
    models: dict[str, DeclaredModel] = {}
    for text, pair in zip(sources, named, strict=True):
        if pair is None:
            raise ConfigError(f"{text} has no name beside the other models: write NAME={text}")
        name, source = pair
        if name in models:
            raise ConfigError(f"two models are called {name}: give each a name of its own, NAME=SOURCE")
        described = SourceOptions(source=source, allow_code=options.allow_code, allow_installs=options.allow_installs)
        models[name] = declare_archive(described, name=name) or DeclaredModel(
            name, (Declaration(name, "1", described),)
        )
    return list(models.values())


def declare_archive(options: SourceOptions, *, name: str | None = None) -> DeclaredModel | None:
    """The model of an archive, by the name and the version in its manifest; `None` for any other source.

    Raises `SourceError`.
    """
    found = model_archive.read(Path(options.source)) if options.source is not None else None
    if found is None:
        return None
    name = name or request.model_name(found.name)
    version = found.version if NAME.fullmatch(found.version) else "1"
    return DeclaredModel(name, (Declaration(name, version, options),))


def declare_repository(folder: Path, options: SourceOptions, *, keep: int | None = None) -> list[DeclaredModel]:
    """The models of a repository as it is now; none for a folder that is none. Raises `OSError`.

    `keep`: of each model the newest so many versions, and those that its own file names; `None`: all.
    """
    return [_declared(folder, name, places, options, keep) for name, places in repository.read(folder).items()]


def _split(text: str) -> tuple[str, str] | None:
    """The name and the source of `NAME=SOURCE`; `None` for a source alone, such as a file with a `=` in its name."""
    name, equals, source = text.partition("=")
    if not equals or not source or not NAME.fullmatch(name) or Path(text).exists():
        return None
    return name, source


def _refuse_options(options: SourceOptions, what: str) -> None:
    refuse_idle(options, f"{what}, each of which is described in a {OPTIONS} of its own", used=())


def _declared(
    folder: Path, name: str, places: dict[str, Place], options: SourceOptions, keep: int | None
) -> DeclaredModel:
    """A repository's model. What is wrong with its own file of options is the fault of each version."""
    versions = [_version(name, version, places[version], options) for version in newest_first(places)]
    default: str | None = None
    aliases: dict[str, str] = {}
    general = next(iter(places.values())).general
    if general is not None:
        try:
            default, aliases, own = _versions_meant(general, places)
            keep = own or keep
        except ConfigError as error:
            versions = [replace(each, fault=each.fault or str(error)) for each in versions]
    named = {default, *aliases.values()}
    kept = [each for number, each in enumerate(versions) if keep is None or number < keep or each.version in named]
    return DeclaredModel(name, tuple(kept), default, aliases, folder)


def _version(name: str, version: str, place: Place, options: SourceOptions) -> Declaration:
    general: dict[str, Any] = {}
    special: dict[str, Any] = {}
    fault = place.fault
    try:
        if place.general is not None:
            general = _options(place.general, apart=_TABLE_KEYS)
        if place.special is not None:
            special = _options(place.special)
    except ConfigError as error:
        fault = str(error)
    given = general | special
    source = given.pop("source", None) or (str(place.source) if place.source else None)
    if source is None and not fault:
        fault = _no_source(place)
    of_source = {key: value for key, value in given.items() if key in _OF_SOURCES}
    settings = {key: value for key, value in given.items() if key not in _OF_SOURCES}
    if source is not None and (Path(source) / storage.MANIFEST).is_file():
        of_source = {key: value for key, value in of_source.items() if key in special}  # a bundle has labels of its own
    described = SourceOptions(
        source=source, allow_code=options.allow_code, allow_installs=options.allow_installs, **of_source
    )
    return Declaration(name, version, described, settings, fault, _stamp(place, source))


def _stamp(place: Place, source: str | None) -> tuple[int, ...]:
    """Sizes and times of change of the files that say what a version is: another stamp, and it may be tried again."""
    files = [place.general, place.special]
    if source is not None:
        path = Path(source.rpartition(":")[0] if source.rpartition(":")[0].endswith(".py") else source)
        files.append(path / storage.MANIFEST if path.is_dir() else path)
    found: list[int] = []
    for file in files:
        with contextlib.suppress(OSError):
            if file is not None:
                status = file.stat()
                found += (status.st_size, status.st_mtime_ns)
    return tuple(found)


def _no_source(place: Place) -> str:
    if not place.candidates:
        return f"{place.folder} holds no model: put a bundle or a file there, or name its source in {OPTIONS}"
    several = ", ".join(place.candidates)
    return f'{place.folder} holds several files that may be the model ({several}): write source = "FILE" into {OPTIONS}'


def _options(file: Path, *, apart: Collection[str] = ()) -> dict[str, Any]:
    """The options of a file, by name; paths are relative to it. Raises `ConfigError`."""
    given = loading.from_file(file, named=True, apart=apart)
    for name, each in given.items():
        if name in table.PERMISSIONS:
            raise ConfigError(
                f"{each.place}: {name} is a permission, which a model cannot give itself: give it to serve"
            )
        if table.rows()[name].group not in _GROUPS or name in _OF_THE_SERVICE:
            raise ConfigError(
                f"{each.place}: {name} is a setting of the whole service, and not of one model: take it away"
            )
    return {name: each.value for name, each in given.items()}


class _VersionsMeant(msgspec.Struct, rename=None):
    default_version: str | int | None = None
    aliases: dict[str, str | int] = {}
    keep_versions: Annotated[int, msgspec.Meta(ge=1)] | None = None


def _versions_meant(file: Path, places: dict[str, Place]) -> tuple[str | None, dict[str, str], int | None]:
    """The default version, the aliases and the number of versions kept in a model's own file. Raises `ConfigError`."""
    try:
        found = msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), _VersionsMeant)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {error}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    aliases = {alias: str(version) for alias, version in found.aliases.items()}
    default = None if found.default_version is None else str(found.default_version)
    for what, version in (("default_version", default), *aliases.items()):
        if version is not None and version not in places:
            there = ", ".join(newest_first(places))
            raise ConfigError(f"{file}: {what} = {version} is no version of this model: there are {there}")
    for alias in aliases:
        if not NAME.fullmatch(alias) or alias in places:
            raise ConfigError(
                f"{file}: {alias} cannot be an alias: it is a version, or has other characters than letters, "
                "digits, '.', '_' and '-'"
            )
    return default, aliases, found.keep_versions
