"""Reads the rest of a long body from its socket straight to its place, and nothing beyond it.

While it is a transport's protocol, the loop writes into the body's own pages: without an object for each piece, and
without a copy of it. It knows no HTTP.
"""

import asyncio
from typing import Protocol

from flambeau.http.request_body import BodyBuffer


class BodyOwner(Protocol):
    """The connection whose body is read, and which is its transport's protocol before and after."""

    def body_came(self, size: int) -> None:
        """So many bytes of the body were written to their place."""
        ...

    def connection_lost(self, exc: Exception | None) -> None: ...

    def eof_received(self) -> bool: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


class BodyReader(asyncio.BufferedProtocol):
    """Reads one body. The loop reads at most what the body lacks, so that what follows it waits in the socket."""

    def __init__(self, owner: BodyOwner, body: BodyBuffer) -> None:
        self._owner = owner
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

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.connection_lost(exc)

    def eof_received(self) -> bool:
        return self._owner.eof_received()

    def pause_writing(self) -> None:
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        self._owner.resume_writing()
