"""One call from its headers to its status: admission, the message's arrival, limits, deadline, errors, the log line.

The functions that answer calls raise `RequestError` and know none of this. A call is admitted before its message is
taken, and one whose message does not come is ended.
"""

import asyncio
import contextlib
import copy
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from flambeau.errors import RequestError
from flambeau.grpc.admission import Admission, Metadata
from flambeau.grpc.call_heads import TOO_LARGE
from flambeau.grpc import infer_messages
from flambeau.grpc.infer_messages import REQUEST
from flambeau.grpc.message_cost import MOST_BESIDE
from flambeau.grpc.packed_messages import Unpacking
from flambeau.grpc.statuses import STATUSES, Status, sentence
from flambeau.grpc.streams import Message, Stream, Trailing
from flambeau.protocols.accounting import told
from flambeau.protocols.errors import STATUS, RateLimited
from flambeau.protocols.messages import request_id
from flambeau.protocols.routes import RequiredScope
from flambeau.serving.service import Service
from flambeau.settings.hosts import is_local
from flambeau.system.eager import Eager
from flambeau.telemetry import logs

Function = Callable[["GrpcCall", Any], Coroutine[Any, Any, Any]]
"""Answers a message with a message, or with its bytes. Raises `RequestError`."""

_PER_ADDRESS = 64  # as the HTTP front's connections, unless set
_LATE_SECONDS = 1.0  # after its own deadline, by when a client has usually cancelled the call itself
_LAST_MESSAGES_SECONDS = 0.5  # as the HTTP front gives connections for requests that are on their way
_NO_MESSAGE = "the call has no message"


class GrpcCall:
    """A call in progress. `received` is `time.monotonic()` at its start, `identity` its id in the log.

    `wire`: what a call of many messages reads from and writes to. `trailing`: metadata behind a good answer.
    """

    __slots__ = ("client", "identity", "metadata", "name", "received", "timeout", "trailing", "wire")

    def __init__(self, name: str, stream: Stream, client: str, wire: "StreamCall | None" = None) -> None:
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

    def begin(self, stream: Stream) -> None:
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

    def _refuse_head(self, stream: Stream) -> None:
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


class RunningCall:
    """What a call is to its stream (`flambeau.grpc.streams.Conversation`), until it is over."""

    __slots__ = ("_answering", "_calls", "_over", "_stream", "_told", "call", "method")

    def __init__(self, calls: Calls, stream: Stream, call: GrpcCall, method: Method) -> None:
        self._calls = calls
        self._stream = stream
        self.call = call
        self.method = method
        self._answering: Eager[Any] | asyncio.Task[Any] | None = None
        self._over = self._told = False

    def gone(self) -> None:
        """The client does not want the answer any more, or has left."""
        if self._answering is not None:
            self._answering.cancel()
        elif not self._over:
            log(self.call, 499, note="the client is gone")
            self._close()

    def failed(self, error: RequestError) -> None:
        """What came cannot be taken."""
        self._calls.refused(self.call, error)
        self._give_up(error)

    def overdue(self, now: float) -> None:
        """End it if its message does not come, or its client has not ended it at its deadline."""
        late = self.call.received + self._calls.service.settings.deadline
        if self._waits() and now > late:
            self.failed(RequestError("the message did not come in time", code="client_too_slow"))
        elif self.call.timeout is not None and now > self.call.received + self.call.timeout + _LATE_SECONDS:
            error = RequestError("the call's deadline has passed", code="deadline_exceeded")
            log(self.call, STATUS[error.code], code=error.code)
            self._give_up(error)

    def _give_up(self, error: RequestError) -> None:
        """End the call, which was told of, whatever is under way."""
        self._told = True
        self._refuse(error)
        if self._answering is not None:
            self._answering.cancel()
        else:
            self._close()

    @abstractmethod
    def _waits(self) -> bool:
        """Whether it cannot begin before something comes."""

    def _refuse(self, error: RequestError) -> None:
        self._stream.deaf = True
        self._stream.end(STATUSES[error.code], sentence(error), trailing_of(self.call, error))

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Answer in a task."""
        task = self._answering = asyncio.get_running_loop().create_task(coroutine)
        self._calls.tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: "asyncio.Task[Any]") -> None:
        self._calls.tasks.discard(task)
        if task.cancelled():
            self._ended(None, asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self._ended(None, error)
        else:
            self._ended(task.result(), None)

    def _ended(self, found: Any, error: BaseException | None) -> None:
        """The call was answered, or given up."""
        self._answering = None
        call, quiet = self.call, self.method.quiet
        if isinstance(error, asyncio.CancelledError):
            if not self._told:
                log(call, 499, note="the client is gone")
            self._stream.end(Status.CANCELLED, "the call was given up", [])
        elif error is not None:
            refusal = told(error, call.identity) if isinstance(error, Exception) else _FAILED
            if not self._told and (not quiet or isinstance(self, StreamCall)):
                log(call, STATUS[refusal.code], code=refusal.code)
            self._refuse(refusal)
        else:
            try:
                self._answer(found)
            except Exception as unsent:  # its client must not wait
                self._refuse(told(unsent, call.identity))
            if not quiet:
                log(call, 200)
        self._close()

    @abstractmethod
    def _answer(self, found: Any) -> None:
        """Send what a good call came to, and end it."""

    def _close(self) -> None:
        """Give back what the call held."""
        if not self._over:
            self._over = True
            self._stream.call = None  # they refer to each other
            self._calls.ended(self.method, self.call)


class UnaryCall(RunningCall):
    """A call of one message, which is answered when the client has sent it and nothing more."""

    __slots__ = ("_message",)

    method: Unary

    def __init__(self, calls: Calls, stream: Stream, call: GrpcCall, method: Unary) -> None:
        super().__init__(calls, stream, call, method)
        self._message: Message | None = None

    def came(self, message: Message) -> None:
        if self._message is not None:
            self._calls.admission.release(message.size)
            self.failed(RequestError("the call has more than one message", code="bad_request"))
            return
        self._message = message

    def half_closed(self) -> None:
        message = self._message
        if message is None:
            self.failed(RequestError(_NO_MESSAGE, code="empty_body"))
        elif message.packed:
            self._run(self._unpacked(message))
        else:
            try:
                asked = parsed(self.method.request, message.raw)
            except RequestError as error:
                self.failed(error)
                return
            message.raw = b""
            answering = self.method.function(self.call, asked)
            if self.method.at_once:
                eager = Eager(answering, self._ended)
                if not self._over:
                    self._answering = eager
            else:
                self._run(answering)

    async def _unpacked(self, message: Message) -> Any:
        async with contextlib.AsyncExitStack() as held:
            try:
                unpacking = self._calls.unpacking.of(message.raw, self._stream.head.encoding)
                asked = parsed(self.method.request, await held.enter_async_context(unpacking))
            except RequestError as error:
                self._told = True
                self._calls.refused(self.call, error)
                raise
            return await self.method.function(self.call, asked)

    def _waits(self) -> bool:
        return self._answering is None and not self._over

    def _answer(self, found: Any) -> None:
        raw = found if isinstance(found, bytes) else found.SerializeToString()
        self._stream.answer(raw, self.call.trailing)

    def _close(self) -> None:
        if self._message is not None:
            self._calls.admission.release(self._message.size)
            self._message = None
        super()._close()


class StreamCall(RunningCall):
    """A call of many messages."""

    __slots__ = ("_held", "_messages", "_reader")

    method: Streaming

    def __init__(self, calls: Calls, stream: Stream, call: GrpcCall, method: Streaming) -> None:
        super().__init__(calls, stream, call, method)
        self._messages: deque[Message] = deque()
        self._reader: asyncio.Future[None] | None = None
        call.wire = self
        stream.call = self
        calls.streams.add(self)
        self._run(method.answer(call))  # type: ignore[arg-type]

    def came(self, message: Message) -> None:
        self._messages.append(message)
        self.wake()

    def half_closed(self) -> None:
        self.wake()

    async def read(self) -> Message | None:
        """The next message, which the reader gives back with `release`; `None` after the last, and when the server has
        waited long enough for those that were on their way as it stopped. Only one may read."""
        while not self._messages:
            if self._stream.ended or self._stream.over or self._calls.closed:
                return None
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        found = self._messages.popleft()
        self._stream.read_on(found.size)
        return found

    def release(self, message: Message) -> None:
        """The bytes of a message are not held any more."""
        self._calls.admission.release(message.size)

    async def raw(self, message: Message) -> bytes | memoryview:
        """The bytes of a message as they were before they were packed. Raises `RequestError`."""
        if not message.packed:
            return message.raw
        async with self._calls.unpacking.of(message.raw, self._stream.head.encoding) as raw:
            return raw

    async def write(self, message: bytes) -> None:
        """Send a message, and wait while the client takes none."""
        self._stream.send(message)
        await self._stream.drained()

    def wake(self) -> None:
        """Let the reader look again."""
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _waits(self) -> bool:
        return False

    def _answer(self, found: Any) -> None:
        self._stream.end(Status.OK, "", self.call.trailing)

    def _close(self) -> None:
        while self._messages:
            self.release(self._messages.popleft())
        self._calls.streams.discard(self)
        super()._close()


_FAILED = RequestError("the server failed on this request", code="internal")


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
    """The message in those bytes; an `InferMessage` for a `REQUEST`, which alone may be long.

    Raises `RequestError`, also for one that would cost too much to read.
    """
    if request is not REQUEST and len(raw) > MOST_BESIDE:
        raise RequestError(f"the message has more than {MOST_BESIDE} bytes", code="body_too_large")
    try:
        return infer_messages.read(raw) if request is REQUEST else request.FromString(bytes(raw))
    except RequestError:
        raise
    except Exception:  # protobuf's DecodeError, which is its own class in each of its implementations
        raise RequestError(f"the message is no {request.DESCRIPTOR.full_name}", code="bad_request") from None


def _full(why: str) -> RequestError:
    return RequestError(f"the server is full: {why}", code="overloaded")
