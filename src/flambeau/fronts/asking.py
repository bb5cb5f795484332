"""What one front asks of all: their counts added up, and changes of models, which take turns and reach every front.

A change is made first at the front that was asked. If it fails there, nothing is changed; if it succeeds, the others
follow, and one that cannot is replaced by a front that has repeated every change. It does not know what a change means.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec

from flambeau.fronts import totals
from flambeau.fronts.front_process import FrontProcess
from flambeau.fronts.journal import ChangeJournal
from flambeau.fronts.messages import Ask, AskReply, PlainAnswer, PlainRequest
from flambeau.telemetry import count_memory, logs

_ANSWER_SECONDS = 2.0  # for a front to say what it has counted
_METRICS_TICKS = 5  # between two readings of what fronts have counted outside of their memory for counts
_METRICS, _STATISTICS = PlainRequest("GET", "/metrics"), PlainRequest("GET", "/v2/models/stats")
_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_GONE = PlainAnswer(503, b'{"error":"this front is being replaced: try again","code":"overloaded","retryable":true}')


class DiffersError(Exception):
    """A front has not the models that the others have."""


class SharedAnswers:
    """Answers what fronts ask."""

    def __init__(
        self,
        fronts: Callable[[], list[FrontProcess]],
        own_metrics: Callable[[], bytes],
        replace: Callable[[FrontProcess], Awaitable[None]],
    ) -> None:
        self._fronts, self._own_metrics, self._replace = fronts, own_metrics, replace
        self._journal = ChangeJournal()
        self._turn = asyncio.Lock()
        self._ends: dict[FrontProcess, asyncio.Future[tuple[int, PlainRequest | None]]] = {}
        self._gone_metrics, self._gone_statistics = b"", b""
        self._remembering: asyncio.Task[None] | None = None
        self._ticks = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, front: FrontProcess, asked: Ask) -> None:
        """Begin to answer."""
        if asked.rule == "spread":
            if (end := self._ends.get(front)) is not None and not end.done():
                end.set_result((asked.number, asked.request))
            else:
                front.send(AskReply(asked.number, _GONE))
            return
        task = asyncio.get_running_loop().create_task(self._answer(front, asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, front: FrontProcess, asked: Ask) -> None:
        try:
            match asked.rule:
                case "turn":
                    await self._change(front, asked.number)
                    return
                case "metrics":
                    answer = PlainAnswer(200, await self._all_metrics(), _TEXT)
                case "statistics":
                    assert asked.request is not None
                    answer = await self._all_statistics(front, asked.request)
                case _:
                    assert asked.request is not None
                    answer = await self._all_details(front, asked.request)
        except Exception as error:
            logs.failure("what a front asks cannot be answered", error, front=front.number, rule=asked.rule)
            answer = PlainAnswer(500, b'{"error":"the fronts could not be asked","code":"internal","retryable":false}')
        front.send(AskReply(asked.number, answer))

    # Counts

    def remember(self) -> None:
        """Read what each front has counted: of one that is killed this remains, with what its memory holds."""
        self._ticks += 1
        if self._remembering is not None and not self._remembering.done():
            return
        metrics = self._ticks % _METRICS_TICKS == 0

        async def read() -> None:
            await asyncio.gather(self._read(_STATISTICS), *([self._read_metrics()] if metrics else []))

        self._remembering = asyncio.get_running_loop().create_task(read())

    def keep(self, front: FrontProcess) -> None:
        """The front is gone: what it has counted stays, to the last answer."""
        texts = [front.metrics]
        try:
            texts.append(totals.left_in_memory(count_memory.read(front.counts)))
        except Exception as error:  # it may have written anything before it ended
            logs.failure("what a front has counted cannot be read", error, front=front.number)
        self._gone_metrics = totals.counted(totals.latest(texts), self._gone_metrics)
        if front.statistics:
            gone = [each for each in (self._gone_statistics, front.statistics) if each]
            self._gone_statistics = totals.join_statistics(gone)
        front.metrics = front.statistics = b""

    async def _read_metrics(self) -> None:
        for front, answer in (await self._read(_METRICS)).items():
            if answer.status == 200:
                front.metrics = answer.body

    async def _read(
        self, request: PlainRequest, *, without: FrontProcess | None = None
    ) -> dict[FrontProcess, PlainAnswer]:
        """The answers of all fronts that give one in time, and are still there: what the others had counted is kept."""
        fronts = [each for each in self._fronts() if each.state in ("present", "leaving") and each is not without]
        found = await asyncio.gather(
            *(each.ask(request, timeout=_ANSWER_SECONDS) for each in fronts), return_exceptions=True
        )
        answers = {
            front: answer
            for front, answer in zip(fronts, found, strict=True)
            if isinstance(answer, PlainAnswer) and not front.mourned
        }
        if request is _STATISTICS:
            for front, answer in answers.items():
                if answer.status == 200:
                    front.statistics = answer.body
        return answers

    async def _all_metrics(self) -> bytes:
        await self._read_metrics()
        now = {each.number: each.metrics for each in self._fronts() if each.metrics}
        gone = [self._gone_metrics] if self._gone_metrics else []
        return await asyncio.to_thread(totals.add_metrics, {0: self._own_metrics(), **now}, gone)

    async def _all_statistics(self, front: FrontProcess, request: PlainRequest) -> PlainAnswer:
        answers = await self._read(request)
        own = answers.get(front)
        if own is None or own.status != 200:
            return own or _GONE
        bodies = [own.body, *(each.body for at, each in answers.items() if at is not front and each.status == 200)]
        gone = [self._gone_statistics] if self._gone_statistics else []
        return PlainAnswer(200, totals.add_statistics(bodies, gone))

    async def _all_details(self, front: FrontProcess, request: PlainRequest) -> PlainAnswer:
        """What the others say, as a list."""
        answers = await self._read(request, without=front)
        found = [msgspec.Raw(each.body) for each in answers.values() if each.status == 200]
        return PlainAnswer(200, msgspec.json.encode(found))

    # Changes

    async def _change(self, front: FrontProcess, number: int) -> None:
        """Give a front its turn, and carry what it changed to the others."""
        async with self._turn:
            end = self._ends[front] = asyncio.get_running_loop().create_future()
            gone = asyncio.ensure_future(front.gone.wait())
            try:
                front.send(AskReply(number, PlainAnswer(200, b"")))
                await asyncio.wait([end, gone], return_when=asyncio.FIRST_COMPLETED)
            finally:
                gone.cancel()
                del self._ends[front]
            if not end.done():  # it ended before it said how the change went: nobody else has made it
                return
            reply, request = end.result()
            if request is not None:
                others = [each for each in self._fronts() if each.present and each is not front]
                await asyncio.gather(*(self._follow(each, request) for each in others))
                self._journal.note(request)
            front.send(AskReply(reply, PlainAnswer(200, b"")))

    async def _follow(self, front: FrontProcess, request: PlainRequest) -> None:
        try:
            answer = await front.ask(request, timeout=None)
        except ConnectionError:
            return  # its successor repeats every change
        if answer.status >= 400:
            logs.event(
                "a front cannot follow a change and is replaced", level=logging.ERROR, front=front.number,
                change=f"{request.method} {request.path}", status=answer.status, why=answer.body[:200],
            )  # fmt: skip
            await self._replace(front)

    async def welcome(self, front: FrontProcess) -> None:
        """Have a new front repeat the changes, before it gets connections.

        Raises `ConnectionError` if it ends, and `DiffersError` if it cannot: it would answer otherwise than the others.
        """
        async with self._turn:
            for request in self._journal.requests():
                answer = await front.ask(request, timeout=None)
                if answer.status >= 400:
                    raise DiffersError(
                        f"it cannot repeat {request.method} {request.path}, which the others have made, and would "
                        f"answer otherwise than they do: {answer.status} {answer.body[:200].decode(errors='replace')}"
                    )
