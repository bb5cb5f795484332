"""`flambeau models`: what a running service serves, and its versions loaded, unloaded and switched."""

import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from flambeau.cli.terminal import printable
from flambeau.client import Client, ClientError
from flambeau.errors import ConfigError, SetupError
from flambeau.settings.table import ADMIN_TOKEN, SERVER, TOKEN

T = TypeVar("T")


class ServiceRefused(SetupError):
    """The service did not do what was asked."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--server",
    metavar="URL",
    default="http://127.0.0.1:5000",
    envvar=SERVER,
    show_default=True,
    help="Address of the service.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the service's own answer, as JSON.")
@click.pass_context
def models(ctx: click.Context, server: str, *, as_json: bool) -> None:
    """The models of a running service: list them, and load, unload and switch their versions.

    \b
      flambeau models list
      flambeau models add cats 2 DIR      a bundle, sent to the service's repository
      flambeau models load cats 2         beside the version that answers, and then in its place
      flambeau models default cats 1      back, at once while version 1 is still loaded
      flambeau models alias cats stable=1
      flambeau models unload cats 2
      flambeau models set cats --replicas 4

    The address can be set once, as FLAMBEAU_SERVER. A token is read from FLAMBEAU_ADMIN_TOKEN or FLAMBEAU_TOKEN.
    """
    ctx.obj = (server, as_json)


def _ask(ctx: click.Context, step: Callable[[Client], dict[str, Any]], show: Callable[[dict[str, Any]], None]) -> None:
    server, as_json = ctx.obj
    token = os.environ.get(ADMIN_TOKEN) or os.environ.get(TOKEN) or None
    try:
        with Client(server, token=token) as client:
            found = step(client)
    except ValueError as error:
        raise ConfigError(f"--server: {error}") from None
    except ClientError as error:
        hint = f" ({error.hint})" if error.hint else ""
        where = "" if server in error.message else f"{server}: "
        raise ServiceRefused(f"{where}{error.message}{hint}") from None
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        show(found)


@models.command("list")
@click.pass_context
def list_models(ctx: click.Context) -> None:
    """Every model with its versions and their states."""

    def show(found: dict[str, Any]) -> None:
        rows = [row for model in found["models"] for row in _rows(model, default=found["default"])]
        _table(("MODEL", "VERSION", "STATE", ""), rows)

    _ask(ctx, lambda client: client.models(), show)


@models.command()
@click.argument("model")
@click.argument("version", required=False)
@click.pass_context
def show(ctx: click.Context, model: str, version: str | None) -> None:
    """A model, or one version of it, in full."""
    _ask(ctx, lambda client: client.model(model, version), lambda found: click.echo(json.dumps(found, indent=2)))


@models.command()
@click.argument("model")
@click.argument("version")
@click.argument("source")
@click.option("--load", is_flag=True, help="Load the version, too.")
@click.pass_context
def add(ctx: click.Context, model: str, version: str, source: str, *, load: bool) -> None:
    """Add a version to the service's repository.

    SOURCE is a bundle's folder on this machine, as flambeau build writes it, which is sent; or the path of a file that
    lies in the repository already, relative to it.
    """
    _ask(ctx, lambda client: client.add(model, version, source, load=load), _show_model)


@models.command()
@click.argument("model")
@click.argument("version")
@click.pass_context
def load(ctx: click.Context, model: str, version: str) -> None:
    """Load a version: the newest one then answers by default, unless `default` has chosen another."""
    _ask(ctx, lambda client: client.load(model, version), _show_model)


@models.command()
@click.argument("model")
@click.argument("version")
@click.pass_context
def unload(ctx: click.Context, model: str, version: str) -> None:
    """Let go of a version, once it has answered what it has."""
    _ask(ctx, lambda client: client.unload(model, version), _show_model)


@models.command()
@click.argument("model")
@click.argument("version", required=False)
@click.pass_context
def default(ctx: click.Context, model: str, version: str | None) -> None:
    """Have a version answer by default, loaded if need be. Without VERSION: the newest that is loaded."""
    _ask(ctx, lambda client: client.set_default(model, version), _show_model)


@models.command()
@click.argument("model")
@click.argument("aliases", nargs=-1, metavar="[ALIAS=VERSION]...")
@click.pass_context
def alias(ctx: click.Context, model: str, aliases: tuple[str, ...]) -> None:
    """Replace the aliases of a model. Without any: take them away."""
    pairs = dict(each.partition("=")[::2] for each in aliases)
    if not all(pairs.values()):
        raise click.UsageError("write an alias as ALIAS=VERSION, such as stable=1")
    _ask(ctx, lambda client: client.set_aliases(model, pairs), _show_model)


@models.command("set")
@click.argument("model")
@click.option("--replicas", type=click.IntRange(1), help="Most replicas.")
@click.option("--max-batch-size", type=click.IntRange(1), help="Most items in a batch.")
@click.option("--max-queue-size", type=click.IntRange(1), help="Most items waiting.")
@click.pass_context
def set_limits(
    ctx: click.Context, model: str, replicas: int | None, max_batch_size: int | None, max_queue_size: int | None
) -> None:
    """Change limits of a model while it serves, without loading it again."""
    if replicas is max_batch_size is max_queue_size is None:
        raise click.UsageError("say what to change, such as --replicas 2")

    def ask(client: Client) -> dict[str, Any]:
        return client.set_limits(model, replicas=replicas, max_batch_size=max_batch_size, max_queue_size=max_queue_size)

    _ask(ctx, ask, _show_model)


def _show_model(found: dict[str, Any]) -> None:
    _table(("MODEL", "VERSION", "STATE", ""), _rows(found, default=None))


def _rows(model: dict[str, Any], *, default: str | None) -> list[tuple[str, ...]]:
    """A line for each version: what leads to it, and why it failed."""
    rows: list[tuple[str, ...]] = []
    for version in model["versions"]:
        number = version["version"]
        marks = ["default"] if number == model["default_version"] else []
        marks += [alias for alias, its in model["aliases"].items() if its == number]
        if "error" in version:
            marks.append(version["error"])
        rows.append((model["name"], number, version["state"], ", ".join(marks)))
    if default == model["name"] and len(rows):
        rows[0] = (f"{rows[0][0]} *", *rows[0][1:])
    return rows


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    clean = [head, *(tuple(map(printable, row)) for row in rows)]
    widths = [max(len(row[column]) for row in clean) for column in range(len(head))]
    for row in clean:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
