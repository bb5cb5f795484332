"""`python -m benchmarks`: install the peers, measure them in alternation, and report."""

import shlex
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import click
from rich.console import Console

from benchmarks import environments, load, machine, report, run, work
from benchmarks.environments import NotInstalledError
from benchmarks.load import LoadError
from benchmarks.measure import Plan
from benchmarks.peers import PEERS, Peer
from benchmarks.report import Report
from benchmarks.results import OURS
from benchmarks.targets import GUNICORN, judge

_QUICK_COMPARISONS = ("lite0", "tiny")
_QUICK_PEERS = (GUNICORN, "mosec", OURS)
_QUICK_SECONDS = 1.0
_WIDTH = 200  # columns of the tables where nobody says how wide the terminal is


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", default="", metavar="NAMES", help=f"Of {', '.join((*run.COMPARISONS, run.FIRST_START))}.")
@click.option("--peers", default="", metavar="NAMES", help=f"Of {', '.join(PEERS)}. A first word is enough.")
@click.option("--seconds", type=click.FloatRange(0.1), default=2.0, show_default=True, help="Length of each window.")
@click.option(
    "--rounds", type=click.IntRange(1), default=3, show_default=True, help="Turns of each server; medians are reported."
)
@click.option("--quick", is_flag=True, help="A smoke run of two minutes: few peers, one round, windows of a second.")
@click.option("--docs/--no-docs", default=None, help="Write docs/benchmarks.md. Default: after a whole run.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the line of JSON into a file, too.")
def main(
    only: str, peers: str, seconds: float, rounds: int, quick: bool, docs: bool | None, json_file: Path | None
) -> None:
    """Measure Flambeau against its peers on this machine, in alternation, with the same client and the same work.

    The tables and then one line of JSON go to standard output, progress to standard error.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server of the moment is ended, too
    whole = not (only or peers or quick)
    if quick:
        seconds, rounds = _QUICK_SECONDS, 1
    names = _chosen(only, (*run.COMPARISONS, run.FIRST_START), _QUICK_COMPARISONS if quick else None, "--only")
    taking = [PEERS[name] for name in _chosen(peers, PEERS, _QUICK_PEERS if quick else None, "--peers")]
    try:
        load.program()
    except LoadError as error:
        raise click.ClickException(str(error)) from error
    begun = time.monotonic()
    where = machine.describe()
    missing = _install(taking)
    work.make_files()
    plan = Plan(seconds, warmup=min(1.0, seconds / 4), clients=())
    results = [
        run.compare(run.COMPARISONS[name], taking, missing, plan, rounds, _say)
        for name in names
        if name in run.COMPARISONS
    ]
    first = run.first_starts(rounds, plan, _say) if run.FIRST_START in names else None
    verdicts = judge({result.name: result for result in results})
    versions = machine.versions(sorted({peer.environment for peer in taking if peer.environment} - missing.keys()))
    done = Report(_command(), where, versions, results, verdicts, first, missing, (time.monotonic() - begun) / 60)
    report.show(done, Console(width=None if sys.stdout.isatty() else _WIDTH))
    click.echo(line := report.json_line(done))
    if json_file is not None:
        json_file.write_text(line + "\n")
    if whole if docs is None else docs:
        report.write(done)
        _say(f"{report.DOCUMENT} written")


def _chosen(text: str, known: Iterable[str], default: Iterable[str] | None, option: str) -> list[str]:
    """The names that a list of first words means, in the table's order; all where nothing is said."""
    wanted = [word.strip().lower() for word in text.split(",") if word.strip()]
    if not wanted:
        return list(known if default is None else default)
    meant = {name for name in known for word in wanted if name.lower() == word or name.lower().startswith(word + " ")}
    for word in wanted:
        if not any(name.lower() == word or name.lower().startswith(word + " ") for name in meant):
            raise click.UsageError(f"{option} {word} is none of {', '.join(known)}")
    return [name for name in known if name in meant]


def _install(peers: Iterable[Peer]) -> dict[str, str]:
    """Make the environments; those that could not be made, with the reason. The bare loops need the first one."""
    missing = {}
    for name in dict.fromkeys(["flask", *(peer.environment for peer in peers if peer.environment)]):
        _say(f"environment {name}")
        try:
            environments.install(name)
        except NotInstalledError as error:
            missing[name] = str(error)
            _say(f"  not installed: {error}")
    return missing


def _command() -> str:
    """What to type for the same run again; where its JSON went is nobody's concern."""
    given = sys.argv[1:]
    kept = [word for before, word in zip(["", *given], given, strict=False) if "--json" not in (before, word[:6])]
    arguments = shlex.join(kept)
    return f"make bench BENCH_ARGS={shlex.quote(arguments)}" if arguments else "make bench"


def _say(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
