"""`flambeau token`."""

from typing import get_args

import click

from flambeau.http import tokens


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
