"""One front as the supervisor's loop sees it: told its order, dealt connections, asked, watched, and reaped.

It starts no successor and decides nothing about others; `flambeau.fronts.supervisor` does.
"""

import asyncio
import contextlib
import itertools
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Literal

import msgspec

from flambeau.errors import EngineError
from flambeau.fronts.beginnings import Beginning
from flambeau.fronts.dealing import Hand
from flambeau.fronts.messages import (
    Ask,
    CannotStart,
    Channel,
    Connection,
    FrontQuestion,
    LastWords,
    Leaving,
    Order,
    Ping,
    PlainAnswer,
    PlainRequest,
    Pulse,
    Seen,
    Started,
    ToFront,
    Told,
    ToSupervisor,
    setup_error,
)
from flambeau.system.process import ending
from flambeau.telemetry import logs

TICK = 1.0
"""Seconds between two pings."""

_SLOW = 2  # unanswered pings after which a front gets no more connections, while there are others
_HUNG = 10  # unanswered pings after which it is killed
_LAST_WORDS_SECONDS = 2.0  # for what a dead front has sent

FrontState = Literal["starting", "present", "leaving", "gone"]


class FrontProcess:
    """A front process. Everything here runs on the supervisor's loop."""

    def __init__(
        self,
        order: Order,
        beginning: Beginning,
        *,
        on_ask: Callable[["FrontProcess", Ask], None],
        on_free: Callable[[], None],
    ) -> None:
        """`on_ask`: it wants something of all fronts. `on_free`: it may take connections again."""
        self.number = order.number
        self.hand = Hand()
        self.state: FrontState = "starting"
        self.able = False
        """Whether its models can answer."""
        self.mourned = False
        """Whether what it left behind was taken care of."""
        self.lines: list[str] = []
        self.metrics, self.statistics = b"", b""
        """What it has counted, as it last said."""
        self.counts = order.counts
        """The descriptor of the memory in which it counts, to be read when it is gone."""
        self.reason = "crashed"
        """Why it ended."""
        loop = asyncio.get_running_loop()
        self.started: asyncio.Future[None] = loop.create_future()
        self.started.add_done_callback(lambda started: started.cancelled() or started.exception())
        self.gone = asyncio.Event()
        self._left = asyncio.Event()  # its end of the channel is closed
        self._order = order
        self._on_ask, self._on_free = on_ask, on_free
        self._unseen: deque[tuple[socket.socket, str]] = deque()
        self.rejected: list[tuple[socket.socket, str]] = []
        """Connections that it had no descriptor for."""
        self._unanswered = 0  # pings
        self._numbers = itertools.count(1)
        self._questions: dict[int, asyncio.Future[PlainAnswer]] = {}
        self._channel: Channel[ToSupervisor] | None = None
        self._process, self._control, self._arrivals = beginning
        self.pid = self._process.pid
        self._arrivals.setblocking(False)

        def wait() -> None:
            code = self._process.wait()
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._on_death, code)

        threading.Thread(target=wait, name=f"front-{self.number}", daemon=True).start()

    async def connect(self) -> None:
        """Send its order, and listen to it."""
        self._channel = await Channel.open(self._control, ToSupervisor, self._take, self._left.set)
        self._channel.send(self._order)

    @property
    def present(self) -> bool:
        """Whether it takes connections."""
        return self.state == "present"

    @property
    def prompt(self) -> bool:
        """Whether it answers at once: one that does not gets no more connections, while there are others."""
        return self._unanswered < _SLOW

    def enter(self) -> None:
        """From now on it takes connections, unless it has ended meanwhile."""
        if self.state == "starting":
            self.state = "present"

    def send(self, message: ToFront) -> None:
        """Say something to it."""
        if self._channel is not None:
            self._channel.send(message)

    def give(self, connection: socket.socket, address: str, elsewhere: int) -> bool:
        """Hand a connection over. False if it has no room for it now. The socket stays open until the front has it."""
        about = msgspec.msgpack.encode(Connection(address, elsewhere))
        try:
            socket.send_fds(self._arrivals, [about], [connection.fileno()])
        except OSError:  # its queue is full, or it has just ended
            return False
        self._unseen.append((connection, address))
        return True

    def unseen(self) -> list[tuple[socket.socket, str]]:
        """The connections that it was given and has not taken; they can be given to another once it is gone."""
        found = [*self._unseen]
        self._unseen.clear()
        return found

    async def end(self) -> None:
        """Give it no more connections: it answers what it has, and ends."""
        if self.state in ("leaving", "gone"):
            return
        if self.state == "starting":
            self.kill("ended")
            return
        self.state, self.reason = "leaving", "ended"
        with contextlib.suppress(OSError):
            while True:
                try:
                    self._arrivals.send(b"")
                    return
                except BlockingIOError:
                    await asyncio.sleep(0.01)

    def kill(self, reason: str) -> None:
        """End it at once."""
        if self.state != "gone":
            self.reason = reason
            self._process.send_signal(signal.SIGKILL)  # nothing, once it is reaped

    def look(self) -> None:
        """Ping it; kill it if it has left too many pings unanswered. Call it once a tick, while the loop is awake."""
        if self.state not in ("present", "leaving") or self._left.is_set():
            return
        if self._unanswered >= _HUNG and self.present:
            logs.event("a front hangs and is killed", front=self.number, pid=self.pid, after=f"{_HUNG * TICK:g} s")
            self.kill("hung")
            return
        self._unanswered += 1
        self.send(Ping())

    async def ask(self, request: PlainRequest, *, timeout: float | None) -> PlainAnswer:
        """Have it answer a request by itself. Raises `TimeoutError`, and `ConnectionError` when it ends."""
        number = next(self._numbers)
        future = self._questions[number] = asyncio.get_running_loop().create_future()
        try:
            if self.state == "gone" or self._left.is_set():
                raise ConnectionError("the front is gone")
            self.send(FrontQuestion(number, request))
            return await asyncio.wait_for(future, timeout)
        finally:
            del self._questions[number]

    def _take(self, message: ToSupervisor) -> None:
        match message:
            case Pulse():
                was_prompt, self._unanswered = self.prompt, 0
                self.able = message.ready
                if not was_prompt:
                    self._on_free()
            case Seen():
                for _ in range(message.adopted):
                    self._unseen.popleft()[0].close()
                for _ in range(message.dropped):
                    connection, address = self._unseen.popleft()
                    self.hand.closed(address)
                    self.rejected.append((connection, address))
                for address in message.closed:
                    self.hand.closed(address)
                self._on_free()
            case Started():
                self.lines, self.able = message.lines, True
                if not self.started.done():
                    self.started.set_result(None)
            case CannotStart():
                if not self.started.done():
                    self.started.set_exception(setup_error(message.error, message.message))
            case Told():
                future = self._questions.get(message.number)
                if future is not None and not future.done():
                    future.set_result(message.answer)
            case Ask():
                self._on_ask(self, message)
            case Leaving():
                self._ending = asyncio.ensure_future(self.end())
            case LastWords():
                self.metrics, self.statistics = message.metrics, message.statistics

    def _on_death(self, code: int) -> None:
        self._funeral = asyncio.ensure_future(self._bury(code))

    async def _bury(self, code: int) -> None:
        """Read what it sent before it ended. Then nothing more will come of it."""
        if self._channel is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._left.wait(), _LAST_WORDS_SECONDS)
            self._channel.close()
        else:
            self._control.close()
        self._arrivals.close()
        if code == -signal.SIGKILL and self.reason == "crashed":
            self.reason = "killed"
        self.code = code
        self.state = "gone"
        if not self.started.done():
            self.started.set_exception(
                EngineError(
                    f"front {self.number} ended with {ending(code)} before it was ready: the log above says why"
                )
            )
        for future in self._questions.values():
            if not future.done():
                future.set_exception(ConnectionError("the front is gone"))
        self.gone.set()
