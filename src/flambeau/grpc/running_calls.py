"""A call from its admission to its status: its message, its answer or error, its deadline, its line in the log.

Streams tell it what comes (`flambeau.grpc.streams.Conversation`), and the functions that answer know none of this.
"""

import asyncio
import contextlib
from abc import abstractmethod
from collections import deque
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from flambeau.errors import RequestError
from flambeau.grpc.methods import GrpcCall, Method, Streaming, Unary, log, parsed, trailing_of
from flambeau.grpc.statuses import STATUSES, Status, sentence
from flambeau.grpc.streams import CallStream, Message
from flambeau.protocols.accounting import told
from flambeau.protocols.errors import STATUS
from flambeau.system.eager import Eager

if TYPE_CHECKING:
    from flambeau.grpc.calls import Calls

_LATE_SECONDS = 1.0  # after its own deadline, by when a client has usually cancelled the call itself
_NO_MESSAGE = "the call has no message"
_FAILED = RequestError("the server failed on this request", code="internal")


class RunningCall:
    """What a call is to its stream (`flambeau.grpc.streams.Conversation`), until it is over."""

    __slots__ = ("_answering", "_calls", "_over", "_stream", "_told", "call", "method")

    def __init__(self, calls: "Calls", stream: CallStream, call: GrpcCall, method: Method) -> None:
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
            if not quiet and not self._told:
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
            self._stream.at_end(partial(self._calls.ended, self.method, self.call))  # unread answers are in use, too


class UnaryCall(RunningCall):
    """A call of one message, which is answered when the client has sent it and nothing more."""

    __slots__ = ("_message",)

    method: Unary

    def __init__(self, calls: "Calls", stream: CallStream, call: GrpcCall, method: Unary) -> None:
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

    __slots__ = ("_fault", "_messages", "_reader")

    method: Streaming

    def __init__(self, calls: "Calls", stream: CallStream, call: GrpcCall, method: Streaming) -> None:
        super().__init__(calls, stream, call, method)
        self._messages: deque[Message] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._fault: RequestError | None = None
        call.wire = self
        stream.call = self
        calls.streams.add(self)
        self._run(method.answer(call))  # type: ignore[arg-type]

    def came(self, message: Message) -> None:
        self._messages.append(message)
        self.wake()

    def half_closed(self) -> None:
        self.wake()

    def failed(self, error: RequestError) -> None:
        """What came cannot be taken. The messages before it are answered, and then the call ends."""
        self._calls.refused(self.call, error)
        self._told = True
        self._fault = error
        self._stream.ignore()
        self.wake()

    async def read(self) -> Message | None:
        """The next message, which the reader gives back with `release`; `None` after the last, and when the server has
        waited long enough for those that were on their way as it stopped. Only one may read."""
        while not self._messages:
            if self._stream.ended or self._stream.deaf or self._stream.over or self._calls.closed:
                return None
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        found = self._messages.popleft()
        self._stream.read_on(found.size)
        return found

    async def read_one(self) -> Message | None:
        """The one message of a call that has no other: what follows it is not kept."""
        found = await self.read()
        self._stream.ignore()
        while self._messages:
            self.release(self._messages.popleft())
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
        if self._fault is not None:
            self._refuse(self._fault)
        else:
            self._stream.end(Status.OK, "", self.call.trailing)

    def _close(self) -> None:
        while self._messages:
            self.release(self._messages.popleft())
        self._calls.streams.discard(self)
        super()._close()
