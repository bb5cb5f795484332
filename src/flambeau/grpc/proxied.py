"""Calls whose connection a proxy holds, as Ray Serve's does: messages come in as bytes, and bytes and a status go out.

They are admitted and answered by the functions of our own server. The proxy is not known here: whoever asks brings what
reads the call's messages and writes the answers. A client's deadline does not come through; its end does, as a
cancelled coroutine.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import unquote

from flambeau.errors import RequestError
from flambeau.grpc.admission import Admission
from flambeau.grpc.call_heads import CallHead
from flambeau.grpc.calls import Calls
from flambeau.grpc.health import Health
from flambeau.grpc.inference import Inference
from flambeau.grpc.servicing import Servicing
from flambeau.grpc.statuses import Status
from flambeau.grpc.streams import Conversation, Message, Trailing
from flambeau.serving.service import Service

Pairs = Iterable[tuple[str, Any]]
"""Metadata."""


class ProxiedCall:
    """One call. It stands where our own server has a stream (`flambeau.grpc.streams.CallStream`); afterwards it has the
    call's status."""

    head: CallHead

    def __init__(
        self,
        peer: str,
        metadata: Pairs,
        *,
        read: Callable[[], Awaitable[bytes | None]],
        write: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> None:
        """`peer` is the client in gRPC's words. `read` gives the next message, and `None` after the last. Without
        `write` one message is answered with one."""
        self.peer = _address(peer)
        self.call: Conversation | None = None
        self.deaf = self.ended = self.over = False
        self.status = Status.OK
        self.details = ""
        self.trailing: Trailing = []
        self.answered = b""
        self._metadata = tuple(metadata)
        self._read = read
        self._write = write
        self._out: deque[bytes] = deque()
        self._taken, self._done = asyncio.Event(), asyncio.Event()

    def begin(self, method: str) -> None:
        """It is a call of that method."""
        given = ((name, value) for name, value in self._metadata if isinstance(value, str))
        self.head = CallHead(
            [
                (b":method", b"POST"), (b":scheme", b"http"), (b":path", method.encode()),
                (b"content-type", b"application/grpc"),
                *((name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in given),
            ]
        )  # fmt: skip

    async def converse(self, admission: Admission, most: int) -> None:
        """Take the call's messages until it has its status. `most`: the bytes of one."""
        taking = asyncio.ensure_future(self._take(admission, most))
        try:
            await self._done.wait()
        except asyncio.CancelledError:
            if self.call is not None:
                self.call.gone()
            raise
        finally:
            taking.cancel()

    async def _take(self, admission: Admission, most: int) -> None:
        while not self.deaf and (raw := await self._read()) is not None:
            if self.deaf or self.call is None:  # by now
                break
            try:
                if len(raw) > most:
                    sentence = f"a message of {len(raw)} bytes is larger than max_body_bytes ({most})"
                    raise RequestError(sentence, code="body_too_large")
                admission.hold(len(raw))
            except RequestError as error:
                self.call.failed(error)
                return
            self._taken.clear()
            self.call.came(Message(raw, len(raw), packed=False))
            if self._write is not None:
                await self._taken.wait()  # a client that sends faster than it is read has to wait
        self.ended = True
        if self.call is not None and not self.deaf:
            self.call.half_closed()

    # What the call says

    def answer(self, message: bytes, trailing: Trailing | None = None) -> None:
        """The one message of a good answer, and the end."""
        if not self.over:
            self.answered = message
            self.end(Status.OK, "", trailing or [])

    def send(self, message: bytes) -> None:
        """One of several messages; it leaves with `drained`."""
        self._out.append(message)

    async def drained(self) -> None:
        """Wait until the proxy has taken what was sent."""
        assert self._write is not None
        while self._out and not self.over:
            await self._write(self._out.popleft())

    def read_on(self, size: int) -> None:
        """A message was read, so that the next may come."""
        self._taken.set()

    def ignore(self) -> None:
        """Nobody wants what still comes."""
        self.deaf = True
        self._taken.set()

    def end(self, status: Status, text: str, trailing: Trailing) -> None:
        """The call has its status."""
        if not self.over:
            self.deaf = self.over = True
            self.status, self.details, self.trailing = status, text, trailing
            self._taken.set()
            self._done.set()

    def refuse(self, status: int) -> None:
        """A proxy passes on nothing but calls."""
        self.end(Status.UNKNOWN, f"HTTP {status}", [])

    def at_end(self, function: Callable[[], None]) -> None:
        """Call that; what leaves then is the proxy's."""
        function()


class ProxiedCalls:
    """Answers such calls, on the loop of the service."""

    def __init__(self, service: Service, admission: Admission) -> None:
        self._calls = calls = Calls(service, admission)
        self._most = service.settings.max_body_bytes
        methods = (*Servicing(calls).methods(), *Inference(calls).methods(), *Health(calls).methods())
        calls.methods = {each.name.rpartition(".")[2]: each for each in methods}

    async def answer(self, method: str, call: ProxiedCall) -> bytes:
        """The answer of one message; empty if it is written by the call's `write`, or if the call failed."""
        call.begin(method)
        self._calls.begin(call)
        await call.converse(self._calls.admission, self._most)
        return call.answered


def of_one(raw: bytes) -> Callable[[], Awaitable[bytes | None]]:
    """What reads a call of one message."""
    rest = itertools.chain((raw,), itertools.repeat(None))

    async def read() -> bytes | None:
        return next(rest)

    return read


def _address(peer: str) -> str:
    """The address in gRPC's words for a peer: `ipv4:127.0.0.1:50000`, `ipv6:%5B::1%5D:50000`."""
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    return rest.rpartition(":")[0].strip("[]")
