"""The process that several fronts have above them: it starts them, deals connections, restarts, asks, and ends them.

It parses no request and loads no model. When it is gone, the fronts answer what they have and end; when a front is
gone, the connections of that front are, and nothing else.
"""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence

from flambeau.bundle.storage import Bundle
from flambeau.errors import EngineError, SetupError
from flambeau.fronts import beginnings, shared_counts, totals
from flambeau.fronts.arrivals import Arrivals
from flambeau.fronts.asking import DiffersError, SharedAnswers
from flambeau.fronts.beginnings import Beginning
from flambeau.fronts.front import live
from flambeau.fronts.front_process import TICK, FrontProcess
from flambeau.fronts.messages import Declared, Fault, OneBundle, Order, State
from flambeau.fronts.sharing import part_of
from flambeau.http import stop_signals, systemd
from flambeau.http.listening import Address
from flambeau.http.loops import loop_factory
from flambeau.http.request_body import InflightBudget
from flambeau.http.server import import_what_answers
from flambeau.http.tokens import Token
from flambeau.serving.opening import Opened
from flambeau.settings.service import Settings
from flambeau.system.process import give_memory_back
from flambeau.telemetry import count_memory, logs

_LAST_LINES_SECONDS = 0.5
_LONGEST_PAUSE, _FIRST_PAUSE = 30.0, 0.5  # seconds before a front is started again, doubled each time
_GOOD_SECONDS = 60.0  # that a front lived, after which the next pause is none again
_MORE_THAN_DRAIN = 10.0  # seconds beyond the drain's own limits, after which fronts are killed

Open = Callable[[], Sequence[Opened]]


def supervise(
    open_again: Open,
    models: Sequence[Opened],
    settings: Settings,
    address: Address,
    given: tuple[Token, ...],
    *,
    where: str,
    announce: Callable[[list[str]], None],
    told: systemd.Supervisor,
) -> None:
    """Serve with several fronts until a signal. Raises `SetupError` if they cannot start.

    `open_again` opens what `models` are, as it is then, for a front that is started later. `given`: the tokens of the
    environment; each front reads those of the file. `announce` is called with the lines that say what is served, when
    the port is listened on; who is `told` of a service's state learns so, too.
    """
    give_memory_back()  # of a build, or of reading what was built
    factory = loop_factory()  # it imports the loop, which the fronts need, too
    fronts = FrontSupervisor(open_again, models, settings, address, given, where, told)
    if beginnings.can_fork():
        import_what_answers()
        fronts.fork()
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(fronts.run(announce))


class FrontSupervisor:
    """The fronts of a service."""

    def __init__(
        self,
        open_again: Open,
        models: Sequence[Opened],
        settings: Settings,
        address: Address,
        given: tuple[Token, ...],
        where: str,
        told: systemd.Supervisor,
    ) -> None:
        self._open_again, self._models = open_again, models
        self._settings, self._given, self._where, self._outer = settings, given, where, told
        self._of = settings.fronts or 1
        self._shared = shared_counts.create(self._of)
        self._counts = shared_counts.SharedCounts(self._shared, fronts=self._of, number=0)
        self._inflight = InflightBudget(settings).most
        self._forked: dict[int, tuple[Order, Beginning]] = {}
        self._fronts: dict[int, FrontProcess] = {}
        self._arrivals = Arrivals(
            address, lambda: self._fronts.values(), encrypted=settings.tls_certificate is not None
        )
        self._asking = SharedAnswers(lambda: [*self._fronts.values()], self._own_metrics, self._replace)
        self._restarts: Counter[str] = Counter({"crashed": 0, "killed": 0, "hung": 0, "ended": 0, "differs": 0})
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._asked = False

    def fork(self) -> None:
        """Begin the processes of the first fronts, while there is no loop yet. Raises `SetupError`."""
        models = _told(self._models)
        for number in range(1, self._of + 1):
            order = self._order(number, models)
            try:
                self._forked[number] = order, beginnings.forked(_descriptors(order), live)
            except OSError as error:
                raise self._no_process(number, error) from error

    async def run(self, announce: Callable[[list[str]], None]) -> None:
        """Start the fronts, and keep them until a signal."""
        try:
            await self._start()
            with stop_signals.handled(self._on_signal):
                self._arrivals.begin()
                lines = self._fronts[1].lines
                announce(lines)
                logs.event("fronts ready", fronts=self._of, pids=",".join(str(each.pid) for each in self._present()))
                self._outer.tell("READY=1", "STATUS=serving")
                self._keepers = [asyncio.create_task(self._keep(number)) for number in range(1, self._of + 1)]
                beat = asyncio.create_task(self._beat())
                async with self._outer.watched():
                    await self._stopping.wait()
                    await self._stop()
                beat.cancel()
        finally:
            for keeper in self._keepers:
                keeper.cancel()
            for each in self._fronts.values():
                if each.state != "gone":
                    each.kill("ended")
        logs.event("stopped")

    def _present(self) -> list[FrontProcess]:
        return [each for each in self._fronts.values() if each.present]

    # Starting

    async def _start(self) -> None:
        """Start all fronts, side by side. Raises `SetupError` of the first that cannot."""
        models = _told(self._models)
        fronts = []
        for number in range(1, self._of + 1):
            try:
                fronts.append(await self._spawn(number, models))
            except OSError as error:
                raise self._no_process(number, error) from error
        await asyncio.gather(*(each.started for each in fronts))
        for each in fronts:
            each.enter()
        self._tell_state()

    def _no_process(self, number: int, error: OSError) -> EngineError:
        return EngineError(
            f"cannot start front {number} of {self._of} ({error.strerror or error}): allow this user more processes "
            "and memory, or ask for fewer --fronts"
        )

    def _order(self, number: int, models: list[OneBundle | Declared]) -> Order:
        return Order(
            number, part_of(self._settings, number), self._given, models, self._shared, count_memory.create(),
            self._inflight, self._where, os.getpid(), logs.descriptor(), logs.in_json(),
        )  # fmt: skip

    async def _spawn(self, number: int, models: list[OneBundle | Declared]) -> FrontProcess:
        if number in self._forked:
            order, beginning = self._forked.pop(number)
        else:
            order = self._order(number, models)
            try:
                beginning = beginnings.spawned(_descriptors(order))
            except OSError:
                os.close(order.counts)
                raise
        begun = FrontProcess(order, beginning, on_ask=self._asking.ask, on_free=self._arrivals.wake)
        self._fronts[number] = begun
        await begun.connect()
        return begun

    async def _keep(self, number: int) -> None:
        """Have a front of that number: when it ends, start another, after a pause that grows if it ends soon."""
        failures, lived, served = 0, time.monotonic(), True
        while True:
            front = self._fronts[number]
            await front.gone.wait()
            self._mourn(front)
            if self._stopping.is_set():
                return
            if served and (time.monotonic() - lived > _GOOD_SECONDS or front.reason in ("ended", "differs")):
                failures = 0
            pause = 0.0 if not failures else min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (failures - 1))
            failures += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
                return
            lived = time.monotonic()
            try:
                served = await self._restart(number)
            except Exception as error:  # our own failure: the front must be tried again all the same
                logs.failure("a front cannot be started", error, front=number)
                self._fronts[number].kill("crashed")
                served = False

    async def _restart(self, number: int) -> bool:
        """Start a front anew, with the models as they are now. False if it cannot serve: then it is gone again."""
        try:
            models = await asyncio.to_thread(self._models_now)
            if self._stopping.is_set():
                return False
            front = await self._spawn(number, models)
            await front.started
            await self._asking.welcome(front)
        except (SetupError, OSError, DiffersError) as error:
            if not self._stopping.is_set():
                logs.event("a front cannot be started", level=logging.ERROR, front=number, error=error)
            self._fronts[number].kill("differs" if isinstance(error, DiffersError) else "crashed")
            return False
        if self._stopping.is_set():
            front.kill("ended")
            return False
        front.enter()
        logs.event("front ready", front=number, pid=front.pid)
        self._tell_state()
        self._arrivals.wake()
        return True

    def _models_now(self) -> list[OneBundle | Declared]:
        """A bundle stays the one that is served. A repository is read again: its versions may be others by now."""
        if any(isinstance(each, Bundle) for each in self._models):
            return _told(self._models)
        try:
            return _told(self._open_again())
        except SetupError as error:
            logs.event("the models cannot be opened again", level=logging.ERROR, error=error)
            return _told(self._models)

    def _mourn(self, front: FrontProcess) -> None:
        """What a front that ended leaves behind: counts, and connections that it never took."""
        if front.mourned:  # its successor could not even be spawned
            return
        front.mourned = True
        if not self._stopping.is_set():
            self._restarts[front.reason] += 1
            if front.started.done() and front.started.exception() is None:
                logs.event("a front ended", level=logging.WARNING, front=front.number, pid=front.pid,
                           reason=front.reason, connections=front.hand.open)  # fmt: skip
        self._counts.forget(front.number)
        self._asking.keep(front)
        left = front.unseen()
        front.hand.addresses.clear()
        front.hand.open = 0
        self._tell_state()
        self._arrivals.give_back(left)

    # While they run

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            was = self._states()
            for each in [*self._fronts.values()]:
                each.look()
                if each.rejected:
                    self._arrivals.turn_away(each.rejected)
                    each.rejected = []
            self._asking.remember()
            if self._states() != was:
                self._tell_state()

    def _states(self) -> list[tuple[bool, bool]]:
        return [(each.present, each.able) for each in self._fronts.values()]

    def _tell_state(self) -> None:
        """Tell each front about the others."""
        ready = {each.number for each in self._present() if each.able}
        present = len(ready)
        for each in self._fronts.values():
            others = len(ready - {each.number})
            each.send(State(others, present, self._of, self._stopping.is_set()))

    async def _replace(self, front: FrontProcess) -> None:
        """A front that could not follow a change of the others is replaced by one that has it."""
        await front.end()
        front.reason = "differs"

    def _own_metrics(self) -> bytes:
        fronts = {each.number: each.hand.open for each in self._fronts.values()}
        return totals.about_fronts(
            present=len(self._present()), of=self._of, restarts=self._restarts, connections=fronts,
            log_dropped=logs.dropped(),
        )  # fmt: skip

    # Stopping

    async def _stop(self) -> None:
        """Deal what has been accepted, have every front answer what it has, and return when all have ended."""
        await self._arrivals.end()
        self._tell_state()
        await asyncio.gather(*(each.end() for each in self._fronts.values()))
        most = 2 * self._settings.drain_timeout + _MORE_THAN_DRAIN
        done = asyncio.gather(*(each.gone.wait() for each in self._fronts.values()))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(done, most)

    def _on_signal(self, number: int) -> None:
        """As with one front: a second SIGTERM or SIGINT ends at once."""
        counts = number != stop_signals.HANGUP
        if self._asked and counts:
            logs.event("stopping at once", signal=signal.Signals(number).name)
            for each in self._fronts.values():
                each.kill("ended")
            logs.flush(_LAST_LINES_SECONDS)
            os._exit(128 + number)
        self._asked = self._asked or counts
        if self._stopping.is_set():
            return
        logs.event("stopping: answering what was received", signal=signal.Signals(number).name)
        self._outer.tell("STOPPING=1", "STATUS=answering what was received")
        self._stopping.set()


def _descriptors(order: Order) -> list[int]:
    """Those that an order speaks of."""
    return [order.shared, order.counts, *([] if order.log is None else [order.log])]


def _told(models: Sequence[Opened]) -> list[OneBundle | Declared]:
    """Models as a front is told them."""
    return [
        OneBundle(str(each.path))
        if isinstance(each, Bundle)
        else Declared(
            each.declared,
            {
                version: OneBundle(str(found.path))
                if isinstance(found, Bundle)
                else Fault(type(found).__name__, str(found))
                for version, found in each.opened.items()
            },
        )
        for each in models
    ]
