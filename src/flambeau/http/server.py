"""The server process: a bound socket, a service, and connections between them, on one loop.

The port is bound before anything is loaded. The server listens on it only when every model is warm.
"""

import asyncio
import contextlib
import functools
import gc
import importlib
import logging
import os
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from flambeau.http import grpc_front, stop_signals
from flambeau.http.access import AccessControl
from flambeau.http.listening import Address, accept_the_last
from flambeau.http.loops import loop_factory
from flambeau.http.request_body import InflightBudget
from flambeau.http.systemd import Supervisor
from flambeau.http.timeouts import SPARE, ConnectionMonitor, Neighbours
from flambeau.serving.service import AttachedService, Service
from flambeau.system.handshakes import Accepting, Handshakes
from flambeau.telemetry import logs

if TYPE_CHECKING:  # these are imported while the workers start
    from flambeau.grpc.endpoint import GrpcEndpoint
    from flambeau.http.bounded_connection import Front
    from flambeau.http.connection import HttpConnection

_BACKLOG = 2048
_LAST_REQUESTS_SECONDS = 0.5
_LAST_LINES_SECONDS = 0.5


class Dealt(Neighbours, Protocol):
    """Where connections come from if another process accepts them: this one is one front of several."""

    @property
    def budget(self) -> InflightBudget:
        """The budget for bodies."""
        ...

    async def begin(self, adopt: Callable[[socket.socket], Awaitable[None]], end: Callable[[], None]) -> None:
        """Adopt connections from now on. `end` is called when no more will come, and the server is to stop.

        `adopt` raises `OSError` for a connection that did not come about.
        """
        ...

    def leave(self) -> None:
        """Ask for no more connections, and for the end."""
        ...


def run(
    make_service: Callable[[], Service],
    address: Address | None,
    access: AccessControl,
    *,
    encryption: ssl.SSLContext | None,
    grpc_addresses: Sequence[Address] = (),
    more: Sequence[Address] = (),
    on_ready: Callable[[Service], None],
    supervisor: Supervisor,
    dealt: Dealt | None = None,
) -> None:
    """Serve until a signal, then answer what was received, and return. Raises `SetupError` if it cannot start.

    `more`: further addresses to listen on. `on_ready` is called when the server listens; the `supervisor` is told so.
    With `dealt` connections it does not listen, and has no address.
    """
    addresses = () if address is None else (address, *more)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(make_service(), addresses, access, encryption, grpc_addresses, on_ready, supervisor, dealt))


def import_what_answers() -> None:
    """Import the modules that nobody needs before there are connections: a quarter of all that this process imports."""
    for name in ("bounded_connection", "connection", "flask_app", "site"):
        importlib.import_module(f"flambeau.http.{name}")


async def _serve(
    service: Service,
    addresses: Sequence[Address],
    access: AccessControl,
    encryption: ssl.SSLContext | None,
    grpc_addresses: Sequence[Address],
    on_ready: Callable[[Service], None],
    supervisor: Supervisor,
    dealt: Dealt | None,
) -> None:
    # Beside each other, for they take about as long: the workers start, and this process imports what answers.
    await asyncio.gather(service.start(), asyncio.to_thread(import_what_answers))
    from flambeau.http.bounded_connection import Front
    from flambeau.http.connection import HttpConnection
    from flambeau.http.flask_app import make_app
    from flambeau.http.site import Site

    _leave_alone_what_stays()
    budget = InflightBudget(service.settings) if dealt is None else dealt.budget
    shares = 1 + grpc_front.CONNECTIONS * len(grpc_addresses)
    if encryption is not None:
        shares += 1 + len(grpc_addresses)  # as many handshakes
    connections = connections_that_fit(service.settings.max_connections, shares=shares)
    app = make_app(AttachedService(service, asyncio.get_running_loop()), access, budget)
    monitor = ConnectionMonitor(
        service.settings, connections=connections, stands_for_others=access.forwarding.trusts, neighbours=dealt
    )
    front = Front(Site(service, app, access), monitor, budget)
    clock = asyncio.get_running_loop().time
    beside = grpc_front.beside(service, access, budget, grpc_addresses, clock, connections=connections)
    server = _Server(front, lambda: HttpConnection(front), addresses, encryption, on_ready, beside, supervisor, dealt)
    async with supervisor.watched():
        with stop_signals.handled(server.on_signal):
            await server.serve()
        await service.close()
    logs.event("stopped")


_OBJECTS_AT_ONCE = 10_000  # made since the last collection: those of some hundred requests


def _leave_alone_what_stays() -> None:
    """Have the collector of reference cycles skip what was made until now, and look at what requests make less often.

    Code, models and settings stay for good; to go through them again took a tenth of a small request's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_AT_ONCE, 20, 20)


_OTHER_FILES = 256  # for libraries, workers, the log and threads


def connections_that_fit(wanted: int, *, shares: int = 1) -> int:
    """How many of `wanted` connections fit into the limit of open files, with room for spare ones for health checks.

    `shares`: how many files there may be for each. The limit is raised first, as far as the system allows: systemd and
    shells start processes with 1,024.
    """
    try:
        import resource
    except ImportError:  # Windows has none
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = shares * wanted + SPARE + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    if soft >= needed:
        return wanted
    fit = max(1, (soft - SPARE - _OTHER_FILES) // shares)
    logs.event(
        "the limit of open files allows fewer connections than --max-connections: raise it with ulimit -n",
        level=logging.WARNING, files=soft, connections=fit,
    )  # fmt: skip
    return fit


class _Server:
    """Listens, and stops when it is asked to."""

    def __init__(
        self,
        front: "Front",
        connection: "Callable[[], HttpConnection]",
        addresses: Sequence[Address],
        encryption: ssl.SSLContext | None,
        on_ready: Callable[[Service], None],
        beside: "Sequence[tuple[GrpcEndpoint, Address]]",
        supervisor: Supervisor,
        dealt: Dealt | None,
    ) -> None:
        self._supervisor = supervisor
        self._dealt = dealt
        self._beside = beside
        self._addresses = addresses
        self._front = front
        self._connection = connection
        self._service = front.site.service
        self._on_ready = on_ready
        self._asked = False  # whether a signal has asked to stop; the second one ends the process
        self._stopping = asyncio.Event()
        self._listening: list[Accepting] = []
        self._handshakes: Handshakes | None = None
        if encryption is not None:
            most, seconds = front.monitor.connections, self._service.settings.header_timeout
            self._handshakes = Handshakes(
                encryption, make=connection, most=most, seconds=seconds, tell_full=logs.cannot_accept
            )

    async def serve(self) -> None:
        """Return when everything that came is answered, once it was asked to stop."""
        await self._start()
        await self._stopping.wait()
        await self._stop()

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        for address in self._addresses:
            try:
                if self._handshakes is not None:
                    self._listening.append(await self._handshakes.listen(address.bound, backlog=_BACKLOG))
                    continue
                self._listening.append(await loop.create_server(self._connection, sock=address.bound, backlog=_BACKLOG))
            except OSError as error:  # another process began to listen while the model was loading
                raise address.cannot_listen(error) from error
        for endpoint, address in self._beside:
            await endpoint.start(address.cannot_listen)
        self._front.monitor.start(lambda: self._front.connections)
        if self._dealt is not None:
            await self._dealt.begin(self._adopt, self._end)
        self._on_ready(self._service)
        self._supervisor.tell("READY=1", "STATUS=serving")

    async def _adopt(self, connection: socket.socket) -> None:
        """Take over a connection that has been accepted."""
        if self._handshakes is not None:
            await self._handshakes.of(connection)
        else:
            await asyncio.get_running_loop().connect_accepted_socket(self._connection, connection)

    async def _adopt_one_of_the_last(self, connection: socket.socket) -> None:
        """The same, without waiting for its handshake."""
        if self._handshakes is not None:
            self._handshakes.begin(connection)
        else:
            await self._adopt(connection)

    def _end(self) -> None:
        self._service.drain()
        self._stopping.set()

    async def _stop(self) -> None:
        """Accept no new connections, and give the open ones time for requests that are on their way.

        A connection that is idle may have a request that has arrived and was not read yet. While the service drains,
        every answer closes its connection, so this ends as soon as all are answered.
        """
        loop, front = asyncio.get_running_loop(), self._front
        stopping = [
            asyncio.create_task(endpoint.stop(functools.partial(accept_the_last, address)))
            for endpoint, address in self._beside
        ]
        for address, server in zip(self._addresses, self._listening, strict=True):
            await accept_the_last(address, server, self._adopt_one_of_the_last)
        for address in self._addresses:
            address.bound.close()
        until = loop.time() + _LAST_REQUESTS_SECONDS
        await _until(lambda: not front.connections and not self._handshakes, until)
        if self._handshakes is not None:
            self._handshakes.give_up()
        for each in list(front.connections):
            each.shutdown()
        deadline = loop.time() + max(1.0, self._service.settings.drain_timeout)
        await _until(lambda: not front.connections and not front.tasks, deadline)
        for each in list(front.connections):  # the time to answer is over
            each.give_up()
        for task in list(front.tasks):
            task.cancel()
        await asyncio.gather(*stopping)
        front.monitor.stop()

    def on_signal(self, number: int) -> None:
        """Stop; a second SIGTERM or SIGINT ends the process at once."""
        counts = number != stop_signals.HANGUP
        if self._asked and counts:
            logs.event("stopping at once", signal=signal.Signals(number).name)
            logs.flush(_LAST_LINES_SECONDS)
            os._exit(128 + number)
        self._asked = self._asked or counts
        if self._stopping.is_set():
            return
        if self._dealt is not None:
            self._dealt.leave()
            return
        logs.event("stopping: answering what was received", signal=signal.Signals(number).name)
        self._supervisor.tell("STOPPING=1", "STATUS=answering what was received")
        self._end()


async def _until(done: Callable[[], bool], deadline: float) -> None:
    """Wait until something holds, or a time of the loop's clock has come."""
    loop = asyncio.get_running_loop()
    while not done() and loop.time() < deadline:  # connections close by themselves, and tell nobody
        await asyncio.sleep(0.01)
