"""One run of the harness: its parameters, the stage on which a fault is played, and the report it ends in."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from chaos import proc
from chaos.client import Ask, Client, Load, Make, Probe, echo
from chaos.ledger import Ledger, append, percentile
from chaos.server import Server, eventually

DEADLINE = 15.0
"""Seconds the server gives a request, unless a fault says otherwise."""

_DESCRIPTOR_SLACK = 4
_PROBE_P99 = 0.25  # seconds; /readyz shares two cores with the load, the clients and the workers

Verdict = Literal["passed", "FAILED", "not applicable yet"]


@dataclass(frozen=True, slots=True)
class Report:
    """What a fault came to."""

    id: str
    what: str
    verdict: Verdict
    figures: str
    complaints: tuple[str, ...] = ()


@dataclass(slots=True)
class Stage:
    """A running server with its ledger and probe, and what there is to complain about."""

    run: "Run"
    server: Server
    ledger: Ledger
    probe: Probe
    complaints: list[str] = field(default_factory=list)

    def load(self, make: Make = echo, *, clients: int | None = None, ledger: Ledger | None = None) -> Load:
        """Closed-loop clients against the server: `async with`."""
        return Load(
            self.server.port, ledger or self.ledger, make,
            clients=self.run.clients if clients is None else clients, seed=self.run.next_seed(), deadline=self.deadline,
        )  # fmt: skip

    deadline: float = DEADLINE

    def client(self, ledger: Ledger | None = None) -> Client:
        """One more client, to be asked by hand."""
        return Client(self.server.port, ledger or self.ledger, deadline=self.deadline)

    async def ask(self, ask: Ask) -> None:
        """Make one request on a connection of its own; the ledger has the outcome."""
        client = self.client()
        try:
            await client.ask(ask)
        finally:
            client.close()

    def require(self, holds: bool, otherwise: str) -> None:
        """Complain unless something holds."""
        if not holds:
            self.complaints.append(otherwise)

    def latency(self, share: float = 0.99, *, group: str | None = None) -> float:
        """A percentile of the seconds to a 200."""
        rows = self.ledger.rows
        return percentile((row.seconds for row in rows if row.good and group in (None, row.group)), share)


@dataclass(slots=True)
class Run:
    """The parameters of a run. `folder` is its own, for caches, logs and the like."""

    folder: Path
    seconds: float = 20.0
    clients: int = 32
    seed: int = 1
    leak_seconds: float = 300.0
    headline_seconds: float = 60.0
    ledger_file: Path | None = None
    _stages: int = 0
    _seeds: int = 0

    @property
    def cache(self) -> Path:
        """The bundle cache of the run's servers."""
        return self.folder / "cache"

    def rng(self) -> random.Random:
        """A generator that replays with the run's seed."""
        return random.Random(self.next_seed())  # noqa: S311 (a failure must replay, and nothing is secret)

    def next_seed(self) -> int:
        """A seed not used in this run yet."""
        self._seeds += 1
        return 1_000_000 * self.seed + self._seeds

    def server(self, model: str, *flags: str, port: int = 0, stderr: int | None = None) -> Server:
        """A server, not begun."""
        self._stages += 1
        return Server(self.folder / f"server-{self._stages}", self.cache, model, *flags, port=port, stderr=stderr)

    @contextlib.asynccontextmanager
    async def stage(
        self,
        model: str,
        *flags: str,
        deadline: float = DEADLINE,
        keep: bool = True,
        port: int | None = None,
        stderr: int | None = None,
        ready: bool = True,
    ) -> AsyncIterator[Stage]:
        """A server from its start to its end: afterwards the stage's complaints hold all that was found.

        `port`: where the clients go, if it is not the server's own. `stderr`: where its log goes, if not to a file.
        `ready`: all of its workers are to be back at the end; one of several models may be left without.
        """
        server = self.server(model, "--deadline", str(deadline), *flags, stderr=stderr)
        await server.begin()
        try:
            await server.ready()
            async with Probe(server.port, on_tick=server.look) as probe:
                stage = Stage(self, server, Ledger(keep=keep), probe, deadline=deadline)
                await _first_answer(stage)
                before, workers = proc.descriptors(server.pid), len(server.workers())
                yield stage
                await _settled(stage, before, workers if ready else None)
            await _stopped(stage)
        finally:
            await server.kill()
        stage.complaints += stage.ledger.complaints()

    def report(self, fault: str, what: str, figures: str, *stages: Stage) -> Report:
        """The verdict over the stages of a fault, when they have ended."""
        ledgers = [stage.ledger for stage in stages]
        append(self.ledger_file, fault, ledgers)
        return verdict(fault, what, figures, [each for stage in stages for each in stage.complaints])


def verdict(fault: str, what: str, figures: str, complaints: list[str]) -> Report:
    """Passed, when there is nothing to complain about."""
    return Report(fault, what, "FAILED" if complaints else "passed", figures, tuple(complaints))


async def _first_answer(stage: Stage) -> None:
    """So that what is made once is there before anything is counted."""
    client = stage.client(Ledger())
    try:
        await client.ask(Ask("00"))
    finally:
        client.close()


async def _settled(stage: Stage, descriptors: int, workers: int | None) -> None:
    """After the load: everything is as it was before it."""
    server = stage.server
    if workers is not None:
        back = await eventually(lambda: len(server.workers()) == workers, 5.0)
        stage.require(back, f"{len(server.workers())} workers where {workers} were")
    same = await eventually(lambda: proc.descriptors(server.pid) <= descriptors + _DESCRIPTOR_SLACK, 3.0)
    stage.require(same, f"files open in the front: {descriptors} before, {proc.descriptors(server.pid)} after")
    gone = await eventually(lambda: proc.zombies(server.pid) == 0, 1.0)
    stage.require(gone, f"{proc.zombies(server.pid)} zombies")
    slow = percentile((seconds for _, _, seconds in stage.probe.seen), 0.99)
    stage.require(slow <= _PROBE_P99, f"/readyz took {1000 * slow:.0f} ms at p99")
    stage.require(not stage.probe.unanswered, f"/readyz was not answered {stage.probe.unanswered} times")


async def _stopped(stage: Stage) -> None:
    started = time.monotonic()
    code = await stage.server.stop()
    stage.require(code == 0, f"exit code {code} after SIGTERM, {time.monotonic() - started:.1f} s")
    stage.complaints += await stage.server.leftovers()


async def passing(seconds: float) -> None:
    """Let the load run for a while."""
    await asyncio.sleep(seconds)
