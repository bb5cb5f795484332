"""The server of gRPC on the loop of the service: its connections' limits, its start and its end."""

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable

from flambeau.grpc.admission import Admission
from flambeau.grpc.calls import Calls
from flambeau.grpc.descriptors import MANAGEMENT_SERVICE, REFLECTIONS, TORCHSERVE_SERVICE
from flambeau.grpc.health import Health
from flambeau.grpc.http2_connection import Http2Connection
from flambeau.grpc.http2_link import Ground, Timeouts
from flambeau.grpc.inference import Inference
from flambeau.grpc.inference_proto import HEALTH_SERVICE, INFERENCE_SERVICE
from flambeau.grpc.methods import Method
from flambeau.grpc.reflection import Reflection
from flambeau.grpc.servicing import Servicing
from flambeau.grpc.torchserve import TorchServeInference, TorchServeManagement
from flambeau.serving.service import Service
from flambeau.system.handshakes import Accepting, Handshakes
from flambeau.telemetry import logs

_BACKLOG = 2048
_LAST_HANDSHAKES_SECONDS = 0.5
_TICK = 0.5  # seconds between two checks of all connections

Adopt = Callable[[socket.socket], Awaitable[None]]


class GrpcEndpoint:
    """One listening server of gRPC, at a socket that is bound."""

    def __init__(
        self,
        service: Service,
        admission: Admission,
        bound: socket.socket,
        *,
        encryption: ssl.SSLContext | None,
        connections: int,
    ) -> None:
        """Listens on nothing yet. `connections`: how many there may be."""
        settings = service.settings
        self._service = service
        self._bound = bound
        self._calls = calls = Calls(service, admission)
        services: dict[str, list[Method]] = {
            INFERENCE_SERVICE: [*Servicing(calls).methods(), *Inference(calls).methods()],
            HEALTH_SERVICE: Health(calls).methods(),
            TORCHSERVE_SERVICE: TorchServeInference(calls).methods(),
        }
        if admission.archives is not None:
            services[MANAGEMENT_SERVICE] = TorchServeManagement(calls, admission.archives).methods()
        reflection = Reflection(calls, tuple(services))
        services |= {f"{each}.ServerReflection": reflection.methods(each) for each in REFLECTIONS}
        calls.methods = {
            f"/{name}/{method.name.rpartition('.')[2]}": method
            for name, several in services.items()
            for method in several
        }
        self._ground = Ground(
            begin=calls.begin,
            admission=admission,
            most_message=settings.max_body_bytes,
            most_headers=settings.max_headers_bytes,
            most_streams=2 * settings.max_connections,
            most_connections=connections,
            timeouts=Timeouts(settings.header_timeout, settings.write_timeout, settings.min_body_rate),
        )
        self._handshakes: Handshakes | None = None
        if encryption is not None:
            self._handshakes = Handshakes(
                encryption,
                make=self._connection,
                most=connections // 2,
                seconds=settings.header_timeout,
                tell_full=logs.cannot_accept,
            )
        self._server: Accepting | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def start(self, cannot_listen: Callable[[OSError], Exception]) -> None:
        """Listen, and answer. Raises what `cannot_listen` makes of the error if the port has been taken."""
        loop = asyncio.get_running_loop()
        try:
            if self._handshakes is not None:
                self._server = await self._handshakes.listen(self._bound, backlog=_BACKLOG)
            else:
                self._server = await loop.create_server(self._connection, sock=self._bound, backlog=_BACKLOG)
        except OSError as error:
            raise cannot_listen(error) from error
        self._check()
        host, port = self._bound.getsockname()[:2]
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        logs.event("gRPC listens", address=address, tls=self._handshakes is not None)

    async def stop(self, accept_the_last: Callable[[Accepting, Adopt], Awaitable[None]]) -> None:
        """Take no more calls, and return when those that were received are answered, or have had their time.

        Clients are told first, and what they sent before they knew is answered: see `Http2Connection.shutdown`.
        """
        if self._server is None:
            return
        ground = self._ground
        ground.draining = True
        self._calls.drain()
        await accept_the_last(self._server, self._adopt)
        if self._handshakes is not None:
            until = time.monotonic() + _LAST_HANDSHAKES_SECONDS
            while self._handshakes and time.monotonic() < until:
                await asyncio.sleep(0.01)
            self._handshakes.give_up()
        for each in list(ground.connections):
            each.shutdown()
        until = time.monotonic() + max(1.0, self._service.settings.drain_timeout)
        while ground.connections and time.monotonic() < until:  # connections close by themselves, and tell nobody
            await asyncio.sleep(0.01)
        for each in list(ground.connections):
            each.transport.abort()
        for task in list(self._calls.tasks):
            task.cancel()
        await asyncio.gather(*self._calls.tasks, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()

    def _connection(self) -> Http2Connection:
        return Http2Connection(self._ground)

    async def _adopt(self, connection: socket.socket) -> None:
        """Take over a connection that has been accepted."""
        if self._handshakes is not None:
            self._handshakes.begin(connection)
        else:
            await asyncio.get_running_loop().connect_accepted_socket(self._connection, connection)

    def _check(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_TICK, self._check)
        now = time.monotonic()
        for each in list(self._ground.connections):
            each.check(now)
