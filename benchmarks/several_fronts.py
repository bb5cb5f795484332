"""`python -m benchmarks.several_fronts`: a small network behind one front and behind several, in turns.

Four numbers to three, as many workers in all for each. The servers run all the time and are asked in turns, so that a
slow moment of the machine meets all of them. On a machine that others use, more processes get more of it; so the cores'
time for a request is measured, too, and the rate at which these cores would be full: nobody else, and either the
busiest process at the whole of a core, or all cores taken by server and client. A table of medians, and a JSON line.
"""

import contextlib
import json
import os
import statistics
import tempfile
from pathlib import Path

import click
import msgspec

from benchmarks import load, machine
from benchmarks.many_models import serving, small_repository
from benchmarks.processes import Server
from benchmarks.protocols import native_request


class FrontsRate(msgspec.Struct):
    """Medians of all rounds; the ratios are to the first number of fronts, in the same round.

    `cpu_us` is what the server takes of the cores for a request, `full` the rate at which they would be full.
    """

    fronts: int
    clients: int
    per_second: float
    p50_ms: float
    cpu_us: float
    full: float
    ratio: float
    full_ratio: float


class Turn(msgspec.Struct, frozen=True):
    """A window; of a request, the seconds of the busiest process, of the server and of the client."""

    window: load.Window
    busiest: float
    server: float
    client: float

    @property
    def full(self) -> float:
        """The rate at which the cores would be full."""
        return min(1 / self.busiest, len(os.sched_getaffinity(0)) / (self.server + self.client))


def take_turn(server: Server, port: int, clients: int, seconds: float, wire: Path) -> Turn:
    """Ask one server for so many seconds. Raises `ClickException` for a wrong answer."""
    wire.write_bytes(native_request(port))
    before = server.cpu()
    window = load.run(wire, port=port, clients=clients, text="output", seconds=seconds, warmup=0.0)
    after = server.cpu()
    if window.wrong:
        raise click.ClickException(f"{window.wrong} wrong: {window.complaint}")
    used = [(seconds - before.get(pid, 0.0)) / window.good for pid, seconds in after.items()]
    return Turn(window, max(used), sum(used), window.cores * window.seconds / window.good)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--fronts", default="1,2", show_default=True, metavar="N,N", help="Numbers of fronts, the first to compare."
)
@click.option("--clients", default="1,8,32,128", show_default=True, metavar="N,N", help="Numbers of clients.")
@click.option(
    "--replicas", default=2, show_default=True, type=click.IntRange(1), help="Workers in all, of each server."
)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Turns of each server.")
@click.option("--seconds", default=2.0, show_default=True, type=click.FloatRange(0.5), help="Length of each turn.")
def main(fronts: str, clients: str, replicas: int, rounds: int, seconds: float) -> None:
    """Measure a small network behind several numbers of fronts, in turns."""
    counts, loads = ([int(word) for word in text.split(",")] for text in (fronts, clients))
    turns: dict[tuple[int, int], list[Turn]] = {}
    with tempfile.TemporaryDirectory(prefix="flambeau-fronts-") as name, contextlib.ExitStack() as running:
        repository = small_repository(Path(name), 4)
        servers = {}
        for count in counts:
            folder = Path(name) / f"fronts-{count}"
            folder.mkdir()
            flags = ("--fronts", str(count), "--replicas", str(replicas))
            servers[count] = running.enter_context(serving(repository, folder, *flags))[:2]
        for _ in range(rounds):
            for several in loads:
                for count, (server, port) in servers.items():
                    turn = take_turn(server, port, several, seconds, Path(name) / "request")
                    turns.setdefault((count, several), []).append(turn)
    rates = [
        _medians(*key, found, turns[counts[0], key[1]])
        for key, found in sorted(turns.items(), key=lambda found: found[0][::-1])
    ]
    click.echo(
        f"{'clients':>7} {'fronts':>7} {'requests/s':>10} {'p50 ms':>7} {f'to {counts[0]}':>6} {'CPU µs':>7} "
        f"{'full/s':>7} {f'to {counts[0]}':>6}"
    )
    for each in rates:
        click.echo(
            f"{each.clients:7} {each.fronts:7} {each.per_second:10.0f} {each.p50_ms:7.2f} {each.ratio:6.2f} "
            f"{each.cpu_us:7.0f} {each.full:7.0f} {each.full_ratio:6.2f}"
        )
    click.echo(json.dumps({"rates": msgspec.to_builtins(rates), "machine": machine.describe()}))


def _medians(count: int, clients: int, turns: list[Turn], usual: list[Turn]) -> FrontsRate:
    pairs = list(zip(turns, usual, strict=True))
    return FrontsRate(
        count,
        clients,
        statistics.median(each.window.per_second for each in turns),
        statistics.median(each.window.p50_ms for each in turns),
        statistics.median(1e6 * each.server for each in turns),
        statistics.median(each.full for each in turns),
        statistics.median(each.window.per_second / other.window.per_second for each, other in pairs),
        statistics.median(each.full / other.full for each, other in pairs),
    )


if __name__ == "__main__":
    main()
