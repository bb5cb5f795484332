"""Calls as they begin: which method, who may call it, how many at a time. And what all calls share, until the end.

A call is admitted before its message is taken.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from flambeau.errors import RequestError
from flambeau.grpc.admission import Admission
from flambeau.grpc.call_heads import TOO_LARGE
from flambeau.grpc.methods import GrpcCall, Method, Unary, log, trailing_of
from flambeau.grpc.packed_messages import Unpacking
from flambeau.grpc.running_calls import StreamCall, UnaryCall
from flambeau.grpc.statuses import STATUSES, Status, sentence
from flambeau.grpc.streams import CallStream
from flambeau.protocols.errors import STATUS
from flambeau.serving.service import Service
from flambeau.settings.hosts import is_local

_PER_ADDRESS = 64  # as the HTTP front's connections, unless set
_LAST_MESSAGES_SECONDS = 0.5  # as the HTTP front gives connections for requests that are on their way


class Calls:
    """Admits calls, and has them answered. `methods`: by their paths."""

    def __init__(self, service: Service, admission: Admission) -> None:
        settings = service.settings
        self.service = service
        self.admission = admission
        self.methods: Mapping[str, Method] = {}
        self.draining = asyncio.Event()
        self.closed = False
        """Whether streams get no more messages, because the server stops."""
        self.streams: set[StreamCall] = set()
        self.unpacking = Unpacking(settings)
        self.tasks: set[asyncio.Task[Any]] = set()
        self._most = settings.max_connections
        given = settings.max_connections_per_address
        self._most_of_one = (0 if is_local(settings.host) else _PER_ADDRESS) if given is None else given
        self._running, self._public = _Running(), _Running()

    def begin(self, stream: CallStream) -> None:
        """Take a call whose headers have come, or refuse it."""
        head = stream.head
        if head.refused:
            self._refuse_head(stream)
            return
        method = self.methods.get(head.path)
        if method is None:
            stream.end(Status.UNIMPLEMENTED, f"there is no method {head.path[:100]}", [])
            return
        client = self.admission.client(stream.peer, head.metadata)
        call = GrpcCall(method.name, stream, client)
        running = self._public if method.scope == "public" else self._running
        refusal = self._refusal(method, call, running)
        if refusal is not None:
            self.refused(call, refusal)
            stream.end(STATUSES[refusal.code], sentence(refusal), trailing_of(call, refusal))
            return
        running.enter(client)
        kind = UnaryCall if isinstance(method, Unary) else StreamCall
        stream.call = kind(self, stream, call, method)  # type: ignore[arg-type]

    def drain(self) -> None:
        """The server stops: streams get what is on its way, and then end."""
        self.draining.set()
        asyncio.get_running_loop().call_later(_LAST_MESSAGES_SECONDS, self._close)

    def _close(self) -> None:
        self.closed = True
        for each in self.streams:
            each.wake()

    def ended(self, method: Method, call: GrpcCall) -> None:
        """A call that was counted is over."""
        (self._public if method.scope == "public" else self._running).leave(call.client)

    def refused(self, call: GrpcCall, error: RequestError) -> None:
        """Count and log a call, or a message of a stream, that did not get as far as a model."""
        self.service.metrics.refused(error.code, STATUS[error.code], "grpc")
        log(call, STATUS[error.code], code=error.code, note=f"gRPC {call.name} refused", client=call.client)

    def _refuse_head(self, stream: CallStream) -> None:
        if stream.head.refused != TOO_LARGE:
            stream.refuse(stream.head.refused)
            return
        most = self.service.settings.max_headers_bytes
        error = RequestError(f"the metadata has more than {most} bytes", code="headers_too_large")
        call = GrpcCall("call", stream, stream.peer)
        self.refused(call, error)
        stream.end(STATUSES[error.code], sentence(error), trailing_of(call, error))

    def _refusal(self, method: Method, call: GrpcCall, running: "_Running") -> RequestError | None:
        """Why a call may not be made. Public calls are counted apart, so that they are answered however many others
        there are."""
        refusal = self.admission.refusal(method.scope, call.metadata, call.client)
        if refusal is not None:
            return refusal
        here = running.of.get(call.client, 0)
        if running.total >= self._most:
            return _full(f"all {self._most} calls that it takes at a time are in use (--max-connections)")
        if self._most_of_one and here >= self._most_of_one:
            return _full(f"{here} calls from this address are in use (--max-connections-per-address)")
        return None


class _Running:
    """Calls in work: how many, and how many `of` each client's address."""

    __slots__ = ("of", "total")

    def __init__(self) -> None:
        self.total = 0
        self.of: dict[str, int] = {}

    def enter(self, client: str) -> None:
        self.total += 1
        self.of[client] = self.of.get(client, 0) + 1

    def leave(self, client: str) -> None:
        self.total -= 1
        left = self.of[client] - 1
        if left:
            self.of[client] = left
        else:
            del self.of[client]


def _full(why: str) -> RequestError:
    return RequestError(f"the server is full: {why}", code="overloaded")
