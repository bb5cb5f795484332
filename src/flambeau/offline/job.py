"""A run from its first input to its last row: what is there is kept, what is missing is computed and appended."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from flambeau.config import Settings
from flambeau.errors import RequestError, SetupError
from flambeau.offline import stream
from flambeau.offline.entries import Entry
from flambeau.offline.lines import Written
from flambeau.offline.rows import Layout, Row
from flambeau.service import Service
from flambeau.types import Options

_DEADLINE = 86_400.0  # seconds; an item waits for those before it, each of which has its own time, and for nothing else
_DRAIN = 1.0  # seconds; an interrupted run wants nothing more of what is being computed


class Sink(Protocol):
    """Where rows go: a file, or standard output."""

    def write(self, rows: list[Row]) -> None:
        """Take some rows, in order."""
        ...


@dataclass
class Tally:
    """What has become of the inputs so far. `kept` are rows of an earlier start; they count as rows too.

    `nonfinite` counts the numbers of answers that were NaN or infinite, and are null in the rows.
    """

    rows: int = 0
    errors: int = 0
    kept: int = 0
    nonfinite: int = 0


def settle(settings: Settings, *, replicas: int) -> Settings:
    """The settings of a service that nobody else uses: its queue holds all that is in flight, and patience is cheap."""
    in_flight = stream.chunks_in_flight(replicas) * settings.max_batch_size
    return dataclasses.replace(
        settings,
        max_queue_size=max(settings.max_queue_size, in_flight),
        deadline=_DEADLINE,
        drain_timeout=_DRAIN,
    )


def pass_by(entries: Iterator[Entry], written: Iterable[Written], *, where: object) -> Tally:
    """Take as many entries as have rows. Raises `SetupError` when the rows are of other entries."""
    tally = Tally()
    for row in written:
        entry = next(entries, None)
        if entry is None or entry.name != row.input:
            now = f"and that input is {entry.name} now" if entry else "and there are fewer inputs now"
            raise SetupError(
                f"row {tally.rows + 1} of {where} is of {row.input}, {now}: "
                "name the same inputs to go on, or start anew with --overwrite"
            )
        tally.rows += 1
        tally.kept += 1
        tally.errors += row.code is not None
    return tally


async def run(
    service: Service,
    entries: Iterable[Entry],
    layout: Layout,
    *,
    sink: Sink,
    tally: Tally,
    replicas: int,
    on_rows: Callable[[], None],
) -> None:
    """Compute the rows of all entries and write them, in order. `tally` counts along; then `on_rows` is called."""
    options = Options(top_k=layout.top_k or 1, probabilities=layout.probabilities)
    try:
        await service.start()
        async with contextlib.aclosing(stream.answers(service, entries, options, replicas=replicas)) as chunks:
            async for chunk in chunks:
                rows = [layout.row(entry.name, outcome) for entry, outcome in chunk]
                sink.write(rows)
                tally.rows += len(rows)
                tally.errors += sum(row["code"] is not None for row in rows)
                tally.nonfinite += sum(
                    outcome.result.nonfinite for _, outcome in chunk if not isinstance(outcome.result, RequestError)
                )
                on_rows()
    finally:
        await service.close()
