"""One front of several, as a process: forked, or spawned as `python -m flambeau.fronts.front CONTROL ARRIVALS`.

It is the server of `flambeau.http.server`, whose connections come from the supervisor. When the supervisor is gone,
however it ended, the front answers what it has and ends as well.
"""

import asyncio
import contextlib
import faulthandler
import functools
import itertools
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from flambeau.bundle import storage
from flambeau.bundle.storage import Bundle
from flambeau.errors import RequestError, SetupError
from flambeau.fronts.messages import (
    Ask,
    AskReply,
    CannotStart,
    Channel,
    Connection,
    Declared,
    FrontQuestion,
    LastWords,
    Leaving,
    OneBundle,
    Order,
    Ping,
    PlainAnswer,
    PlainRequest,
    Pulse,
    Rule,
    Seen,
    Started,
    State,
    ToFront,
    Told,
    packed,
    receive_order,
    setup_error,
)
from flambeau.fronts.shared_counts import SharedBudget, SharedCounts, SharedRate, shared_rate
from flambeau.fronts.whole import WholeRoutes
from flambeau.http import access as access_control
from flambeau.http.access import AccessControl, Sharing
from flambeau.http.announcement import lines_about
from flambeau.http.listening import server_context
from flambeau.http.server import run
from flambeau.http.systemd import Supervisor
from flambeau.http.tokens import HeldTokens
from flambeau.protocols.messages import HttpAnswer
from flambeau.serving.opening import Opened, OpenedModel
from flambeau.serving.service import Service
from flambeau.system.process import end_with_parent, wake_with_parent
from flambeau.telemetry import logs, stderr_capture
from flambeau.telemetry.count_memory import CountMemory
from flambeau.telemetry.log_writer import LogWriter

_MOST_AT_ONCE = 64  # connections adopted in one turn of the loop
_MOST_ADDRESSES = 16384  # of which the connections at other fronts are remembered
_LAST_LINES_SECONDS = 2.0


def main() -> None:
    """A front as a process of its own."""
    live(*(socket.socket(fileno=int(text)) for text in sys.argv[1:3]))


def live(control: socket.socket, arrivals: socket.socket) -> None:
    """Serve until the supervisor has no more connections, and end the process."""
    try:
        order = receive_order(control)
    except (EOFError, OSError):  # the supervisor ended meanwhile
        sys.exit(1)
    end_with_parent(order.supervisor)  # while it starts, nobody reads the channel
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _begin_log(order)
    faulthandler.enable(2)
    try:
        DealtFront(order, control, arrivals).serve()
    except SetupError as error:
        control.setblocking(True)
        control.sendall(packed(CannotStart(type(error).__name__, str(error))))
        _leave(error.exit_code)
    except Exception:  # our own failure: the log must have it before this process ends
        sys.excepthook(*sys.exc_info())
        _leave(1)
    _leave(0)


def _leave(code: int) -> None:
    """End without taking the interpreter apart, which would take as long as everything before."""
    logs.flush(_LAST_LINES_SECONDS)
    sys.stderr.flush()
    os._exit(code)


def _begin_log(order: Order) -> None:
    stderr_capture.forgive(output=True)
    if order.log is None:
        logs.configure(order.settings.log_level, "json" if order.log_in_json else "text")
        return
    gap, rendered = (functools.partial(each, as_json=order.log_in_json) for each in (logs.gap_line, logs.rendered))
    writer = LogWriter(order.log, gap, rendered)
    logs.send_to(writer, order.settings.log_level, as_json=order.log_in_json, descriptor=order.log, front=order.number)


class FrontService(Service):
    """A service that is one front's part of a larger one."""

    others_ready = 0

    def ready(self) -> bool:
        """Whether the whole service can answer: this front, or another."""
        return super().ready() or (self.others_ready > 0 and not self.draining)

    def ready_alone(self) -> bool:
        """Whether this front can answer."""
        return super().ready()


class DealtFront:
    """The front: what the supervisor says to it, and the connections that it deals."""

    def __init__(self, order: Order, control: socket.socket, arrivals: socket.socket) -> None:
        self._order = order
        self._control, self._arrivals = control, arrivals
        settings = order.settings
        counts = SharedCounts(order.shared, fronts=settings.fronts or 1, number=order.number)
        self.budget = SharedBudget(settings, counts, most=order.inflight_bytes)
        self._whole = WholeRoutes(self._ask, settings, number=order.number, presence=lambda: self._presence)
        rate = shared_rate(settings.rate_limit, counts) if settings.rate_limit else None
        attempts = SharedRate(counts, 1, most=access_control.ATTEMPTS, period=access_control.ATTEMPT_WINDOW)
        sharing = Sharing(rate, attempts, self._whole.route)
        self._access = AccessControl(
            settings, HeldTokens(settings.tokens_file, order.tokens), ours=True, sharing=sharing
        )
        self._presence = (0, settings.fronts or 1)
        self._service: FrontService | None = None
        self._channel: Channel[ToFront] | None = None
        self._elsewhere: dict[str, int] = {}
        self._closed: list[str] = []
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[PlainAnswer]] = {}
        self._tasks: set[asyncio.Future[None]] = set()
        self._ended = False  # whether the server was told to end
        self._alone = False  # whether the supervisor is gone

    def serve(self) -> None:
        """Serve to the end, and send the last counts. Raises `SetupError`."""
        models = [_opened(each) for each in self._order.models]
        encryption = server_context(self._order.settings)

        def make() -> Service:
            self._service = FrontService(models, self._order.settings, counts=CountMemory(self._order.counts))
            return self._service

        run(
            make,
            None,
            self._access,
            encryption=encryption,
            on_ready=self._started,
            supervisor=Supervisor({}),
            dealt=self,
        )
        self._say_last_words()

    def _started(self, service: Service) -> None:
        self._send(Started(lines_about(service, self._order.where)))

    def _say_last_words(self) -> None:
        """On the bare socket: the loop has ended."""
        assert self._service is not None
        from flambeau.protocols import v2_models

        statistics = msgspec.json.encode(v2_models.statistics(self._service, self._service.models()))
        self._control.setblocking(True)
        with contextlib.suppress(OSError):  # the supervisor is gone
            self._control.sendall(packed(LastWords(self._service.metrics.render(), statistics)))

    # What `flambeau.http.server.Dealt` asks for

    async def begin(self, adopt: Callable[[socket.socket], Awaitable[None]], end: Callable[[], None]) -> None:
        """Listen to the supervisor, on the running loop."""
        self._adopt, self._end = adopt, end
        # a duplicate, so that the last words can be said when the loop and its transports are gone
        self._channel = await Channel.open(self._control.dup(), ToFront, self._take, self._orphaned)
        self._arrivals.setblocking(False)
        asyncio.get_running_loop().add_reader(self._arrivals.fileno(), self._arrive)
        wake_with_parent(self._order.supervisor)

    def leave(self) -> None:
        """Ask the supervisor for no more connections."""
        self._send(Leaving())

    def elsewhere(self, address: str) -> int:
        """How many connections of an address other fronts had when its latest one was dealt."""
        return self._elsewhere.get(address, 0)

    def left(self, address: str) -> None:
        """A connection is closed: the supervisor is told once in a turn of the loop."""
        if not self._closed:
            asyncio.get_running_loop().call_soon(self._report)
        self._closed.append(address)

    def _report(self) -> None:
        closed, self._closed = self._closed, []
        self._send(Seen(closed=closed))

    # Connections

    def _arrive(self) -> None:
        taken: list[tuple[Connection, socket.socket]] = []
        dropped = 0
        ended = False
        for _ in range(_MOST_AT_ONCE):
            try:
                data, descriptors, _, _ = socket.recv_fds(self._arrivals, 512, 1)
            except BlockingIOError:
                break
            except OSError:
                data, descriptors = b"", []
            if not data:
                ended = True
                break
            if not descriptors:  # none was left for it
                dropped += 1
                continue
            taken.append((msgspec.msgpack.decode(data, type=Connection), socket.socket(fileno=descriptors[0])))
        if taken or dropped:  # before the first byte is read: what is not adopted can be dealt to another front
            self._send(Seen(adopted=len(taken), dropped=dropped))
        for about, connection in taken:
            if about.elsewhere:
                if len(self._elsewhere) >= _MOST_ADDRESSES:
                    self._elsewhere.clear()  # each comes again with its next connection
                self._elsewhere[about.address] = about.elsewhere
            else:
                self._elsewhere.pop(about.address, None)
            self._begin_task(self._take_over(connection, about.address))
        if ended:
            asyncio.get_running_loop().remove_reader(self._arrivals.fileno())
            self._begin_task(self._finish())

    async def _take_over(self, connection: socket.socket, address: str) -> None:
        connection.setblocking(False)
        try:
            await self._adopt(connection)
        except OSError:  # the client is gone, or does not speak TLS
            connection.close()
            self.left(address)

    async def _finish(self) -> None:
        """No more will come: stop, once those that have come are adopted."""
        others = [each for each in self._tasks if each is not asyncio.current_task()]
        if others:
            await asyncio.wait(others, timeout=1.0)
        self._stop()

    def _stop(self) -> None:
        if not self._ended:
            self._ended = True
            self._end()

    def _orphaned(self) -> None:
        self._alone = True
        if not self._ended:
            logs.event("the supervisor is gone: this front answers what it has, and ends")
            for each in self._asked.values():
                if not each.done():
                    each.set_exception(_gone())
        self._stop()

    # Messages

    def _send(self, message: "Started | Seen | Pulse | Ask | Told | Leaving") -> None:
        if self._channel is not None:
            self._channel.send(message)

    def _take(self, message: ToFront) -> None:
        match message:
            case Ping():
                self._send(Pulse(self._service is not None and self._service.ready_alone()))
            case State():
                self._presence = message.present, message.of
                if self._service is not None:
                    self._service.others_ready = message.others_ready
                    if message.draining:
                        self._service.drain()
            case FrontQuestion():
                self._begin_task(self._tell(message))
            case AskReply():
                asked = self._asked.get(message.number)
                if asked is not None and not asked.done():
                    asked.set_result(message.answer)
            case _:
                pass

    def _begin_task(self, step: "Awaitable[None]") -> None:
        task = asyncio.ensure_future(step)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell(self, question: FrontQuestion) -> None:
        assert self._service is not None
        try:
            answer = await self._whole.answer_alone(self._access.table, self._service, question.request)
        except Exception as error:
            logs.failure("a question of the supervisor's cannot be answered", error)
            answer = PlainAnswer(500, b"")
        self._send(Told(question.number, answer))

    async def _ask(self, rule: Rule, request: PlainRequest | None) -> HttpAnswer:
        """Ask the supervisor. Raises `RequestError` if it is gone."""
        if self._channel is None or self._alone:
            raise _gone()
        number = next(self._numbers)
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(Ask(number, rule, request))
            answer = await future
        finally:
            del self._asked[number]
        return HttpAnswer(answer.status, answer.body, answer.content_type)


def _gone() -> RequestError:
    return RequestError("the supervisor of this service does not answer", code="overloaded")


def _opened(each: OneBundle | Declared) -> Opened:
    """A model as the service takes it. Its bundles were verified before, and what is used of them is again."""
    if isinstance(each, OneBundle):
        return storage.read(Path(each.path), whole=False)
    opened: dict[str, Bundle | SetupError] = {}
    for version, found in each.opened.items():
        if isinstance(found, OneBundle):
            try:
                opened[version] = storage.read(Path(found.path), whole=False)
            except SetupError as error:
                opened[version] = error
        else:
            opened[version] = setup_error(found.error, found.message)
    return OpenedModel(each.model, opened)


if __name__ == "__main__":
    main()
