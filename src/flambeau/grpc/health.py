"""The standard health service, `grpc.health.v1.Health`, which Kubernetes, Envoy and load balancers ask.

The empty name and that of the inference service stand for the whole server, any other for the model of that name. It
is public, as `/readyz` is, because those who ask have no token.
"""

import asyncio
from typing import Any

from flambeau.errors import RequestError
from flambeau.grpc.calls import Calls
from flambeau.grpc.descriptors import message
from flambeau.grpc.inference_proto import INFERENCE_SERVICE
from flambeau.grpc.methods import GrpcCall, Method, Streaming, Unary, parsed
from flambeau.protocols.v2_routes import model_is_ready

_Request: Any = message("HealthCheckRequest", "grpc.health.v1")
_Response: Any = message("HealthCheckResponse", "grpc.health.v1")

_WATCH_SECONDS = 0.5  # readiness has no event: it follows from workers' states, and is computed when it is asked for


class Health:
    """Answers whether the server or a model can answer."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._service = calls.service

    def methods(self) -> list[Method]:
        """The methods."""
        return [
            Unary("Health.Check", "public", _Request, self._check, quiet=True),
            Streaming("Health.Watch", "public", self._watch, quiet=True),
        ]

    def _status(self, name: str) -> int:
        if name in ("", INFERENCE_SERVICE):
            ready = self._service.ready()
        elif name not in (each.name for each in self._service.table.served()):
            return int(_Response.SERVICE_UNKNOWN)
        else:
            ready = model_is_ready(self._service, name, None)
        return int(_Response.SERVING if ready else _Response.NOT_SERVING)

    async def _check(self, _: GrpcCall, asked: Any) -> Any:
        status = self._status(asked.service)
        if status == _Response.SERVICE_UNKNOWN:
            raise RequestError(f"there is no model or service {asked.service!r}", code="not_found")
        return _Response(status=status)

    async def _watch(self, call: GrpcCall) -> None:
        """Tell the status, and every change of it, until the client leaves or the server stops."""
        wire = call.wire
        assert wire is not None
        first = await wire.read_one()
        asked = parsed(_Request, b"" if first is None else await wire.raw(first))
        if first is not None:
            wire.release(first)
        told: int | None = None
        while True:
            status = self._status(asked.service)
            if status != told:
                await wire.write(_Response(status=status).SerializeToString())
                told = status
            if self._calls.draining.is_set():
                return
            try:
                async with asyncio.timeout(_WATCH_SECONDS):
                    await self._calls.draining.wait()
            except TimeoutError:
                continue
