"""Reads the rest of a long body from its socket straight to its place, and what follows such a body in short pieces.

While one of these is a transport's protocol, the loop writes into memory that is there: without an object for each
piece, and without a copy of it. It knows no HTTP.
"""

import asyncio
from typing import Protocol

from flambeau.http.request_body import BodyBuffer

_PIECE = 32 * 1024  # bytes


class BodyOwner(Protocol):
    """The connection that is read for, and that is its transport's protocol at first."""

    def body_came(self, size: int) -> None:
        """So many bytes of the body were written to their place."""
        ...

    def data_received(self, data: bytes) -> None: ...

    def connection_lost(self, exc: Exception | None) -> None: ...

    def eof_received(self) -> bool: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


class _SocketReader(asyncio.BufferedProtocol):
    """Tells the owner everything but what comes."""

    def __init__(self, owner: BodyOwner) -> None:
        self._owner = owner

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.connection_lost(exc)

    def eof_received(self) -> bool:
        return self._owner.eof_received()

    def pause_writing(self) -> None:
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        self._owner.resume_writing()


class BodyReader(_SocketReader):
    """Reads one body. The loop reads at most what the body lacks, so that what follows it waits in the socket."""

    def __init__(self, owner: BodyOwner, body: BodyBuffer) -> None:
        super().__init__(owner)
        self._body: BodyBuffer | None = body

    def let_go(self) -> None:
        """Hold the body no longer. A transport may keep a protocol that it had before."""
        self._body = None

    def get_buffer(self, sizehint: int) -> memoryview:
        room = self._body.room() if self._body is not None else None
        assert room is not None  # it is read from no longer
        return room

    def buffer_updated(self, nbytes: int) -> None:
        assert self._body is not None
        self._body.came(nbytes)
        self._owner.body_came(nbytes)


class PieceReader(_SocketReader):
    """Reads what comes after a long body, in pieces so short that little of the next long one comes with its head.

    The loop reads up to 256 KiB at a time for other protocols, and what comes with a head is copied to its place.
    """

    def __init__(self, owner: BodyOwner) -> None:
        super().__init__(owner)
        self._piece = bytearray()

    def get_buffer(self, sizehint: int) -> bytearray:
        self._piece = bytearray(_PIECE)  # each time: an idle connection must not hold it
        return self._piece

    def buffer_updated(self, nbytes: int) -> None:
        piece, self._piece = self._piece, bytearray()
        self._owner.data_received(bytes(memoryview(piece)[:nbytes]))
