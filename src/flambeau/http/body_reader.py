"""Reads a connection that has sent a long body: such bodies straight to their place, and the rest in short pieces.

While this is a transport's protocol, the loop writes into memory that is there: without an object for each piece of a
body, and without a copy of it. It knows no HTTP.
"""

import asyncio
from typing import Protocol

from flambeau.http.request_body import BodyBuffer

PIECE = 32 * 1024
"""Bytes that are read at a time where no long body is. The loop reads up to 256 KiB at a time for other protocols, and
what comes of a long body with its head is copied to its place."""


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


class BodyReader(asyncio.BufferedProtocol):
    """Reads for one connection. While `body` is set, the loop reads at most what that lacks, so that what follows it
    waits in the socket.

    `piece` is memory that all connections of a loop share: what is read into it is taken out before the loop reads
    again, and an idle connection holds none.
    """

    def __init__(self, owner: BodyOwner, piece: memoryview) -> None:
        self._owner = owner
        self._piece = piece
        self.body: BodyBuffer | None = None

    def get_buffer(self, sizehint: int) -> memoryview:
        body = self.body
        if body is None:
            return self._piece
        room = body.room()
        assert room is not None  # a body without a place is not read so
        return room

    def buffer_updated(self, nbytes: int) -> None:
        body = self.body
        if body is None:
            self._owner.data_received(bytes(self._piece[:nbytes]))
        else:
            body.came(nbytes)
            self._owner.body_came(nbytes)

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.connection_lost(exc)

    def eof_received(self) -> bool:
        return self._owner.eof_received()

    def pause_writing(self) -> None:
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        self._owner.resume_writing()
