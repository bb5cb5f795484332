"""`flambeau bench`: the engines of a machine side by side on one model, without a server."""

import typing
from typing import Any

import click
import msgspec

from flambeau import engines
from flambeau.bundle.measurements import Trial
from flambeau.bundle.storage import Bundle, PythonConfig
from flambeau.cli.options import HELP, SettingsCommand, source_options
from flambeau.cli.terminal import ShowProgress
from flambeau.engine_selection import benchmark
from flambeau.engine_selection.benchmark import Rules, hold
from flambeau.errors import ConfigError
from flambeau.settings.service import EngineName
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache
from flambeau.system.machine import place, processor, usable_cores

_BATCHES = (1, 2, 4, 8)


class Table(msgspec.Struct, frozen=True):
    """The results. `auto` is the engine that `--engine auto` would take, and `why` is the reason."""

    model: str
    processor: str
    threads: int
    rounds: int
    engines: list[Trial]
    auto: str
    why: str


@click.command(cls=SettingsCommand, context_settings=HELP)
@source_options
@click.option(
    "--engine",
    "names",
    multiple=True,
    type=click.Choice(typing.get_args(EngineName)),
    help="Engine to measure; may be repeated. Default: all that are installed.",
)
@click.option(
    "--threads", type=click.IntRange(1), help="Threads of each engine. Default: those of a service's replica."
)
@click.option("--device", default="auto", show_default=True, metavar="DEVICE", help="As in flambeau serve.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns of each engine and batch.")
@click.option("--seconds", type=click.FloatRange(0.01), default=0.3, show_default=True, help="Length of a turn.")
@click.option("--allow-code", is_flag=True, help="Run code that the source carries.")
@click.option("--json", "as_json", is_flag=True, help="Everything, as one JSON object.")
def bench(
    *,
    names: tuple[str, ...],
    threads: int | None,
    device: str,
    rounds: int,
    seconds: float,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure every installed engine on SOURCE: milliseconds per image by batch, agreement, memory, load time.

    SOURCE is what `flambeau serve` takes. Each engine runs in a process of its own, and they take turns; a figure is
    the median of its turns. The difference is from eager PyTorch on the bundle's probe samples, relative to the largest
    output. Memory is how much the process grew with the engine.
    """
    progress = ShowProgress()
    try:
        opened = build_cache.open_source(SourceOptions(**options), progress=progress)
    finally:
        progress.done()
    if isinstance(opened.manifest.pipeline, PythonConfig):
        raise ConfigError(f"{opened.manifest.name} is a Python model, and has no engine: bench is for networks")
    cores = usable_cores()
    rules = Rules(
        threads=threads or place(None, None, default=cores, cores=cores).threads,
        batches=_BATCHES,
        rounds=rounds,
        seconds=seconds,
        device=device,
        allow_code=bool(options["allow_code"]),
    )
    tried = hold(opened.path, names or engines.able(opened), rules, tell=_tell)
    auto, why = _verdict(opened, tried)
    found = Table(opened.manifest.name, processor(), rules.threads, rounds, tried, auto, why)
    click.echo(msgspec.json.encode(found).decode() if as_json else "\n".join(_lines(found)))


def _tell(engine: str) -> None:
    slow = ", which takes minutes the first time" if engine == "compile" else ""
    click.echo(f"loading {engine}{slow} ...", err=True)


def _verdict(opened: Bundle, tried: list[Trial]) -> tuple[str, str]:
    """The engine that `auto` would take among those measured, or the bundle's own if it can take none; and why."""
    chosen, why = benchmark.select_engine(tried)
    own = opened.manifest.engine
    if chosen is None:
        return own, opened.manifest.export_error or "no engine that auto may take was measured"
    if chosen != own:
        why += f"; the bundle was built for {own}, and --engine auto keeps to that"
    return chosen, why


def _lines(found: Table) -> list[str]:
    heads = ["engine", *(f"batch {batch}" for batch in _BATCHES), "difference", "top class", "memory", "load", "device"]
    rows = [_row(trial) for trial in found.engines if trial.ms]
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    table = [
        "  ".join(cell.ljust(width) if place == 0 else cell.rjust(width) for place, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in [heads, *rows])
    ]
    threads = f"{found.threads} thread{'s' * (found.threads > 1)}"
    head = f"{found.model}: milliseconds an image, {threads}, medians of {found.rounds} rounds, on {found.processor}"
    return [
        head,
        *table,
        *(f"{trial.engine} failed: {trial.error}" for trial in found.engines if trial.error),
        f"auto takes {found.auto}: {found.why}",
    ]


def _row(trial: Trial) -> list[str]:
    agreed = trial.agreement
    return [
        trial.engine,
        *(f"{trial.ms[batch]:.3g}" if batch in trial.ms else "-" for batch in _BATCHES),
        "-" if agreed is None else f"{agreed.difference:.1e}",
        "-" if agreed is None else "same" if agreed.same_top_class else "NOT same",
        f"{trial.memory_mb or 0:.0f} MB",
        f"{trial.load_seconds or 0:.2f} s",
        trial.device,
    ]
