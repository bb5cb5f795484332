"""Calls whose connection a proxy holds, such as Ray Serve's: bytes of a message come in, bytes and a status go out.

The functions that answer them are those of gRPC's own server. The proxy is not known here: whoever asks brings what
reads the call's messages and writes the answers. A client's deadline does not come through; its end does, as a
cancelled coroutine.
"""

import itertools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NoReturn

import grpc

from flambeau.errors import RequestError
from flambeau.grpc.admission import Admission
from flambeau.grpc.calls import Calls
from flambeau.grpc.health import Health
from flambeau.grpc.inference import Inference
from flambeau.grpc.servicing import Servicing
from flambeau.serving.service import Service

Pairs = Iterable[tuple[str, Any]]
"""Metadata."""


class ProxiedCall:
    """One call. It stands where gRPC's own server has its context; afterwards it has the call's status."""

    def __init__(
        self,
        peer: str,
        metadata: Pairs,
        *,
        read: Callable[[], Awaitable[bytes | None]],
        write: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> None:
        """`peer` is the client in gRPC's words. `read` gives the next message, and `None` after the last."""
        self.code = grpc.StatusCode.OK
        self.details = ""
        self.trailing: list[tuple[str, str]] = []
        self.most = 0  # bytes of a message
        self._peer = peer
        self._metadata = tuple(metadata)
        self._read = read
        self._write = write

    def peer(self) -> str:
        return self._peer

    def invocation_metadata(self) -> Sequence[tuple[str, Any]]:
        return self._metadata

    def time_remaining(self) -> None:
        return None

    def set_trailing_metadata(self, trailing: Pairs) -> None:
        self.trailing = list(trailing)

    async def read(self) -> Any:
        raw = await self._read()
        if raw is None:
            return grpc.aio.EOF
        if len(raw) > self.most:
            raise RequestError(f"the message has more than {self.most} bytes", code="body_too_large")
        return raw

    async def write(self, message: bytes) -> None:
        assert self._write is not None
        await self._write(message)

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing: Pairs = ()) -> NoReturn:
        self.code, self.details, self.trailing = code, details, list(trailing)
        raise grpc.aio.AbortError


class ProxiedCalls:
    """Answers such calls, on the loop of the service."""

    def __init__(self, service: Service, admission: Admission) -> None:
        calls = Calls(service, admission)
        self._most = service.settings.max_body_bytes
        self._handlers = Servicing(calls).handlers() | Inference(calls).handlers() | Health(calls).handlers()

    async def answer(self, method: str, call: ProxiedCall) -> bytes:
        """The answer of one message; empty if it is written by the call's `write`, or if the call failed."""
        call.most = self._most
        handler = self._handlers[method]
        try:
            if handler.stream_unary is None:
                await handler.stream_stream(None, call)
                return b""
            found: bytes = handler.response_serializer(await handler.stream_unary(None, call))
        except grpc.aio.AbortError:
            return b""
        return found


def of_one(raw: bytes) -> Callable[[], Awaitable[bytes | None]]:
    """What reads a call of one message."""
    rest = itertools.chain((raw,), itertools.repeat(None))

    async def read() -> bytes | None:
        return next(rest)

    return read
