"""gRPC's server on the loop of the service: its ports, its limits, its start and its end."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from flambeau.grpc import reflection
from flambeau.grpc.admission import Admission
from flambeau.grpc.calls import Calls
from flambeau.grpc.health import Health
from flambeau.grpc.inference import Inference
from flambeau.grpc.inference_proto import HEALTH_SERVICE, INFERENCE_SERVICE
from flambeau.grpc.servicing import Servicing
from flambeau.serving.service import Service
from flambeau.settings.service import Settings
from flambeau.telemetry import logs

_GOODBYE_SECONDS = 0.02  # in which gRPC's threads tell the clients that the server stops; nothing says when they have
_PINGS_SECONDS = 10  # the least time between a client's keepalive pings; gRPC's own is five minutes
_IDLE_SECONDS = 300  # without a call; clients keep a channel and log its end, so --idle-timeout would be too short
_SILENT_SECONDS = 60  # after which a client that sends nothing is asked whether it is there


class GrpcEndpoint:
    """One listening server of gRPC."""

    def __init__(self, service: Service, admission: Admission, host: str, port: int) -> None:
        """Listens on nothing yet."""
        self._service = service
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._calls = Calls(service, admission)
        self._server: Any = None

    async def start(self, cannot_listen: Callable[[OSError], Exception]) -> None:
        """Listen, and answer. Raises what `cannot_listen` makes of the error if the port has been taken."""
        server = grpc.aio.server(options=_options(self._service.settings))
        services = {
            INFERENCE_SERVICE: Servicing(self._calls).handlers() | Inference(self._calls).handlers(),
            HEALTH_SERVICE: Health(self._calls).handlers(),
        }
        server.add_generic_rpc_handlers(
            [
                *(grpc.method_handlers_generic_handler(name, methods) for name, methods in services.items()),
                *reflection.handlers(services),
            ]
        )
        credentials = _credentials(self._service.settings)
        try:
            if credentials is None:
                server.add_insecure_port(self._address)
            else:
                server.add_secure_port(self._address, credentials)
        except RuntimeError as error:
            raise cannot_listen(OSError(0, "gRPC could not bind it")) from error
        await server.start()
        self._server = server
        logs.event("gRPC listens", address=self._address, tls=credentials is not None)

    async def stop(self) -> None:
        """Take no more calls, and return when those that were received are answered, or have had their time."""
        if self._server is None:
            return
        await self._calls.quiet()
        stopping = asyncio.create_task(self._server.stop(self._service.settings.drain_timeout))
        await asyncio.sleep(_GOODBYE_SECONDS)
        self._calls.release()
        await stopping


def _options(settings: Settings) -> list[tuple[str, Any]]:
    """gRPC's own limits, from the settings of connections that HTTP has, too."""
    return [
        ("grpc.so_reuseport", 0),  # else another process could share the port, and calls
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", settings.max_headers_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_headers_bytes),
        ("grpc.max_concurrent_streams", 2 * settings.max_connections),  # of one client; beyond, it waits unanswered
        ("grpc.server_handshake_timeout_ms", int(1000 * settings.header_timeout)),
        ("grpc.max_connection_idle_ms", 1000 * _IDLE_SECONDS),
        ("grpc.keepalive_time_ms", 1000 * _SILENT_SECONDS),
        ("grpc.http2.min_ping_interval_without_data_ms", 1000 * _PINGS_SECONDS),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _credentials(settings: Settings) -> Any:
    """The TLS credentials; `None` without TLS. The files were checked when the server started."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    key, chain = Path(settings.tls_key).read_bytes(), Path(settings.tls_certificate).read_bytes()
    return grpc.ssl_server_credentials([(key, chain)])
