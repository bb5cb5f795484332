"""One call from its first byte to its status: admission, the message's arrival, limits, deadline, errors, the log line.

The functions that answer calls raise `RequestError` and know none of this. A call is read as a stream even where the
protocol has one message: gRPC then leaves the waiting to us, so that a message that never comes does not hold its call
for ever, and is not read for a caller without a token.
"""

import asyncio
import contextlib
import functools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import unquote

import grpc

from flambeau.errors import RequestError
from flambeau.grpc.admission import Admission, Metadata
from flambeau.grpc.descriptors import TORCHSERVE_PACKAGE, message
from flambeau.grpc.message_cost import MOST_BESIDE, cut, refuse_costly
from flambeau.grpc.statuses import STATUSES, sentence
from flambeau.grpc.tensor_messages import InferMessage
from flambeau.protocols.accounting import told
from flambeau.protocols.errors import STATUS, RateLimited
from flambeau.protocols.messages import request_id
from flambeau.protocols.routes import RequiredScope
from flambeau.serving.service import Service
from flambeau.settings.hosts import is_local
from flambeau.telemetry import logs

Function = Callable[["GrpcCall", Any], Awaitable[Any]]
"""Answers a message with a message, or with its bytes. Raises `RequestError`."""

REQUEST: Any = message("ModelInferRequest")
PREDICTIONS: Any = message("PredictionsRequest", TORCHSERVE_PACKAGE)
"""The two messages that may be long."""

_PER_ADDRESS = 64  # as the HTTP front's connections, unless set
_SWEEP_SECONDS = 0.5
_QUIET_SECONDS = 0.1  # a client's way to the server and back, and its pause
_LAST_CALLS_SECONDS = 0.5  # as the HTTP front gives connections for requests that are on their way
_LONG = 3600.0
_NO_MESSAGE = "the call has no message"


@dataclass(frozen=True, slots=True)
class GrpcCall:
    """A call in progress. `received` is `time.monotonic()` at its start, `identity` its id in the log."""

    name: str
    wire: Any
    metadata: Metadata
    client: str
    identity: str
    received: float

    def seconds_left(self, most: float) -> float:
        """How long it may still take: the earlier of the client's deadline and `most` seconds from now."""
        left: float | None = self.wire.time_remaining()
        return most if left is None else min(most, left)

    def key(self, header: str | None) -> str:
        """What tells this call's sender from others: that metadata if the call has it, else its id."""
        return self.metadata.get(header, self.identity) if header is not None else self.identity


class Calls:
    """Admits calls, and makes gRPC's method handlers."""

    def __init__(self, service: Service, admission: Admission) -> None:
        settings = service.settings
        self.service = service
        self.admission = admission
        self.draining = asyncio.Event()
        self._released = asyncio.Event()
        self._last_arrival = 0.0
        self._most = settings.max_connections
        given = settings.max_connections_per_address
        self._most_of_one = (0 if is_local(settings.host) else _PER_ADDRESS) if given is None else given
        self._running: Counter[str] = Counter()  # calls by their clients' addresses
        self._public: Counter[str] = Counter()
        self._arriving: dict[asyncio.Task[Any], float] = {}  # until when its message may come
        self._sweep: asyncio.Task[None] | None = None

    def unary(self, name: str, scope: RequiredScope, request: Any, function: Function, *, quiet: bool = False) -> Any:
        """A handler for a call of one message to one message. `quiet`: the function accounts for what it answers."""

        async def answer(_: object, wire: Any) -> Any:
            call = self._call(name, wire)
            with contextlib.ExitStack() as held:
                asked = await self._received(call, scope, request, held)
                try:
                    found = await function(call, asked)
                except asyncio.CancelledError:
                    self._log(call, 499, note="the client is gone")
                    raise
                except Exception as error:
                    refusal = told(error, call.identity)
                    if not quiet:
                        self._log(call, STATUS[refusal.code], code=refusal.code)
                    await self._hold_back(call)
                    await abort(call, refusal)
                if not quiet:
                    self._log(call, 200)
                await self._hold_back(call)
            return found

        return grpc.stream_unary_rpc_method_handler(answer, None, _serialised)

    def stream(
        self, name: str, scope: RequiredScope, answer: Callable[[GrpcCall], Awaitable[None]], *, quiet: bool = False
    ) -> Any:
        """A handler for a call of many messages: `answer` reads and writes bytes with `call.wire`."""

        async def converse(_: object, wire: Any) -> None:
            call = self._call(name, wire)
            with contextlib.ExitStack() as held:
                await self._admit(call, scope, held)
                try:
                    await answer(call)
                except asyncio.CancelledError:
                    self._log(call, 499, note="the client is gone")
                    raise
                except Exception as error:
                    refusal = told(error, call.identity)
                    self._log(call, STATUS[refusal.code], code=refusal.code)
                    await abort(call, refusal)
            if not quiet:
                self._log(call, 200)

        return grpc.stream_stream_rpc_method_handler(converse, None, None)

    async def quiet(self) -> None:
        """Drain: hold answers back, and return when no more calls come, or half a second has passed.

        gRPC cancels a call that reaches a stopping server before its client has read that it stops. So a stopping
        server first leaves its clients without an answer, and therefore without a reason to send the next call; then
        says that it stops; and then, behind that, answers: `release`.
        """
        self.draining.set()
        clock = asyncio.get_running_loop().time
        self._last_arrival = clock()
        latest = clock() + _LAST_CALLS_SECONDS
        while (left := min(self._last_arrival + _QUIET_SECONDS, latest) - clock()) > 0:
            await asyncio.sleep(left)

    def release(self) -> None:
        """Send the answers that were held back."""
        self._released.set()

    async def _hold_back(self, call: GrpcCall) -> None:
        if self.draining.is_set() and call.seconds_left(_LONG) > 2 * _LAST_CALLS_SECONDS:
            await self._released.wait()

    def refused(self, call: GrpcCall, error: RequestError) -> None:
        """Count and log a call, or a message of a stream, that did not get as far as a model."""
        self.service.metrics.refused(error.code, STATUS[error.code], "grpc")
        self._log(call, STATUS[error.code], code=error.code, note=f"gRPC {call.name} refused", client=call.client)

    def _call(self, name: str, wire: Any) -> GrpcCall:
        self._last_arrival = asyncio.get_running_loop().time()
        metadata = {key: value for key, value in wire.invocation_metadata() if isinstance(value, str)}
        client = self.admission.client(_address(wire.peer()), metadata)
        return GrpcCall(name, wire, metadata, client, request_id(metadata), time.monotonic())

    async def _received(self, call: GrpcCall, scope: RequiredScope, request: Any, held: contextlib.ExitStack) -> Any:
        """The message of an admitted call, whose place and bytes are held until `held` is left; else the call ends."""
        await self._admit(call, scope, held)
        try:
            raw = await self._message(call)
            held.callback(self.admission.hold(len(raw)))
            return parsed(request, raw)
        except RequestError as error:
            await self._refuse(call, error)

    async def _refuse(self, call: GrpcCall, error: RequestError) -> NoReturn:
        """End a call that did not get as far as a model, and tell of it.

        gRPC itself ends a call whose message is too large; what is left for us looks like a call without a message.
        """
        try:
            await abort(call, error)
        except grpc.aio.AbortError:
            self.refused(call, error)
            raise
        except grpc.aio.InternalError:
            most = self.service.settings.max_body_bytes
            self.refused(call, RequestError(f"the message has more than {most} bytes", code="body_too_large"))
            raise asyncio.CancelledError from None  # so that gRPC says no more of it

    async def _admit(self, call: GrpcCall, scope: RequiredScope, held: contextlib.ExitStack) -> None:
        """End a call that may not be made, or count it.

        Public calls are counted apart, so that they are answered however many others there are.
        """
        running = self._public if scope == "public" else self._running
        refusal = self.admission.refusal(scope, call.metadata, call.client)
        if refusal is None:
            here = running[call.client]
            if running.total() >= self._most:
                refusal = _full(f"all {self._most} calls that it takes at a time are in use (--max-connections)")
            elif self._most_of_one and here >= self._most_of_one:
                refusal = _full(f"{here} calls from this address are in use (--max-connections-per-address)")
        if refusal is not None:
            await self._refuse(call, refusal)
        running[call.client] += 1
        held.callback(_ended, running, call.client)

    async def _message(self, call: GrpcCall) -> bytes:
        """The call's message. Raises `RequestError` if it does not come within the server's deadline.

        No timer is set for each call: a sweep ends those that wait too long, twice a second.
        """
        task = asyncio.current_task()
        assert task is not None
        if self._sweep is None or self._sweep.done():
            self._sweep = asyncio.get_running_loop().create_task(self._end_overdue())
        self._arriving[task] = time.monotonic() + call.seconds_left(self.service.settings.deadline)
        try:
            found = await call.wire.read()
        except asyncio.CancelledError:
            if task in self._arriving:  # the client is gone
                raise
            task.uncancel()
            raise RequestError("the message did not come in time", code="client_too_slow") from None
        finally:
            self._arriving.pop(task, None)
        if found is grpc.aio.EOF:
            raise RequestError(_NO_MESSAGE, code="empty_body")
        assert isinstance(found, bytes)
        return found

    async def _end_overdue(self) -> None:
        """While there are calls whose message has not come, end those for which it is too late."""
        while self._arriving:
            now = time.monotonic()
            for task in [task for task, until in self._arriving.items() if until < now]:
                del self._arriving[task]
                task.cancel()
            await asyncio.sleep(_SWEEP_SECONDS)

    def _log(
        self,
        call: GrpcCall,
        status: int,
        *,
        code: str | None = None,
        note: str | None = None,
        client: str | None = None,
    ) -> None:
        milliseconds = 1000 * (time.monotonic() - call.received)
        logs.event(
            note or f"gRPC {call.name}", id=call.identity, status=status, code=code, client=client, ms=milliseconds
        )


def _ended(running: Counter[str], client: str) -> None:
    running[client] -= 1
    if not running[client]:
        del running[client]


async def abort(call: GrpcCall, error: RequestError) -> NoReturn:
    """End the call with the error's status. Always raises, as gRPC asks for."""
    trailing = [("error-code", error.code), ("x-request-id", call.identity)]
    if isinstance(error, RateLimited):
        trailing.append(("retry-after", str(error.wait)))
    await call.wire.abort(STATUSES[error.code], sentence(error), tuple(trailing))
    raise AssertionError  # it has raised


def parsed(request: Any, raw: bytes) -> Any:
    """The message in those bytes; an `InferMessage` for a `REQUEST`.

    Raises `RequestError`, also for one that would cost too much to read.
    """
    contents: Sequence[memoryview] = ()
    if request is REQUEST:
        raw, contents = cut(raw)
    elif request is PREDICTIONS:
        refuse_costly(raw)
    elif len(raw) > MOST_BESIDE:
        raise RequestError(f"the message has more than {MOST_BESIDE} bytes", code="body_too_large")
    try:
        found = request.FromString(raw)
        return InferMessage(found, contents or found.raw_input_contents) if request is REQUEST else found
    except Exception:  # protobuf's DecodeError, which is its own class in each of its implementations
        raise RequestError(f"the message is no {request.DESCRIPTOR.full_name}", code="bad_request") from None


def _serialised(message: Any) -> bytes:
    text: bytes = message if isinstance(message, bytes) else message.SerializeToString()
    return text


def _full(why: str) -> RequestError:
    return RequestError(f"the server is full: {why}", code="overloaded")


@functools.lru_cache(maxsize=4096)
def _address(peer: str) -> str:
    """The address in gRPC's words for a peer: `ipv4:127.0.0.1:50000`, `ipv6:%5B::1%5D:50000`."""
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    return rest.rpartition(":")[0].strip("[]")
