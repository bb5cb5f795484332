"""A run from its first input to its last row: existing rows are kept, missing rows are computed and appended."""

import asyncio
import contextlib
import dataclasses
import itertools
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from flambeau.errors import EngineError, RequestError, SetupError
from flambeau.offline.entries import InputEntry
from flambeau.offline.picture_folder import PictureFolder
from flambeau.offline.reading import Chunk, EntrySource, read
from flambeau.offline.rows import Layout, Row, WrittenRow
from flambeau.serving.service import Service
from flambeau.settings.service import Settings
from flambeau.types import Options, Outcome, Payload

# Entries to outcomes, in order, with a bounded number of items and bytes in flight. A chunk of entries is one batch.
# Files are read ahead in threads, so that replicas find full batches; chunks come back in the order in which they were
# taken. Items that the service cannot answer while its workers are being replaced are asked again: no row is lost.

AnsweredEntry = list[tuple[InputEntry, Outcome]]

_BYTES_IN_FLIGHT = 192 * 1024 * 1024  # less than the service's queue and a worker's frame can take
_AHEAD = 4  # chunks that are being read or wait for earlier ones, besides two for each replica
_READERS = 4
_PAUSE = 0.25  # seconds before a model that was not available is asked again
_PATIENCE = 300.0  # seconds without an answer before a model that only crashes is given up
_LOST = frozenset({"model_crashed", "model_timeout", "model_unavailable", "out_of_memory", "poison_input"})


def chunks_in_flight(replicas: int) -> int:
    """The most chunks, of `max_batch_size` items each, in flight at a time."""
    return 2 * replicas + _AHEAD


async def answers(
    service: Service, entries: Iterable[InputEntry], options: Options, *, replicas: int
) -> AsyncGenerator[AnsweredEntry, None]:
    """The outcomes of all entries, in order, a chunk at a time.

    Raises `EngineError` when the model only crashes, and whatever iterating over `entries` raises.
    """
    batch = service.settings.max_batch_size
    source, asking = EntrySource(entries, ahead=chunks_in_flight(replicas) * batch), _Asking(service, options)
    pending: deque[_Flight] = deque()

    def has_room(chunk: Chunk) -> bool:
        flying = sum(flight.size for flight in pending)
        return not pending or (len(pending) < chunks_in_flight(replicas) and flying + chunk.size <= _BYTES_IN_FLIGHT)

    taking: asyncio.Task[Chunk] | None = asyncio.create_task(source.take(batch))
    try:
        while pending or taking is not None:
            if taking is not None and taking.done() and has_room(chunk := taking.result()):
                if chunk.entries:
                    pending.append(_Flight(asyncio.create_task(asking.answer(chunk.entries)), chunk.size))
                taking = asyncio.create_task(source.take(batch)) if chunk.entries else None
            elif pending and pending[0].task.done():
                yield pending.popleft().task.result()
            else:  # a chunk without room waits for the oldest in flight
                waiting: set[asyncio.Task[Any]] = {each.task for each in itertools.islice(pending, 1)}
                if taking is not None and not taking.done():
                    waiting.add(taking)
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        left = [*(flight.task for flight in pending), *([taking] if taking else ())]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        asking.close()


@dataclass(frozen=True, slots=True)
class _Flight:
    task: "asyncio.Task[AnsweredEntry]"
    size: int


class _Asking:
    """Asks the service for outcomes, and asks again while workers are being replaced."""

    def __init__(self, service: Service, options: Options) -> None:
        self._service = service
        self._model = service.get()
        self._options = options
        self._clock = asyncio.get_running_loop().time
        self._answered_at = self._clock()
        self._recovering = asyncio.Lock()
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read")

    def close(self) -> None:
        """End the threads once their running reads are done."""
        self._readers.shutdown(wait=False, cancel_futures=True)

    async def answer(self, entries: list[InputEntry]) -> AnsweredEntry:
        """Read the entries' files and answer them, in order."""
        if any(isinstance(each.content, Path) for each in entries):
            contents = await asyncio.get_running_loop().run_in_executor(self._readers, read, entries)
        else:
            contents = read(entries)
        payloads = [each for each in contents if isinstance(each, Payload)]
        outcomes = iter(await self._ask(payloads))
        return [
            (entry, next(outcomes) if isinstance(content, Payload) else Outcome(content))
            for entry, content in zip(entries, contents, strict=True)
        ]

    async def _ask(self, payloads: list[Payload]) -> list[Outcome]:
        """One outcome per payload. Raises `EngineError` when the model only crashes.

        Payloads for which no replica was left are asked again, each alone: the input at fault may be among them, and a
        batch with it would be lost again before it is identified.
        """
        async with self._recovering:  # another chunk may be asking again, and must be alone
            pass
        outcomes = await self._ask_once(payloads)
        if any(map(_found_no_replica, outcomes)):
            async with self._recovering:
                for index, outcome in enumerate(outcomes):
                    if _found_no_replica(outcome):
                        outcomes[index] = await self._ask_alone(payloads[index])
        return outcomes

    async def _ask_alone(self, payload: Payload) -> Outcome:
        while _found_no_replica(outcome := (await self._ask_once([payload]))[0]):
            if self._clock() - self._answered_at > _PATIENCE:
                raise EngineError(
                    f"{self._model.name} crashes again and again, and gave no answer for {_PATIENCE:.0f} seconds: "
                    "its log above says why"
                )
            await asyncio.sleep(_PAUSE)
        return outcome

    async def _ask_once(self, payloads: list[Payload]) -> list[Outcome]:
        if not payloads:
            return []
        try:
            outcomes = await self._service.predict(
                self._model, payloads, self._options, timeout=self._service.settings.deadline
            )
        except RequestError as error:
            return [Outcome(error)] * len(payloads)
        if not all(_was_lost(each) for each in outcomes):
            self._answered_at = self._clock()
        return outcomes


def _was_lost(outcome: Outcome) -> bool:
    return isinstance(outcome.result, RequestError) and outcome.result.code in _LOST


def _found_no_replica(outcome: Outcome) -> bool:
    return isinstance(outcome.result, RequestError) and outcome.result.code == "model_unavailable"


_DEADLINE = 86_400.0  # seconds; an item waits only for those before it, and each of these has its own time limit
_DRAIN = 1.0  # seconds; an interrupted run does not need the running batches


class RowSink(Protocol):
    """A destination of rows: a file, or standard output."""

    def write(self, rows: list[Row]) -> None:
        """Take some rows, in order."""
        ...


@dataclass
class Tally:
    """Counts of the run so far. `kept` are the rows of an earlier run, which count in `rows` too.

    `nonfinite` counts the numbers in answers that were NaN or infinite; they are null in the rows.
    """

    rows: int = 0
    errors: int = 0
    kept: int = 0
    nonfinite: int = 0


def settle(settings: Settings, *, replicas: int) -> Settings:
    """The settings of a service without other users: its queue holds all that is in flight, and items may wait long."""
    in_flight = chunks_in_flight(replicas) * settings.max_batch_size
    return dataclasses.replace(
        settings,
        max_queue_size=max(settings.max_queue_size, in_flight),
        deadline=_DEADLINE,
        drain_timeout=_DRAIN,
    )


def pass_by(entries: Iterator[InputEntry], written: Iterable[WrittenRow], *, where: object) -> Tally:
    """Skip the entries that have rows already. Raises `SetupError` when the rows belong to other entries."""
    tally = Tally()
    for row in written:
        entry = next(entries, None)
        if entry is None or entry.name != row.input:
            now = f"and that input is {entry.name} now" if entry else "and there are fewer inputs now"
            raise SetupError(
                f"row {tally.rows + 1} of {where} is of {row.input}, {now}: "
                "name the same inputs to resume, or start again with --overwrite"
            )
        tally.rows += 1
        tally.kept += 1
        tally.errors += row.code is not None
    return tally


async def run(
    service: Service,
    entries: Iterable[InputEntry],
    layout: Layout,
    *,
    sink: RowSink,
    tally: Tally,
    replicas: int,
    on_rows: Callable[[], None],
    pictures: PictureFolder | None = None,
) -> None:
    """Compute the rows of all entries and write them, in order. After each chunk, `tally` is updated and `on_rows` is
    called. `pictures`: where the pictures of the answers go, before their rows are written.
    """
    options = Options(top_k=layout.top_k or 1, probabilities=layout.probabilities, mask="rle")
    try:
        await service.start()
        async with contextlib.aclosing(answers(service, entries, options, replicas=replicas)) as chunks:
            async for chunk in chunks:
                rows = [layout.row(entry.name, outcome) for entry, outcome in chunk]
                if pictures is not None:
                    for row, (entry, outcome) in zip(rows, chunk, strict=True):
                        row["file"] = pictures.save(entry.name, outcome)
                sink.write(rows)
                tally.rows += len(rows)
                tally.errors += sum(row["code"] is not None for row in rows)
                tally.nonfinite += sum(
                    outcome.result.nonfinite for _, outcome in chunk if not isinstance(outcome.result, RequestError)
                )
                on_rows()
    finally:
        await service.close()
