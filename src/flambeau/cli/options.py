"""Makes the options of commands from the table of settings, and decides which value of a setting wins.

A flag wins over the environment, that over `flambeau.toml`, that over the platform's value, and that over the default.
The help of a command shows its options under the headings of the table.
"""

import os
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from flambeau.errors import ConfigError
from flambeau.settings import loading, platforms, service, table
from flambeau.settings.loading import GivenValue
from flambeau.settings.platforms import ContainerSigns, Profile
from flambeau.settings.schema import Setting
from flambeau.settings.service import EngineChoice

F = TypeVar("F", bound=Callable[..., Any])

_GIVEN = "flambeau.given"  # in the context: the settings of the environment and the file, by name
_FILE = "flambeau.file"
_PROFILE = "flambeau.profile"
_SOURCE_NAMES = frozenset(each.name for each in table.SOURCE)

HELP = {"max_content_width": 100}
"""Context settings of commands with many options."""


class SettingType(click.ParamType):  # type: ignore[type-arg]  # click is generic since 8.4
    """Reads a flag's text as a setting's value. Raises `ConfigError`: a bad value gets the same message everywhere."""

    def __init__(self, setting: Setting) -> None:
        self.name = setting.kind
        self._setting = setting

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value; if it is not text, it was read and checked before."""
        if not isinstance(value, str):
            return value
        try:
            return self._setting.from_text(value)
        except ValueError as error:
            raise ConfigError(f"{self._setting.flag} {value} {error}") from None


class SettingOption(click.Option):
    """A flag made from a row of the table."""

    def __init__(self, setting: Setting, **changes: Any) -> None:
        switch = setting.kind == "switch"
        value: dict[str, Any] = {} if switch else {"type": SettingType(setting), "metavar": setting.placeholder}
        default = changes.get("default", setting.default)
        shown = default not in (None, {}, ()) and not switch
        super().__init__(
            [setting.flag], is_flag=switch, default=default, show_default=shown, help=setting.meaning, **value
        )
        self.setting = setting


class SettingsCommand(click.Command):
    """A command that takes settings: from its flags, the environment and, if it has --config, a file."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the environment, then the arguments over it. A command without --config takes its source from these."""
        wanted = {each.setting.name for each in self.params if isinstance(each, SettingOption)}
        reads_file = any(each.name == "config" for each in self.params)
        if any(each.name == "source" for each in self.params):
            wanted = wanted | {"source"} if reads_file else wanted - _SOURCE_NAMES
        helps = not {*ctx.help_option_names}.isdisjoint(args)  # the help must not depend on the settings
        _take(ctx, {} if helps else loading.from_environment(os.environ, wanted=wanted))
        rest = super().parse_args(ctx, args)
        _drop_description(ctx)
        if not helps and "platform" in ctx.params:
            _fill(ctx, platforms.find(_signs(), ctx.params["platform"]))
        return rest

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by heading, the command's own first."""
        headings: dict[str, list[click.Parameter]] = {"Options": []}
        headings |= {group: [] for group in table.grouped()}
        for each in self.get_params(ctx):
            if isinstance(each, click.Argument):  # the usage line shows it, and the text describes it
                continue
            heading = each.setting.group if isinstance(each, SettingOption) else "Options"
            headings[heading].append(each)
        for heading, options in headings.items():
            records = [record for each in options if (record := each.get_help_record(ctx))]
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def settings_options(command: F) -> F:
    """One option per setting of a service."""
    return _add(command, [SettingOption(each) for each in service.rows()])


def source_options(command: F) -> F:
    """SOURCE, and the options that describe it."""
    options = [SettingOption(each) for each in table.SOURCE if each.name != "source"]
    return _add(click.argument("source", required=False)(command), options)


def engine_option(meaning: str) -> Callable[[F], F]:
    """--engine of a command that builds, where `meaning` says what is chosen."""
    return click.option(
        "--engine", type=click.Choice(typing.get_args(EngineChoice)), default="auto", show_default=True, help=meaning
    )


def more_sources(command: F) -> F:
    """Further models, after SOURCE."""
    return click.argument("more", nargs=-1, metavar="[NAME=SOURCE]...")(command)


def config_option(command: F) -> F:
    """--config. The environment wins over its file."""
    return click.option(
        "--config",
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        envvar="FLAMBEAU_CONFIG",
        type=click.Path(path_type=Path),
        callback=_read_file,
        help=f"File of settings. Default: {loading.FILE} in the current folder, if there is one.",
    )(command)


def _add(command: F, options: Iterable[click.Option]) -> F:
    for option in reversed([*options]):
        if isinstance(command, click.Command):
            command.params.append(option)
        else:
            command.__dict__.setdefault("__click_params__", []).append(option)
    return command


def _read_file(ctx: click.Context, _: click.Parameter, named: Path | None) -> None:
    file = named or Path(loading.FILE)
    if named is None and not file.is_file():
        return
    in_file, above = loading.from_file(file, named=named is not None), ctx.meta[_GIVEN]
    if "source" in in_file and "source" in above:  # the file's options describe its own source, not this one
        in_file = {name: each for name, each in in_file.items() if name not in _SOURCE_NAMES}
    _take(ctx, in_file | above)
    ctx.meta[_FILE] = file


def _take(ctx: click.Context, given: dict[str, GivenValue]) -> None:
    ctx.meta[_GIVEN] = given
    ctx.default_map = {name: each.value for name, each in given.items()}


def _drop_description(ctx: click.Context) -> None:
    """Drop the source options of the environment and the file if the command line names another SOURCE."""
    given: dict[str, GivenValue] = ctx.meta[_GIVEN]
    if "source" in given and "source" in ctx.params and ctx.params["source"] != given["source"].value:
        for name in _SOURCE_NAMES & given.keys() - {"source"}:
            if ctx.get_parameter_source(name) is ParameterSource.DEFAULT_MAP:
                ctx.params[name] = table.rows()[name].default
                ctx.set_parameter_source(name, ParameterSource.DEFAULT)


def _signs() -> ContainerSigns:
    first = 1 in (os.getpid(), os.getppid())  # process 1 may have left the command to its child, to reap orphans
    return ContainerSigns(os.environ, os.path.isdir, first=first)


def _fill(ctx: click.Context, profile: Profile | None) -> None:
    """Give the platform's values to the settings that nobody set."""
    ctx.meta[_PROFILE] = profile
    if profile is None:
        return
    given = {name: GivenValue(value, profile.place(name)) for name, (value, _) in profile.values.items()}
    if profile.evidence:
        given["platform"] = GivenValue(profile.name, f"found: {profile.evidence}")
    for name, each in given.items():
        chosen = name == "platform" or ctx.get_parameter_source(name) is ParameterSource.DEFAULT
        if chosen and not _has_source_of_its_own(ctx, name):
            ctx.params[name] = each.value
            ctx.set_parameter_source(name, ParameterSource.DEFAULT_MAP)
            ctx.meta[_GIVEN][name] = each


def _has_source_of_its_own(ctx: click.Context, name: str) -> bool:
    """Whether somebody named a SOURCE: SageMaker is then not to bring models of its own."""
    return name == "multi_model" and ctx.params.get("source") is not None


def profile_of(ctx: click.Context) -> Profile | None:
    """The profile of the platform, or `None` on none."""
    profile: Profile | None = ctx.meta.get(_PROFILE)
    return profile


def file_of(ctx: click.Context) -> Path | None:
    """The configuration file that was read, or `None`."""
    file: Path | None = ctx.meta.get(_FILE)
    return file


def place_of(ctx: click.Context, setting: Setting) -> str:
    """Where the value in force was given, in words."""
    source = ctx.get_parameter_source(setting.name)
    if source is ParameterSource.COMMANDLINE:
        return "SOURCE" if setting.name == "source" else setting.flag
    if source is ParameterSource.DEFAULT_MAP:
        given: dict[str, GivenValue] = ctx.meta[_GIVEN]
        return given[setting.name].place
    return "default"
