"""What a method of gRPC is to those who answer it, and a call of one in progress."""

import copy
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from flambeau.errors import RequestError
from flambeau.grpc import infer_messages
from flambeau.grpc.admission import Metadata
from flambeau.grpc.descriptors import TORCHSERVE_PACKAGE, message
from flambeau.grpc.infer_messages import REQUEST
from flambeau.grpc.message_cost import MOST_BESIDE, refuse_costly
from flambeau.grpc.streams import CallStream, Trailing
from flambeau.protocols.errors import RateLimited
from flambeau.protocols.messages import request_id
from flambeau.protocols.routes import RequiredScope
from flambeau.telemetry import logs

if TYPE_CHECKING:
    from flambeau.grpc.running_calls import StreamCall

PREDICTIONS: Any = message("PredictionsRequest", TORCHSERVE_PACKAGE)
"""It and `REQUEST` are the two messages that may be long."""

Function = Callable[["GrpcCall", Any], Coroutine[Any, Any, Any]]
"""Answers a message with a message, or with its bytes. Raises `RequestError`."""


class GrpcCall:
    """A call in progress. `received` is `time.monotonic()` at its start, `identity` its id in the log.

    `wire`: what a call of many messages reads from and writes to. `trailing`: metadata behind a good answer.
    """

    __slots__ = ("client", "identity", "metadata", "name", "received", "timeout", "trailing", "wire")

    def __init__(self, name: str, stream: CallStream, client: str, wire: "StreamCall | None" = None) -> None:
        self.name = name
        self.metadata: Metadata = stream.head.metadata
        self.timeout = stream.head.timeout
        self.client = client
        self.identity = request_id(self.metadata)
        self.received = time.monotonic()
        self.trailing: Trailing = []
        self.wire = wire

    def seconds_left(self, most: float) -> float:
        """How long it may still take: the earlier of the client's deadline and `most` seconds from now."""
        return most if self.timeout is None else min(most, self.received + self.timeout - time.monotonic())

    def again(self) -> "GrpcCall":
        """The same for a message of it that has come now."""
        made = copy.copy(self)
        made.received = time.monotonic()
        made.timeout = None if self.timeout is None else max(0.0, self.received + self.timeout - made.received)
        return made

    def key(self, header: str | None) -> str:
        """What tells this call's sender from others: that metadata if the call has it, else its id."""
        return self.metadata.get(header, self.identity) if header is not None else self.identity


class Method:
    """How a call of one name is answered. `quiet`: the function accounts for what it answers."""

    def __init__(self, name: str, scope: RequiredScope, *, quiet: bool) -> None:
        self.name = name
        self.scope = scope
        self.quiet = quiet


class Unary(Method):
    """One message is answered with one. `at_once`: the function needs no task of its own (`flambeau.system.eager`)."""

    def __init__(
        self, name: str, scope: RequiredScope, request: Any, function: Function, *, quiet: bool = False,
        at_once: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(name, scope, quiet=quiet)
        self.request = request
        self.function = function
        self.at_once = at_once


class Streaming(Method):
    """Many messages are answered with many: `answer` reads and writes bytes with `call.wire`."""

    def __init__(
        self, name: str, scope: RequiredScope, answer: Callable[[GrpcCall], Awaitable[None]], *, quiet: bool = False
    ) -> None:
        super().__init__(name, scope, quiet=quiet)
        self.answer = answer


def log(
    call: GrpcCall, status: int, *, code: str | None = None, note: str | None = None, client: str | None = None
) -> None:
    """Write the line of the log about a call."""
    milliseconds = 1000 * (time.monotonic() - call.received)
    logs.event(note or f"gRPC {call.name}", id=call.identity, status=status, code=code, client=client, ms=milliseconds)


def trailing_of(call: GrpcCall, error: RequestError) -> Trailing:
    """The metadata behind an error."""
    trailing = [("error-code", error.code), ("x-request-id", call.identity)]
    if isinstance(error, RateLimited):
        trailing.append(("retry-after", str(error.wait)))
    return trailing


def parsed(request: Any, raw: bytes | memoryview) -> Any:
    """The message in those bytes; an `InferMessage` for a `REQUEST`.

    Raises `RequestError`, also for one that would cost too much to read.
    """
    if request is PREDICTIONS:
        refuse_costly(raw)
    elif request is not REQUEST and len(raw) > MOST_BESIDE:
        raise RequestError(f"the message has more than {MOST_BESIDE} bytes", code="body_too_large")
    try:
        return infer_messages.read(raw) if request is REQUEST else request.FromString(bytes(raw))
    except RequestError:
        raise
    except Exception:  # protobuf's DecodeError, which is its own class in each of its implementations
        raise RequestError(f"the message is no {request.DESCRIPTOR.full_name}", code="bad_request") from None
