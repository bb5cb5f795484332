"""`python -m chaos`: play faults against a real server and print what came of it."""

import asyncio
import json
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import click

from chaos.faults import Fault, chosen
from chaos.run import Report, Run
from chaos.server import ServerError

_QUICK_SECONDS = 4.0
_QUICK_LEAK_SECONDS = 60.0  # within four, a worker's first half megabyte looks like a leak
_LONGEST_FAULT = 600.0  # seconds beyond its own length after which a fault is given up


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", default="", metavar="IDS", help="Play only these: F-01,F-05.")
@click.option("--seconds", default=20.0, show_default=True, help="How long each fault is played.")
@click.option("--clients", default=32, show_default=True, help="Concurrent clients.")
@click.option("--seed", default=1, show_default=True, help="Seed of what is random: a failure can be replayed.")
@click.option(
    "--leak-seconds", default=300.0, show_default=True, help="How long the leak run takes; less tells little."
)
@click.option("--headline-seconds", default=60.0, show_default=True, help="How long the headline runs take.")
@click.option("--quick", is_flag=True, help=f"{_QUICK_SECONDS:g} s for each fault, {_QUICK_LEAK_SECONDS:g} for leaks.")
@click.option("--ledger", type=click.Path(path_type=Path), help="Append every request to this file, as JSON lines.")
def main(
    only: str,
    seconds: float,
    clients: int,
    seed: int,
    leak_seconds: float,
    headline_seconds: float,
    quick: bool,
    ledger: Path | None,
) -> None:
    """Make things go wrong in front of a real server, and account for every request."""
    try:
        faults = chosen(only)
    except ValueError as error:
        raise click.UsageError(f"--only {error}") from error
    if quick:
        seconds = headline_seconds = min(seconds, _QUICK_SECONDS)
        leak_seconds = min(leak_seconds, _QUICK_LEAK_SECONDS)
    with tempfile.TemporaryDirectory(prefix="flambeau-chaos-") as folder:
        run = Run(
            Path(folder), seconds=seconds, clients=clients, seed=seed,
            leak_seconds=leak_seconds, headline_seconds=headline_seconds, ledger_file=ledger,
        )  # fmt: skip
        try:
            reports = asyncio.run(_play(run, faults))
        except asyncio.CancelledError:
            sys.exit(128 + signal.SIGTERM)
    show(reports)
    sys.exit(any(report.verdict == "FAILED" for report in reports))


async def _play(run: Run, faults: list[Fault]) -> list[Report]:
    """Play them in turn. SIGTERM ends the server of the one that is played, and raises `CancelledError`."""
    playing = asyncio.current_task()
    assert playing is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, playing.cancel)
    reports = []
    for fault in faults:
        click.echo(f"{fault.id} ...", err=True)
        longest = _LONGEST_FAULT + max(run.seconds, run.leak_seconds, run.headline_seconds)
        try:
            async with asyncio.timeout(longest):
                report = await fault.play(run)
        except (ServerError, TimeoutError) as error:
            report = Report(fault.id, "did not come to its end", "FAILED", type(error).__name__, (str(error),))
        click.echo(f"{report.id} {report.verdict}: {report.figures}", err=True)
        for complaint in report.complaints:
            click.echo(f"    {complaint}", err=True)
        reports.append(report)
    return reports


def show(reports: list[Report]) -> None:
    """The table, the same as one line of JSON, and the plain closing line."""
    for report in reports:
        click.echo(f"{report.id:<14}{report.verdict}\n    did:     {report.what}\n    figures: {report.figures}")
        for complaint in report.complaints:
            click.echo(f"    but:     {complaint}")
    click.echo(json.dumps([asdict(report) for report in reports]))
    passed = sum(report.verdict == "passed" for report in reports)
    failed = sum(report.verdict == "FAILED" for report in reports)
    click.echo(f"{passed} passed, {failed} failed")


if __name__ == "__main__":
    main()
