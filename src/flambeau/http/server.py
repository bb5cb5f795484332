"""The server process: a bound socket, a service, and uvicorn between them, on one loop.

The port is bound before anything is loaded. The server listens on it only when every model is warm.
"""

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import uvicorn

from flambeau.http import grpc_front
from flambeau.http.access import AccessControl
from flambeau.http.asgi_app import AsgiFront
from flambeau.http.bounded_connection import Front
from flambeau.http.connection import DispatchingConnection
from flambeau.http.flask_app import make_app
from flambeau.http.listening import Address
from flambeau.http.request_body import InflightBudget
from flambeau.http.timeouts import SPARE, ConnectionMonitor
from flambeau.serving.service import AttachedService, Service
from flambeau.telemetry import logs

if TYPE_CHECKING:
    from flambeau.grpc.endpoint import GrpcEndpoint

_BACKLOG = 2048
_LAST_REQUESTS_SECONDS = 0.5
_LAST_LINES_SECONDS = 0.5
_HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)  # Windows has none


def run(
    make_service: Callable[[], Service],
    address: Address,
    access: AccessControl,
    *,
    encryption: ssl.SSLContext | None,
    grpc_address: Address | None = None,
    on_ready: Callable[[Service], None],
) -> None:
    """Serve until a signal, then answer what was received, and return. Raises `SetupError` if it cannot start.

    `on_ready` is called when the server listens.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(make_service(), address, access, encryption, grpc_address, on_ready))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # Windows has none
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _serve(
    service: Service,
    address: Address,
    access: AccessControl,
    encryption: ssl.SSLContext | None,
    grpc_address: Address | None,
    on_ready: Callable[[Service], None],
) -> None:
    await service.start()
    _leave_alone_what_stays()
    budget = InflightBudget(service.settings)
    connections = connections_that_fit(service.settings.max_connections)
    app = make_app(AttachedService(service, asyncio.get_running_loop()), access, budget)
    application = AsgiFront(service, app, access, budget)
    monitor = ConnectionMonitor(service.settings, connections=connections, stands_for_others=access.forwarding.trusts)
    front = Front(service, access, monitor, budget)
    config = uvicorn.Config(
        application,
        http=functools.partial(DispatchingConnection, front),  # type: ignore[arg-type]  # uvicorn only calls it
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=max(1, round(service.settings.drain_timeout)),
    )
    config.load()
    config.ssl = encryption
    beside = None
    if grpc_address is not None:
        endpoint = grpc_front.make(service, access, budget, grpc_address, asyncio.get_running_loop().time)
        beside = _Beside(endpoint, grpc_address)
    server = _Server(config, front, address, on_ready, beside)
    with server.signals_handled():
        await server.serve(sockets=[address.bound])
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


def connections_that_fit(wanted: int) -> int:
    """How many of `wanted` connections fit into the limit of open files, with room for spare ones for health checks.

    The limit is raised first, as far as the system allows: systemd and shells start processes with 1,024.
    """
    try:
        import resource
    except ImportError:  # Windows has none
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + SPARE + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    if soft >= needed:
        return wanted
    fit = max(1, soft - SPARE - _OTHER_FILES)
    logs.event(
        "the limit of open files allows fewer connections than --max-connections: raise it with ulimit -n",
        level=logging.WARNING, files=soft, connections=fit,
    )  # fmt: skip
    return fit


class _Beside(NamedTuple):
    """The endpoint of gRPC, and its address."""

    endpoint: "GrpcEndpoint"
    address: Address


class _Server(uvicorn.Server):
    """uvicorn's server with its own signals and shutdown.

    uvicorn would raise the signal again at the end, so that the exit code is not 0.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        front: Front,
        address: Address,
        on_ready: Callable[[Service], None],
        beside: _Beside | None,
    ) -> None:
        super().__init__(config)
        self._beside = beside
        self._address = address
        self._service = front.service
        self._monitor = front.monitor
        self._on_ready = on_ready
        self._asked = False  # whether a signal has asked to stop; the second one ends the process

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except OSError as error:  # another process began to listen while the model was loading
            raise self._address.cannot_listen(error) from error
        if self._beside is not None:
            await self._beside.endpoint.start(self._beside.address.cannot_listen)
        self._monitor.start(lambda: self.server_state.connections)  # type: ignore[arg-type,return-value]  # all ours
        self._on_ready(self._service)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no new connections, and give the open ones time for requests that are on their way.

        uvicorn would close an idle connection at once, and lose a request that has arrived but was not read yet. While
        the service drains, every answer closes its connection, so this ends as soon as all are answered.
        """
        stopping = asyncio.create_task(self._beside.endpoint.stop()) if self._beside is not None else None
        await self._accept_the_last(sockets or [])
        deadline = asyncio.get_running_loop().time() + _LAST_REQUESTS_SECONDS
        while self.server_state.connections and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)
        for each in list(self.server_state.connections):  # the time to answer is over
            each.give_up()  # type: ignore[union-attr]  # all are ours
        if stopping is not None:
            await stopping
        self._monitor.stop()

    async def _accept_the_last(self, sockets: list[socket.socket]) -> None:
        """Stop listening without losing clients that have connected already.

        The kernel accepts connections before we do. When the listening socket is closed, it resets those that we have
        not accepted, and the requests they have sent are lost. So a duplicate keeps the socket open a moment longer,
        refuses new connections, and the waiting ones are accepted.
        """
        spares = [each.dup() for each in sockets]
        for server in self.servers:
            server.close()
        for spare in spares:
            self._address.refuse_newcomers(spare)
            spare.setblocking(False)
            with spare, contextlib.suppress(BlockingIOError):
                while True:
                    connection, _ = spare.accept()
                    connection.setblocking(False)
                    await asyncio.get_running_loop().connect_accepted_socket(
                        self._make_protocol, connection, ssl=self.config.ssl
                    )

    def _make_protocol(self) -> asyncio.Protocol:
        """As uvicorn does in `startup`."""
        protocol: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=asyncio.get_running_loop(),
        )
        return protocol

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def signals_handled(self) -> Iterator[None]:
        """SIGTERM, SIGINT and SIGHUP stop the service; a second SIGTERM or SIGINT ends the process at once.

        A SIGHUP that was ignored at the start (nohup) stays ignored: the process is meant to outlive its terminal.
        """
        handled = [signal.SIGINT, signal.SIGTERM]
        if _HANGUP is not None and signal.getsignal(_HANGUP) is not signal.SIG_IGN:
            handled.append(_HANGUP)
        loop = asyncio.get_running_loop()
        before = {each: signal.getsignal(each) for each in handled}
        for each in handled:
            signal.signal(each, lambda number, _: loop.call_soon_threadsafe(self._stop, number))
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _stop(self, number: int) -> None:
        counts = number != _HANGUP  # a terminal that closes sends SIGHUP twice, from the kernel and from its shell
        if self._asked and counts:
            logs.event("stopping at once", signal=signal.Signals(number).name)
            logs.flush(_LAST_LINES_SECONDS)
            os._exit(128 + number)
        self._asked = self._asked or counts
        if self.should_exit:
            return
        logs.event("stopping: answering what was received", signal=signal.Signals(number).name)
        self._service.drain()
        self.should_exit = True
