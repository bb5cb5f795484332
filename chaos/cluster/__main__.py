"""`python -m chaos.cluster`: play faults in a real Ray cluster on this machine, and account for every request."""

import asyncio
import sys
import tempfile
from pathlib import Path

import click

from chaos.__main__ import show
from chaos.cluster.faults import FAULTS, ClusterFault, play
from chaos.cluster.swapping import swap
from chaos.run import Report, Run
from chaos.server import ServerError

_LONGEST = 400.0  # seconds beyond twice its own length after which a fault is given up


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", default="", metavar="IDS", help="Play only these: cluster/kill,cluster/node.")
@click.option("--seconds", default=60.0, show_default=True, help="How long each fault is played.")
@click.option("--clients", default=32, show_default=True, help="Concurrent clients.")
@click.option("--seed", default=1, show_default=True, help="Seed of what is random: a failure can be replayed.")
@click.option("--beside/--alone", default=True, help="Play each on a plain Ray Serve application, too.")
def main(only: str, seconds: float, clients: int, seed: int, beside: bool) -> None:
    """Make things go wrong in a real cluster."""
    wanted = {each.strip() for each in only.split(",") if each.strip()}
    known = {fault.id for fault in FAULTS} | {"cluster/swap"}
    if unknown := wanted - known:
        raise click.UsageError(f"--only {', '.join(unknown)}: known are {', '.join(sorted(known))}")
    reports = []
    for fault in FAULTS:
        if not wanted or fault.id in wanted:
            reports.append(_played(fault, seconds, clients, seed, beside))
    if not wanted or "cluster/swap" in wanted:
        reports.append(_played(None, seconds, clients, seed, beside))
    show(reports)
    sys.exit(any(report.verdict == "FAILED" for report in reports))


def _played(fault: ClusterFault | None, seconds: float, clients: int, seed: int, beside: bool) -> Report:
    """One fault in a folder, a cluster and a loop of its own."""
    name = "cluster/swap" if fault is None else fault.id
    click.echo(f"{name} ...", err=True)

    async def played(run: Run) -> Report:
        async with asyncio.timeout(2 * seconds + _LONGEST):
            return await (swap(run) if fault is None else play(run, fault, beside=beside))

    with tempfile.TemporaryDirectory(prefix="flambeau-cluster-") as folder:
        run = Run(Path(folder), seconds=seconds, headline_seconds=seconds, clients=clients, seed=seed)
        try:
            report = asyncio.run(played(run))
        except (ServerError, TimeoutError) as error:
            report = Report(name, "did not come to its end", "FAILED", type(error).__name__, (str(error),))
    click.echo(f"{report.id} {report.verdict}: {report.figures}", err=True)
    for complaint in report.complaints:
        click.echo(f"    {complaint}", err=True)
    return report


if __name__ == "__main__":
    main()
