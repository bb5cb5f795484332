"""`flambeau doctor`."""

import click
import msgspec

from flambeau.cli.options import file_of
from flambeau.cli.serve import serve
from flambeau.cli.terminal import printable
from flambeau.doctor import Finding, Verdict
from flambeau.doctor.checks import examine
from flambeau.errors import SetupError
from flambeau.serving.service import split_options
from flambeau.settings.service import Settings
from flambeau.settings.source import SourceOptions

_MARKS: dict[Verdict, tuple[str, str]] = {
    "fine": ("ok", "green"), "note": ("note", "cyan"), "warning": ("warning", "yellow"), "broken": ("BROKEN", "red"),
}  # fmt: skip


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--json", "as_json", is_flag=True, help="As one JSON object, when all is done.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[SOURCE] [OPTIONS OF SERVE]")
def doctor(*, as_json: bool, arguments: tuple[str, ...]) -> None:
    """Check the machine, the packages, the devices, the sandbox and SOURCE, and say what to do.

    The arguments are those of `flambeau serve`: what would be served, and where. A bundle is verified, loaded and
    warmed up, and its golden samples are compared with their answers. Of several models, or a repository, every version
    that would be loaded at the start is checked. The exit code is 1 if something is broken.

    \b
    Examples:
      flambeau doctor                          this machine, and flambeau.toml if there is one here
      flambeau doctor bundle --port 8080       can this bundle be served here, at this port?
      flambeau doctor models                   can every model of this repository be?
    """
    own, options, settings, more = _settings(arguments)
    rooms: dict[str, list[Finding]] = {}
    for room, findings in (("settings", own), *examine(options, settings, more=more)):
        if findings:
            rooms[room] = findings
            if not as_json:
                _show(room, findings)
    every = [finding for findings in rooms.values() for finding in findings]
    broken = sum(finding.verdict == "broken" for finding in every)
    if as_json:
        document = {"broken": broken, "rooms": rooms}
        click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2))
    else:
        warnings = sum(finding.verdict == "warning" for finding in every)
        counts = [f"{count} {word}" for count, word in ((broken, "broken"), (warnings, "with a warning")) if count]
        click.echo(f"\n{len(every)} checks: {', '.join(counts) or 'nothing is wrong'}")
    raise click.exceptions.Exit(1 if broken else 0)


def _settings(arguments: tuple[str, ...]) -> tuple[list[Finding], SourceOptions, Settings, tuple[str, ...]]:
    """The arguments as `flambeau serve` would read them, the last of them further sources; if they are wrong, a finding
    and the defaults."""
    try:
        with serve.make_context("serve", [*arguments]) as ctx:
            given = dict(ctx.params)
            more = tuple(given.pop("more"))
            options, settings = split_options(given)
            file = file_of(ctx)
    except SetupError as error:
        wrong = Finding("settings", "broken", str(error), "correct it: nothing is served before")
        return [wrong], *split_options({}), ()
    return [Finding("settings", "fine", f"read from {file}")] if file else [], options, settings, more


def _show(room: str, findings: list[Finding]) -> None:
    click.echo(f"\n{room}")
    for each in findings:
        mark, colour = _MARKS[each.verdict]
        click.echo(f"  {click.style(f'{mark:<7}', fg=colour)}  {each.subject:<12}  {printable(each.found)}")
        if each.advice:
            click.echo(f"  {'':7}  {'':12}  -> {printable(each.advice)}")
