"""`python -m benchmarks.several_fronts`: a small network behind one front and behind several, in turns.

Four numbers to three, as many workers in all for each. The servers run all the time and are asked in turns, so that a
slow moment of the machine meets all of them; the ratio of each turn to that of one front in the same round is what
counts. A table of medians, and a JSON line.
"""

import contextlib
import json
import statistics
import tempfile
from pathlib import Path

import click
import msgspec

from benchmarks import load, machine
from benchmarks.many_models import serving, small_repository
from benchmarks.protocols import native_request


class FrontsRate(msgspec.Struct):
    """Medians of all rounds; `ratio` is the median of the ratios to the first number of fronts."""

    fronts: int
    clients: int
    per_second: float
    p50_ms: float
    ratio: float


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
    windows: dict[tuple[int, int], list[load.Window]] = {}
    with tempfile.TemporaryDirectory(prefix="flambeau-fronts-") as name, contextlib.ExitStack() as running:
        repository = small_repository(Path(name), 4)
        ports = {}
        for count in counts:
            folder = Path(name) / f"fronts-{count}"
            folder.mkdir()
            flags = ("--fronts", str(count), "--replicas", str(replicas))
            ports[count] = running.enter_context(serving(repository, folder, *flags))[1]
        for _ in range(rounds):
            for several in loads:
                for count, port in ports.items():
                    wire = Path(name) / "request"
                    wire.write_bytes(native_request(port))
                    window = load.run(wire, port=port, clients=several, text="output", seconds=seconds, warmup=0.5)
                    if window.wrong:
                        raise click.ClickException(f"{count} fronts: {window.wrong} wrong: {window.complaint}")
                    windows.setdefault((count, several), []).append(window)
    rates = [
        FrontsRate(
            count, several, statistics.median(each.per_second for each in turns),
            statistics.median(each.p50_ms for each in turns),
            statistics.median(
                each.per_second / usual.per_second
                for each, usual in zip(turns, windows[counts[0], several], strict=True)
            ),
        )
        for (count, several), turns in sorted(windows.items(), key=lambda found: found[0][::-1])
    ]  # fmt: skip
    click.echo(f"{'clients':>7} {'fronts':>7} {'requests/s':>10} {'p50 ms':>7} {f'to {counts[0]}':>6}")
    for each in rates:
        click.echo(f"{each.clients:7} {each.fronts:7} {each.per_second:10.0f} {each.p50_ms:7.2f} {each.ratio:6.2f}")
    click.echo(json.dumps({"rates": msgspec.to_builtins(rates), "machine": machine.describe()}))


if __name__ == "__main__":
    main()
