"""Reads settings from environment variables and from `flambeau.toml`.

An unknown setting or a bad value is an error that names the place. `flambeau.cli.options` decides which of several
values wins.
"""

import difflib
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flambeau.errors import ConfigError
from flambeau.settings import table
from flambeau.settings.schema import Setting, to_toml

FILE = "flambeau.toml"
"""The configuration file that is read if it lies in the current folder."""

_PREFIX = "FLAMBEAU_"
_OF_KUBERNETES = re.compile(r"FLAMBEAU_(\w+_)?(SERVICE_(HOST|PORT)|PORT_\d+_(TCP|UDP|SCTP))(_\w+)?")
_ADDRESS_OF_KUBERNETES = re.compile(r"(tcp|udp|sctp)://\S+")


@dataclass(frozen=True, slots=True)
class GivenValue:
    """A setting's value, and where it was given, in words: "FLAMBEAU_PORT", or "flambeau.toml, line 3"."""

    value: Any
    place: str


def from_environment(environment: Mapping[str, str], *, wanted: Collection[str]) -> dict[str, GivenValue]:
    """The settings in `wanted` that the environment gives, by name. An empty variable counts as not set.

    Raises `ConfigError` for a bad value, and for an unknown variable with our prefix. Ignores the variables that
    Kubernetes sets in every container for a Service called flambeau (FLAMBEAU_PORT=tcp://..., FLAMBEAU_SERVICE_HOST).
    """
    known = {each.variable: each for each in table.rows().values()}
    given: dict[str, GivenValue] = {}
    for variable, text in environment.items():
        if not variable.startswith(_PREFIX) or variable in table.VARIABLES or _is_of_kubernetes(variable, text):
            continue
        setting = known.get(variable)
        if setting is None:
            raise ConfigError(f"there is no variable {variable}: {nearest(variable, [*known, *table.VARIABLES])}")
        if text and setting.name in wanted:
            try:
                given[setting.name] = GivenValue(setting.from_text(text), variable)
            except ValueError as error:
                raise ConfigError(f"{variable}={text} {error}") from None
    return given


def _is_of_kubernetes(variable: str, text: str) -> bool:
    return bool(
        _OF_KUBERNETES.fullmatch(variable) or (variable.endswith("_PORT") and _ADDRESS_OF_KUBERNETES.fullmatch(text))
    )


def from_file(path: Path, *, named: bool, apart: Collection[str] = ()) -> dict[str, GivenValue]:
    """The settings in a configuration file, by name; paths in it are relative to it. Raises `ConfigError`.

    Keys listed in `apart` are not settings, and are skipped.

    A file that was not `named` but merely lies in the current folder may have come with the model: it can give no
    permission.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): name a file of settings with --config") from None
    except ValueError as error:  # not UTF-8, or not TOML; both say where
        raise ConfigError(f"{path} is not TOML: {error}") from None
    given: dict[str, GivenValue] = {}
    for key, value in document.items():
        if key in apart:
            continue
        place = _place(path, text, key)
        setting = _setting(key, value, place)
        if setting.name in given:
            raise ConfigError(f"{place}: {key} stands twice, with a hyphen and with an underscore: leave one out")
        try:
            found = setting.from_toml(value)
        except ValueError as error:
            raise ConfigError(f"{place}: {key} = {to_toml(value)} {error}") from None
        if found is True and setting.name in table.PERMISSIONS and not named:
            raise ConfigError(
                f"{place}: {key} is a permission, which a file that nobody named cannot give: "
                f"add {setting.flag}, or name the file with --config {path}"
            )
        given[setting.name] = GivenValue(_from_folder(setting, found, path.parent), place)
    return given


def _place(path: Path, text: str, key: str) -> str:
    """The file and the line of a key, as well as they can be found: tomllib does not keep lines."""
    name = re.escape(key)
    pattern = re.compile(rf"\s*(\[\s*)?[\"']?{name}[\"']?\s*[.=\]]")
    line = next((number for number, each in enumerate(text.splitlines(), 1) if pattern.match(each)), None)
    return f"{path}, line {line}" if line else str(path)


def _setting(key: str, value: Any, place: str) -> Setting:
    """The setting that a key names: the flag's name, with hyphens or underscores. Raises `ConfigError`."""
    name = key.replace("-", "_")
    if name in table.rows():
        return table.rows()[name]
    variable = _PREFIX + name.upper()
    if variable in table.SECRET_VARIABLES:
        raise ConfigError(f"{place}: {key} is a secret and does not belong in this file: set {variable}")
    if isinstance(value, dict):
        raise ConfigError(f"{place}: [{key}] is a table: settings stand at the top of the file, without one")
    raise ConfigError(f"{place}: there is no setting {key}: {nearest(name, table.rows())}")


def nearest(name: str, known: Iterable[str]) -> str:
    """The remedy for a name that does not exist."""
    bare = {each.removeprefix(_PREFIX): each for each in known}  # with the prefix, all names would look alike
    found = difflib.get_close_matches(name.removeprefix(_PREFIX), list(bare), n=1, cutoff=0.7)
    near = f"write {bare[found[0]]}, or take it away" if found else ""
    return near or "take it away; `flambeau config` shows those there are"


def _from_folder(setting: Setting, value: Any, folder: Path) -> Any:
    """Resolve a path against the folder of its file. A value that is no path (imagenet, resnet18, package.module:Class)
    stays as it is.
    """
    if not isinstance(value, str) or folder.resolve() == Path.cwd():
        return value
    moved = str(folder / Path(value).expanduser())
    if setting.name in ("source", "arch"):
        file, colon, _ = value.rpartition(":")
        if colon:
            return moved if file.endswith(".py") else value
    if setting.name in ("source", "labels"):  # a path or a name: never a file of that name in the current folder
        return moved if Path(moved).exists() or Path(value).exists() else value
    return moved if setting.is_path else value
