"""The clients: closed-loop ones, which wait for an answer before they ask again, an open-loop generator, and a probe.

Each request carries a random nonce, and its answer is checked against it.
"""

import asyncio
import contextlib
import hashlib
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from chaos.ledger import Ledger, Row
from chaos.wire import Answer, Connection, LostError, Times, UnsentError, request, strict_json

OK = (200, "")
_RETRY_PACE = 0.02  # seconds between attempts to connect
_PATIENCE = 5.0  # seconds beyond its deadline after which a request counts as lost
_MOST_RECONNECTS = 100_000

Verify = Callable[[str, Answer], str]
"""Nonce and 200 answer to what is wrong with it, or the empty string."""


def own_answer(nonce: str, answer: Answer) -> str:
    """Whether a 200 is the answer to this nonce."""
    output = _output(answer)
    if not isinstance(output, dict) or output.get("hash") != hashlib.sha256(nonce.encode()).hexdigest():
        return f"not its own answer: {answer.body[:120]!r}"
    return ""


def _output(answer: Answer) -> Any:
    try:
        body = strict_json(answer.body)
    except ValueError as error:
        return f"not JSON: {error}"
    return body.get("output") if isinstance(body, dict) else None


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to make. `expect` are the allowed pairs of status and code; `abort_after` seconds its client leaves."""

    nonce: str
    do: str = "echo"
    more: dict[str, Any] = field(default_factory=dict)
    expect: frozenset[tuple[int, str]] = frozenset({OK})
    timeout_ms: int | None = None
    abort_after: float | None = None
    group: str = ""
    verify: Verify = own_answer
    path: str = "/predict"

    def encode(self) -> bytes:
        """The bytes to send. The same request gives the same bytes, however often it is asked."""
        body = json.dumps({"input": {"nonce": self.nonce, "do": self.do, **self.more}}).encode()
        headers = [("Content-Type", "application/json")]
        if self.timeout_ms is not None:
            headers.append(("X-Request-Timeout-Ms", str(self.timeout_ms)))
        return request("POST", self.path, body=body, headers=tuple(headers))


class TensorAsk(Ask):
    """The same request in the Open Inference Protocol (KServe v2)."""

    def encode(self) -> bytes:
        value = json.dumps({"nonce": self.nonce, "do": self.do, **self.more})
        tensor = {"name": "input", "datatype": "BYTES", "shape": [1], "data": [value]}
        body = json.dumps({"id": self.nonce, "inputs": [tensor]}).encode()
        return request("POST", self.path, body=body, headers=(("Content-Type", "application/json"),))


Make = Callable[[random.Random], Ask]
"""The next request of a client."""


def nonce(rng: random.Random) -> str:
    """16 random bytes, as hex."""
    return rng.randbytes(16).hex()


def echo(rng: random.Random) -> Ask:
    """A plain request."""
    return Ask(nonce(rng))


def tensor_echo(rng: random.Random) -> Ask:
    """The same over KServe v2, whose answer has the request's id."""
    return TensorAsk(nonce(rng), verify=_own_tensor, path="/v2/models/Slow50/infer")


def _own_tensor(nonce: str, answer: Answer) -> str:
    try:
        body: Any = strict_json(answer.body)
        output = json.loads(body["outputs"][0]["data"][0])
        if (body["id"], output["hash"]) == (nonce, hashlib.sha256(nonce.encode()).hexdigest()):
            return ""
    except (ValueError, LookupError, TypeError) as error:
        return f"not a response: {error}"
    return f"not its own answer: {answer.body[:120]!r}"


class Client:
    """One client with one connection, which it opens again when it was lost."""

    def __init__(self, port: int, ledger: Ledger, *, deadline: float, keep_alive: bool = True) -> None:
        self._port = port
        self._ledger = ledger
        self._deadline = deadline
        self._keep_alive = keep_alive
        self._connection: Connection | None = None
        self.refused = 0

    async def ask(self, ask: Ask) -> Row:
        """Make one request and settle its row."""
        deadline = self._deadline if ask.timeout_ms is None else min(self._deadline, ask.timeout_ms / 1000)
        row = self._ledger.open(nonce=ask.nonce, do=ask.do, group=ask.group, deadline=deadline)
        times = Times()
        try:
            answer = await self._ask(ask, times, deadline + min(_PATIENCE, self._deadline))
        except UnsentError as error:
            self._settle(row, times, "unsent", error)
        except LostError as error:
            self._settle(row, times, "lost", error)
        except TimeoutError:
            _note(row, times)
            self._ledger.settle(row, "aborted")
        except BaseException as error:
            self._settle(row, times, "aborted", error)
            raise
        else:
            _note(row, times)
            _read(row, ask, answer)
            self._ledger.settle(row, "answered")
        return row

    async def _ask(self, ask: Ask, times: Times, give_up: float) -> Answer:
        if self._connection is None or self._connection.closed or not self._keep_alive:
            self.close()
            self._connection = await Connection.open(self._port)
        if ask.abort_after is None:
            return await self._connection.ask(ask.encode(), times, give_up=give_up)
        async with asyncio.timeout(ask.abort_after):  # and `Connection.ask` closes when it is cancelled
            return await self._connection.ask(ask.encode(), times, give_up=give_up)

    def _settle(self, row: Row, times: Times, how: Any, error: BaseException) -> None:
        row.err = str(error) or type(error).__name__
        _note(row, times)
        self._ledger.settle(row, how)
        self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._ledger.stray_bytes += self._connection.stray
            self._connection.close()
            self._connection = None


def _note(row: Row, times: Times) -> None:
    row.t_send, row.t_last_byte_sent, row.t_done = times.send, times.last_byte_sent, times.done


def _read(row: Row, ask: Ask, answer: Answer) -> None:
    row.status = answer.status
    row.retry_after = "retry-after" in answer.headers
    if answer.status == 200:
        row.err = ask.verify(ask.nonce, answer)
        row.ok = not row.err
    else:
        try:
            body = strict_json(answer.body)
            row.code = str(body["code"]) if isinstance(body, dict) else "?"
        except (ValueError, KeyError):
            row.code, row.ok, row.err = "?", False, f"not our error: {answer.body[:120]!r}"
    row.expected = (row.status, row.code) in ask.expect


class Load:
    """Closed-loop clients until they are told to stop: `async with load: ...`. They finish what they have begun."""

    def __init__(self, port: int, ledger: Ledger, make: Make, *, clients: int, seed: int, deadline: float) -> None:
        self.keep_alive = True
        self.reconnect = True
        self._make = make
        self._ledger = ledger
        self._port = port
        self._deadline = deadline
        self._seeds = [f"{seed}/{index}" for index in range(clients)]
        self._tasks: list[asyncio.Task[None]] = []
        self.stopping = False

    async def __aenter__(self) -> "Load":
        self._tasks = [asyncio.create_task(self._live(seed)) for seed in self._seeds]
        return self

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        self.stopping = True
        if error is not None:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            return
        await asyncio.gather(*self._tasks)

    async def _live(self, seed: str) -> None:
        rng = random.Random(seed)  # noqa: S311 (a failure must replay, and nothing is secret)
        client = Client(self._port, self._ledger, deadline=self._deadline, keep_alive=self.keep_alive)
        try:
            for _ in range(_MOST_RECONNECTS):
                if self.stopping or not await self._until_unsent(client, rng):
                    return
                await asyncio.sleep(_RETRY_PACE)
        finally:
            client.close()

    async def _until_unsent(self, client: Client, rng: random.Random) -> bool:
        """Ask until the server closes; whether to go on then."""
        while not self.stopping:
            row = await client.ask(self._make(rng))
            if row.how == "unsent":
                return self.reconnect
        return False


class Probe:
    """Asks /readyz ten times a second, on connections of its own."""

    def __init__(self, port: int, *, on_tick: Callable[[], None] = lambda: None) -> None:
        self._port = port
        self._on_tick = on_tick
        self.seen: list[tuple[float, bool, float]] = []  # when it was asked, ready or not, seconds to the answer
        self.unanswered = 0

    async def __aenter__(self) -> "Probe":
        self._task = asyncio.create_task(self._live())
        return self

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _live(self) -> None:
        connection: Connection | None = None
        due = time.monotonic()
        while True:
            self._on_tick()
            times = Times()
            try:
                if connection is None or connection.closed:
                    connection = await Connection.open(self._port, timeout=1.0)
                answer = await connection.ask(request("GET", "/readyz"), times, give_up=2.0)
                self.seen.append((times.send, answer.status == 200, times.done - times.send))
            except (UnsentError, LostError):
                self.unanswered += 1
            except asyncio.CancelledError:
                if connection is not None:
                    connection.close()
                raise
            due = max(due + 0.1, time.monotonic())
            await asyncio.sleep(due - time.monotonic())

    def ready_at(self, start: float, end: float, *, ready: bool) -> bool:
        """Whether readiness had that value at least once between two times."""
        return any(start <= when <= end and found is ready for when, found, _ in self.seen)


async def get(port: int, path: str) -> Answer:
    """GET once, on a connection of its own."""
    connection = await Connection.open(port)
    try:
        return await connection.ask(request("GET", path), Times(), give_up=10.0)
    finally:
        connection.close()
