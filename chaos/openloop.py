"""The open-loop generator: it sends at a rate, whether answers come or not, as the world does."""

import asyncio
import random
import time

from chaos.client import Client, Make
from chaos.ledger import Ledger

_TICK = 0.005  # seconds
_MOST_CONNECTIONS = 900


class OpenLoop:
    """Requests at a rate per second, on as many connections as it takes, up to a bound."""

    def __init__(self, port: int, ledger: Ledger, make: Make, *, rate: float, seed: int, deadline: float) -> None:
        self._port = port
        self._ledger = ledger
        self._make = make
        self._rate = rate
        self._rng = random.Random(seed)  # noqa: S311 (a failure must replay, and nothing is secret)
        self._deadline = deadline
        self._idle: list[Client] = []
        self._clients: list[Client] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.sent = 0
        self.held_back = 0

    async def play(self, seconds: float) -> None:
        """Send for so many seconds."""
        start = time.monotonic()
        planned = 0
        while (elapsed := time.monotonic() - start) < seconds:
            due = int(elapsed * self._rate) - planned
            planned += due
            for _ in range(due):
                self._send()
            await asyncio.sleep(_TICK)

    def _send(self) -> None:
        if self._idle:
            client = self._idle.pop()
        elif len(self._clients) < _MOST_CONNECTIONS:
            client = Client(self._port, self._ledger, deadline=self._deadline)
            self._clients.append(client)
        else:
            self.held_back += 1
            return
        self.sent += 1
        task = asyncio.create_task(self._one(client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _one(self, client: Client) -> None:
        await client.ask(self._make(self._rng))
        self._idle.append(client)

    async def finish(self) -> None:
        """Wait for the answers that are still to come, and close the connections."""
        await asyncio.gather(*self._tasks)
        for client in self._clients:
            client.close()
