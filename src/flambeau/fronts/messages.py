"""What a supervisor and its fronts say to each other: frames of MessagePack on a socket pair, of a closed set.

Connections travel on a second socket pair, one message for each with its descriptor (SCM_RIGHTS); an empty message is
the last. What is asked of a front is a request to one of its own routes, as a value. It knows no route.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast

import msgspec

from flambeau import errors
from flambeau.errors import EngineError, SetupError
from flambeau.http.tokens import Token
from flambeau.settings.service import Settings
from flambeau.sources.declarations import DeclaredModel

T = TypeVar("T")

Rule = Literal["metrics", "statistics", "details", "turn", "spread"]
"""What a front asks for: answers of all fronts added up; its turn to change something; the same change elsewhere."""


class PlainRequest(msgspec.Struct, frozen=True):
    """A request to a route, without what belongs to its connection."""

    method: str
    path: str
    query: str = ""
    headers: dict[str, str] = {}
    body: bytes = b""


class PlainAnswer(msgspec.Struct, frozen=True):
    """The answer to one."""

    status: int
    body: bytes
    content_type: str = "application/json"


# Models, as a front is told them


class OneBundle(msgspec.Struct, frozen=True, tag=True):
    """A bundle, which has been verified."""

    path: str


class Fault(msgspec.Struct, frozen=True, tag=True):
    """Why a version could not be opened: the name of a `SetupError`, and its message."""

    error: str
    message: str


class Declared(msgspec.Struct, frozen=True, tag=True):
    """A declared model, and the bundles of the versions that are loaded at the start."""

    model: DeclaredModel
    opened: dict[str, OneBundle | Fault]


def setup_error(name: str, message: str) -> SetupError:
    """The error of that class, which another process raised."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, SetupError):
        return kind(message)
    return EngineError(message)


# To a front


class Order(msgspec.Struct, frozen=True, tag=True):
    """The first message: what to serve, and how. `settings` are this front's part of those of the service.

    `shared` is the descriptor of the shared counts, `counts` that of the memory for this front's metrics, `log` that of
    the channel for events.
    """

    number: int
    settings: Settings
    tokens: tuple[Token, ...]
    models: list[OneBundle | Declared]
    shared: int
    counts: int
    inflight_bytes: int
    where: str
    supervisor: int
    log: int | None
    log_in_json: bool


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Answered with a `Pulse`, by the front's loop."""


class State(msgspec.Struct, frozen=True, tag=True):
    """How many of the `of` fronts are there, how many of the others are ready, and whether the service is stopping."""

    others_ready: int
    present: int
    of: int
    draining: bool


class FrontQuestion(msgspec.Struct, frozen=True, tag=True):
    """A request to answer by the front's own routes, for itself alone."""

    number: int
    request: PlainRequest


class AskReply(msgspec.Struct, frozen=True, tag=True):
    """The answer to an `Ask`."""

    number: int
    answer: PlainAnswer


ToFront = Order | Ping | State | FrontQuestion | AskReply


# To the supervisor


class Started(msgspec.Struct, frozen=True, tag=True):
    """The front can answer. `lines` say what it serves."""

    lines: list[str]


class CannotStart(msgspec.Struct, frozen=True, tag=True):
    """The front ends, because of that `SetupError`."""

    error: str
    message: str


class Pulse(msgspec.Struct, frozen=True, tag=True):
    """The front's loop turns. `ready`: whether the front by itself is ready."""

    ready: bool


class Seen(msgspec.Struct, frozen=True, tag=True):
    """Connections that were `adopted`, `dropped` for want of a descriptor, and the addresses of those that `closed`."""

    adopted: int = 0
    dropped: int = 0
    closed: list[str] = []


class Ask(msgspec.Struct, frozen=True, tag=True):
    """Something to be asked of all fronts, or of the supervisor. Answered with a `AskReply`."""

    number: int
    rule: Rule
    request: PlainRequest | None = None


class Told(msgspec.Struct, frozen=True, tag=True):
    """The answer to a `FrontQuestion`."""

    number: int
    answer: PlainAnswer


class Leaving(msgspec.Struct, frozen=True, tag=True):
    """The front was asked to stop: it gets no more connections, and then ends."""


class LastWords(msgspec.Struct, frozen=True, tag=True):
    """The final counts of a front that ends in order."""

    metrics: bytes
    statistics: bytes


ToSupervisor = Started | CannotStart | Pulse | Seen | Ask | Told | Leaving | LastWords


class Connection(msgspec.Struct, frozen=True, array_like=True):
    """Travels with a connection: its address, and how many of that address are on other fronts."""

    address: str
    elsewhere: int


_LENGTH = struct.Struct("!I")
_LARGEST = 1 << 30


def _encodable(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(type(value))


def _decoded(kind: type, value: Any) -> Any:
    if issubclass(kind, Path):
        return Path(value)
    raise NotImplementedError(kind)


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_encodable)


def packed(message: ToFront | ToSupervisor) -> bytes:
    """A frame."""
    body = _ENCODER.encode(message)
    return _LENGTH.pack(len(body)) + body


def receive_order(sock: socket.socket) -> Order:
    """Wait for the first frame. Raises `EOFError` if the other end is gone."""
    (size,) = _LENGTH.unpack(_exactly(sock, _LENGTH.size))
    return msgspec.msgpack.decode(_exactly(sock, size), type=Order, dec_hook=_decoded)


def _exactly(sock: socket.socket, size: int) -> bytearray:
    data = bytearray()
    while len(data) < size:
        if not (piece := sock.recv(size - len(data))):
            raise EOFError
        data += piece
    return data


class Channel(asyncio.Protocol, Generic[T]):
    """One end of the socket pair on a loop: calls `on_message` for every frame, and `on_end` once at the end."""

    def __init__(self, kind: Any, on_message: Callable[[T], None], on_end: Callable[[], None]) -> None:
        """`kind` is the union of the messages that are received."""
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind, dec_hook=_decoded)
        self._on_message, self._on_end = on_message, on_end
        self._data = bytearray()
        self._transport: asyncio.WriteTransport | None = None

    @classmethod
    async def open(
        cls, sock: socket.socket, kind: Any, on_message: Callable[[T], None], on_end: Callable[[], None]
    ) -> "Channel[T]":
        """Begin to listen on the running loop."""
        channel = cls(kind, on_message, on_end)
        sock.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: channel, sock=sock)
        return channel

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's has the methods, and not the class

    def data_received(self, data: bytes) -> None:
        self._data += data
        while len(self._data) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._data)
            if size > _LARGEST:
                raise ValueError(f"a message of {size} bytes")
            end = _LENGTH.size + size
            if len(self._data) < end:
                return
            body = bytes(self._data[_LENGTH.size : end])
            del self._data[:end]
            self._on_message(self._decoder.decode(body))

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_end()

    def send(self, message: ToFront | ToSupervisor) -> None:
        """Send a message; one to an end that is gone goes nowhere."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(packed(message))

    def close(self) -> None:
        """Send what is left, and close."""
        if self._transport is not None:
            self._transport.close()
