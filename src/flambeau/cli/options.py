"""Command line options out of the settings table, and those that describe a source."""

import dataclasses
import json
import time
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

import click

from flambeau.cli.text import printable
from flambeau.config import Settings
from flambeau.errors import ConfigError
from flambeau.orders import Activation, Advance, Note, Step

F = TypeVar("F", bound=Callable[..., Any])


def settings_options(command: F) -> F:
    """One option per field of `Settings`."""
    hints = typing.get_type_hints(Settings)
    for each in reversed(dataclasses.fields(Settings)):
        command = _option(each, hints[each.name])(command)
    return command


def _option(each: "dataclasses.Field[Any]", hint: Any) -> Callable[[F], F]:
    flag = "--" + each.name.replace("_", "-")
    variable = "FLAMBEAU_" + each.name.upper()
    kind = _plain_type(hint)
    if kind is bool:
        return click.option(flag, is_flag=True, default=each.default, envvar=variable, help=each.metadata["help"])
    choices = each.metadata.get("choices")
    return click.option(
        flag,
        type=click.Choice(choices) if choices else kind,
        default=each.default,
        show_default=each.default is not None,
        envvar=variable,
        metavar=each.metadata.get("metavar"),
        help=each.metadata["help"],
    )


def _plain_type(hint: Any) -> type:
    """`int` out of `int | None`; `str` out of a Literal."""
    if typing.get_origin(hint) is types.UnionType:
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    return str if typing.get_origin(hint) is typing.Literal else hint


def source_options(command: F) -> F:
    """The options that say what a source is."""
    for option in reversed(
        (
            click.argument("source", required=False),
            click.option("--arch", metavar="NAME", help="Network of a weights file: a name, or module:Class."),
            click.option("--arch-args", metavar="JSON", callback=_json_object, help="Its keyword arguments."),
            click.option("--weights", metavar="FILE", help="Weights, when SOURCE is the name of a network."),
            click.option(
                "--weights-key", metavar="KEY", help="Which of several sets of weights: state_dict, model_ema."
            ),
            click.option(
                "--head-activation",
                type=click.Choice(typing.get_args(Activation)),
                help="What stands between the linear layers of a replaced head; weights do not show it.",
            ),
            click.option("--labels", metavar="FILE", help="Class names: a file, or imagenet."),
            click.option("--num-classes", type=click.IntRange(1), help="Number of classes; checked against the file."),
            click.option(
                "--pipeline", type=click.Choice(["image", "tensor"]), help="What an own network takes; else found out."
            ),
            click.option("--input-shape", metavar="N,N", callback=_shape, help="Shape of one item, for own networks."),
            click.option(
                "--samples",
                metavar="DIR",
                help="Inputs to keep in the bundle: no service is ready before it answers them as PyTorch does now.",
            ),
            click.option("--resize", type=click.IntRange(1), help="Shorter side of the image, in pixels."),
            click.option("--crop", type=click.IntRange(1), help="Side of the square cut from its centre, in pixels."),
            click.option("--mean", metavar="R,G,B", callback=_channels, help="Mean to subtract, on the scale 0 to 1."),
            click.option("--std", metavar="R,G,B", callback=_channels, help="Deviation to divide by."),
        )
    ):
        command = option(command)
    return command


def _json_object(_: click.Context, parameter: click.Parameter, text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ConfigError(f"{parameter.opts[0]} {text} is not a JSON object such as '{{\"num_classes\": 10}}'")
    return value


def _shape(_: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    sizes = text.split(",") if text else []
    if not all(size.strip().isdigit() and int(size) > 0 for size in sizes):
        raise ConfigError(f"{parameter.opts[0]} {text} is not a shape such as 4 or 3,32,32")
    return tuple(int(size) for size in sizes)


def _channels(_: click.Context, parameter: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 3):
        raise ConfigError(
            f"{parameter.opts[0]} {text} is not three numbers such as 0.485,0.456,0.406, nor one for grey"
        )
    return values


class ShowProgress:
    """Tells on standard error what the build is doing and how far it is, and how long the last step took."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._tenths = 0

    def __call__(self, event: Step | Advance | Note) -> None:
        if isinstance(event, Advance):
            self._advance(event.share)
        elif isinstance(event, Note):
            self.done()
            click.echo(f"      {printable(event.text)}", err=True)
        else:
            self.done()
            click.echo(f"[{event.number}/{event.of}] {printable(event.what)} ...", err=True, nl=False)
            self._since, self._tenths = time.monotonic(), 0

    def _advance(self, share: float) -> None:
        """A mark for every tenth: it reads the same on a terminal and in a log."""
        while self._tenths < int(share * 10) and self._since is not None:
            self._tenths += 1
            click.echo(f" {self._tenths}0%" if self._tenths % 5 == 0 else ".", err=True, nl=False)

    def done(self) -> None:
        """The running step has ended."""
        if self._since is not None:
            click.echo(f" {time.monotonic() - self._since:.1f} s", err=True)
            self._since = None
