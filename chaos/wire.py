"""HTTP/1.1 over a raw socket, as a client: one keep-alive connection, one request at a time.

It notices what a library would hide: when the last byte left, whether the server had closed before that, and bytes
that nobody asked for.
"""

import asyncio
import json
import socket
import sys
import time
from dataclasses import dataclass

_ESTABLISHED = 1  # tcp(7), the first byte of TCP_INFO


class UnsentError(Exception):
    """The server could not have received the request whole: it refused the connection, or had closed it before."""


class LostError(Exception):
    """The request was received whole, and the connection ended without an answer to it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response. Header names are lower-case."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Times:
    """When a request was begun, had left, and was answered: `time.monotonic()`, 0 where it did not come to that."""

    send: float = 0.0
    last_byte_sent: float = 0.0
    done: float = 0.0


def request(method: str, path: str, *, body: bytes = b"", headers: tuple[tuple[str, str], ...] = ()) -> bytes:
    """The bytes of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Connection(asyncio.Protocol):
    """One connection to 127.0.0.1. `answers` counts what came on it, `stray` the bytes that came unasked."""

    def __init__(self) -> None:
        self.stray = 0
        self.answers = 0
        self.closed = False
        self._buffer = bytearray()
        self._head: tuple[int, dict[str, str], int] | None = None  # status, headers, where the body begins
        self._waiting: asyncio.Future[Answer] | None = None
        self._drained = asyncio.Event()
        self._drained.set()

    @classmethod
    async def open(cls, port: int, *, timeout: float = 5.0) -> "Connection":
        """Raises `UnsentError` when the server does not accept."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                _, connection = await loop.create_connection(cls, "127.0.0.1", port)
        except OSError as error:  # TimeoutError is one
            raise UnsentError(f"not accepted: {error}") from error
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(high=0)
        self._transport = transport
        self._socket: socket.socket = transport.get_extra_info("socket")

    def pause_writing(self) -> None:
        self._drained.clear()

    def resume_writing(self) -> None:
        self._drained.set()

    def data_received(self, data: bytes) -> None:
        if self._waiting is not None and self._waiting.cancelled():
            return  # the answer to a client that left at this moment, before it closed
        if self._waiting is None or self._waiting.done():
            self.stray += len(data)
            return
        self._buffer += data
        if self._head is None:
            self._head = _parse_head(self._buffer)
        if self._head is None:
            return
        status, headers, start = self._head
        if headers.get("transfer-encoding") == "chunked":  # ours sends none; the errors of a plain Ray Serve are
            if not self._buffer.endswith(b"0\r\n\r\n"):
                return
            pieces = bytes(self._buffer[start:]).split(b"\r\n")[1::2]
            self._buffer[start:] = b"".join(pieces)
            headers["content-length"] = str(len(self._buffer) - start)
        end = start + int(headers.get("content-length", "0"))
        if len(self._buffer) < end:
            return
        self.stray += len(self._buffer) - end
        self.answers += 1
        self._waiting.set_result(Answer(status, headers, bytes(self._buffer[start:end])))
        self._buffer.clear()
        self._head = None
        if headers.get("connection", "").lower() == "close":
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self._drained.set()
        if self._waiting is not None and not self._waiting.done():
            how = f"reset: {error}" if error else "closed without an answer"
            where = "after earlier answers on it" if self.answers else "a new connection"
            self._waiting.set_exception(LostError(f"{how} ({where})"))

    def close(self) -> None:
        """End the connection now; a request under way is abandoned."""
        self.closed = True
        self._transport.abort()

    async def ask(self, data: bytes, times: Times, *, give_up: float) -> Answer:
        """Send a request and wait for its answer for at most `give_up` seconds. Raises `UnsentError`, `LostError`.

        After an error, or when cancelled, the connection is of no more use.
        """
        if not self._established():
            self.close()
            raise UnsentError("the server had closed the connection")
        self._waiting = asyncio.get_running_loop().create_future()
        times.send = times.last_byte_sent = time.monotonic()
        self._transport.write(data)
        try:
            async with asyncio.timeout(give_up):
                await self._drained.wait()
                times.last_byte_sent = time.monotonic()
                received = self._established()  # on loopback what is written is at once in the receiver's buffer
                answer = await self._wait(received=received)
        except TimeoutError:
            raise LostError(f"no answer in {give_up:g} s") from None
        finally:
            times.done = time.monotonic()
            if not self._waiting.done() or self._waiting.cancelled():
                self.close()
        return answer

    async def _wait(self, *, received: bool) -> Answer:
        assert self._waiting is not None
        try:
            return await self._waiting
        except LostError:
            if received:
                raise
            raise UnsentError("the server closed the connection before the request had left") from None

    def _established(self) -> bool:
        if self.closed or self._transport.is_closing():
            return False
        if sys.platform != "linux":
            return True
        try:
            return self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _ESTABLISHED
        except OSError:
            return False


def _parse_head(data: bytearray) -> tuple[int, dict[str, str], int] | None:
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    first, *lines = data[:end].decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split(" ", 2)[1]), headers, end + 4


def strict_json(text: bytes) -> object:
    """Parse JSON as the standard has it. Raises `ValueError`, for NaN and Infinity too."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)
