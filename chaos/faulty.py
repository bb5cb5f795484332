"""A server made faulty on purpose: proxies before the real one that lose answers, or give them to the wrong clients.

They exist to prove that the harness notices.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Literal

from chaos.wire import Answer, Connection, LostError, Times, UnsentError

Fault = Literal["drop", "swap"]

_GIVE_UP = 30.0


class FaultyProxy:
    """Forwards requests one by one, and spoils one answer in `every`: dropped, or swapped with the next one."""

    def __init__(self, upstream: int, fault: Fault, *, every: int = 1000) -> None:
        self._upstream = upstream
        self._fault = fault
        self._every = every
        self._answers = 0
        self._held: asyncio.Future[Answer] | None = None
        self._held_answer: Answer | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self.spoilt = 0
        self.port = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["FaultyProxy"]:
        """The proxy, listening on `port`."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._clients:
                task.cancel()
            await asyncio.gather(*self._clients, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        upstream = await Connection.open(self._upstream)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, OSError, LostError, UnsentError):
                while await self._forward(reader, writer, upstream):
                    pass
        except asyncio.CancelledError:
            pass  # the proxy ends
        finally:
            self._clients.discard(task)
            upstream.close()
            writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upstream: Connection) -> bool:
        """One request and its answer; whether the connection goes on."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        body = await reader.readexactly(length)
        answer = await self._spoil(await upstream.ask(head + body, Times(), give_up=_GIVE_UP))
        if answer is None:
            return False
        writer.write(_render(answer))
        await writer.drain()
        return True

    async def _spoil(self, answer: Answer) -> Answer | None:
        self._answers += 1
        if self._held is not None and self._held_answer is not None:
            held, mine = self._held, self._held_answer
            self._held = None
            held.set_result(answer)
            return mine
        if self._answers % self._every:
            return answer
        self.spoilt += 1
        if self._fault == "drop":
            if self.spoilt % 2 == 0:  # every second time the client is left to wait
                await asyncio.Event().wait()
            return None
        self._held = asyncio.get_running_loop().create_future()
        self._held_answer = answer
        return await self._held


def _render(answer: Answer) -> bytes:
    lines = [f"HTTP/1.1 {answer.status} X", *(f"{name}: {value}" for name, value in answer.headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + answer.body
