"""The front's end of a worker's socket: frames out, frames in. It knows no batch and no process."""

import asyncio
from collections.abc import Callable

from flambeau.runners import wire
from flambeau.runners.wire import Header

Take = Callable[[Header, wire.Buffer], None]


class WorkerPipe(asyncio.Protocol):
    """A connection over which frames come. Whole frames are read where they lie, in the turn in which they come."""

    transport: asyncio.WriteTransport

    def __init__(self, take: Take, silence: Callable[[Exception | None], None]) -> None:
        """`take` gets each frame. `silence` is called once: with `None` when the socket is closed, or with the error
        after which nothing is read any more: a `FrameError`, or what `take` raised.
        """
        loop = asyncio.get_running_loop()
        self._take = take
        self._silence = silence
        self._rest = bytearray()  # of a frame that has not come whole
        self._header: Header | None = None  # of the frame whose body is expected
        self._deaf = False
        self._room: asyncio.Future[None] | None = None  # while the system takes no more
        self._closed: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        """Done when no further frame will come."""

    def connection_made(self, transport: asyncio.WriteTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        whole: wire.Buffer = data
        if self._rest:
            self._rest += data
            if len(self._rest) < (wire.HEADER_SIZE if self._header is None else self._header.body):
                return  # not looked at again before it is whole: a long frame comes in many pieces
            whole, self._rest = self._rest, bytearray()
        try:
            self._rest += self._frames(memoryview(whole))
        except Exception as error:
            self._end(error)

    def _frames(self, data: memoryview) -> memoryview:
        """Take every whole frame. Returns what is left."""
        while True:
            if self._header is None:
                if len(data) < wire.HEADER_SIZE:
                    return data
                self._header = wire.unpack_header(data[: wire.HEADER_SIZE])
                data = data[wire.HEADER_SIZE :]
            header = self._header
            if len(data) < header.body:
                return data
            self._header = None
            self._take(header, data[: header.body])
            data = data[header.body :]

    def eof_received(self) -> bool:
        self._end(None)
        return True  # what was lost is told by whoever watches the process

    def connection_lost(self, exc: Exception | None) -> None:
        self.resume_writing()
        if not self._closed.done():
            self._closed.set_result(None)
        self._end(None)

    def _end(self, error: Exception | None) -> None:
        if self._deaf:
            return
        self._deaf = True
        if not self.ended.done():
            self.ended.set_result(None)
        self._silence(error)

    def pause_writing(self) -> None:
        self._room = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def write(self, *parts: wire.Buffer) -> None:
        """Send parts of a frame. Once the worker is gone they are dropped, which nobody is told here."""
        if self.transport.is_closing():  # uvloop raises RuntimeError for a transport that is closed
            return
        if len(parts) == 1:
            self.transport.write(parts[0])
        else:
            self.transport.writelines(parts)

    async def drain(self) -> None:
        """Wait until the system takes more, or never will."""
        if self._room is not None:
            await self._room

    async def close(self) -> None:
        """Close the socket; what was not sent is dropped."""
        self._deaf = True
        self.transport.abort()
        await self._closed
