"""`flambeau config` shows the settings in force and where each was given; `flambeau token` prints a fresh token."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import click
import msgspec

from flambeau.cli.options import (
    HELP,
    SettingOption,
    SettingsCommand,
    config_option,
    file_of,
    place_of,
    settings_options,
    source_options,
)
from flambeau.cli.terminal import printable
from flambeau.errors import ConfigError
from flambeau.http import tokens
from flambeau.serving.service import split_options
from flambeau.settings import loading, table
from flambeau.settings.schema import Setting, to_toml

_HIDDEN = "(set, not shown)"


@dataclass(frozen=True, slots=True)
class _InForce:
    """A setting in force: its value, and where it was given."""

    setting: Setting
    value: Any
    place: str

    @property
    def shown(self) -> str:
        """The value as people read it."""
        if self.value is None or self.value == {} or self.value == ():
            return "not set"
        return to_toml(self.value)


@click.command(cls=SettingsCommand, context_settings=HELP)
@config_option
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@click.option("--toml", "as_toml", is_flag=True, help="As a configuration file to start from.")
@source_options
@settings_options
@click.pass_context
def config(ctx: click.Context, /, *, as_json: bool, as_toml: bool, **options: Any) -> None:
    """Show every setting of `flambeau serve`: its value, and where that was given. It takes the same arguments.

    A flag wins over the environment, which wins over the file flambeau.toml, which wins over the platform (--platform),
    which wins over the default. A mistake in any of them is an error, as it is for `flambeau serve`. Secrets are never
    shown.
    """
    split_options(options)  # refuses settings that cannot be used together
    settings = [_InForce(each, options[each.name], place_of(ctx, each)) for each in table.rows().values()]
    if as_json and as_toml:
        raise ConfigError("--json and --toml cannot be combined: leave one out")
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(_document(ctx, settings)), indent=2))
    else:
        click.echo("\n".join(_toml(settings) if as_toml else _lines(ctx, settings)))


for _each in config.params:
    if isinstance(_each, SettingOption):
        _each.hidden = True  # `flambeau serve --help` lists them


def _document(ctx: click.Context, settings: list[_InForce]) -> dict[str, Any]:
    file = file_of(ctx)
    return {
        "file": str(file) if file else None,
        "settings": {each.setting.name: {"value": each.value, "from": each.place} for each in settings},
        "variables": {name: os.environ[name] for name in _set_variables() if name not in table.SECRET_VARIABLES},
        "secrets": [name for name in _set_variables() if name in table.SECRET_VARIABLES],
    }


def _set_variables() -> list[str]:
    return [name for name in table.VARIABLES if os.environ.get(name)]


def _lines(ctx: click.Context, settings: list[_InForce]) -> Iterator[str]:
    file = file_of(ctx)
    yield f"configuration file: {file or f'none (there is no {loading.FILE} here)'}"
    width = max(len(each.setting.name) for each in settings)
    values = min(44, max(len(each.shown) for each in settings))
    for group in table.grouped():
        yield f"\n{group}"
        for each in settings:
            if each.setting.group == group:
                yield f"  {each.setting.name:<{width}}  {printable(each.shown):<{values}}  {each.place}"
    if variables := _set_variables():
        yield "\nVariables that are no settings"
        for name in variables:
            yield f"  {name:<{width}}  {_HIDDEN if name in table.SECRET_VARIABLES else printable(os.environ[name])}"


def _toml(settings: list[_InForce]) -> Iterator[str]:
    yield "# Settings of flambeau serve. A key has the name of its flag; a path is relative to this file."
    yield "# A line that begins with # shows a default. The environment and the command line win over this file."
    for group in table.grouped():
        yield f"\n# --- {group}"
        for each in settings:
            if each.setting.group == group:
                yield f"\n# {each.setting.meaning}"
                yield _toml_line(each)


def _toml_line(each: _InForce) -> str:
    if each.value is None or each.value == {}:
        return f"# {each.setting.name} ="
    given = each.place != "default"
    return f"{'' if given else '# '}{each.setting.name} = {to_toml(each.value)}"


# `flambeau token`


@click.command()
@click.option("--scope", type=click.Choice(get_args(tokens.Scope)), help="Print a line for a tokens file instead.")
def token(*, scope: str | None) -> None:
    """Print a fresh token of 256 bits.

    \b
      export FLAMBEAU_TOKEN=$(flambeau token)
      (umask 077; flambeau token --scope infer >> tokens)
    """
    text = tokens.fresh()
    click.echo(text if scope is None else f"{scope} {text}")
