"""Fronts that are killed: only the requests on their own connections break, and one more attempt answers them."""

import asyncio
import contextlib
import functools
import os
import random
import signal
import time

from chaos.client import Client, echo
from chaos.ledger import Ledger, Row
from chaos.run import DEADLINE, Report, Run, verdict
from chaos.server import Server, eventually

_FLAGS = ("--fronts", "2", "--replicas", "2", "--max-batch-size", "8", "--deadline", str(DEADLINE))
_PERIOD = 5.0  # seconds between two kills
_BACK_SECONDS = 30.0  # for another front


async def kill_front(run: Run, fault: str = "fronts/kill") -> Report:
    """kill -9 of a front every 5 s, with clients that retry a broken connection once."""
    seconds, ledger = run.headline_seconds, Ledger()
    complaints: list[str] = []
    broken: list[Row] = []
    server = run.server("Slow50", *_FLAGS)
    await server.begin()
    stop, kills = asyncio.Event(), 0
    try:
        await server.ready()
        clients = [asyncio.create_task(_live(server, ledger, run.rng(), stop, broken)) for _ in range(run.clients)]
        ends = time.monotonic() + seconds
        period = min(_PERIOD, seconds / 3)
        while time.monotonic() < ends:
            await asyncio.sleep(period)
            with contextlib.suppress(ProcessLookupError):
                os.kill(server.workers()[kills % 2], signal.SIGKILL)
            kills += 1
            if not await eventually(functools.partial(_replaced, server, kills), _BACK_SECONDS):
                complaints.append(f"no front in the place of the one that was killed as number {kills}")
                break
        stop.set()
        for failed in await asyncio.gather(*clients):
            complaints += failed
        if (code := await server.stop()) != 0:
            complaints.append(f"exit code {code} after SIGTERM")
        complaints += await server.leftovers()
    finally:
        await server.kill()
    wrong = [row for row in ledger.rows if row.how == "answered" and not (row.expected and row.ok)]
    complaints += [f"wrong: {row.status} {row.code} {row.err}" for row in wrong[:5]]
    most = kills * run.clients
    if len(broken) > most:
        complaints.append(f"{len(broken)} requests broke, and {kills} fronts had at most {most} connections")
    good = sum(row.good for row in ledger.rows)
    what = f"kill -9 of a front every {period:g} s for {seconds:g} s, 2 fronts, {run.clients} clients that retry once"
    figures = f"{kills} kills; {good} answered, {len(broken)} broke, {len(wrong)} wrong; {good / seconds:.0f}/s"
    return verdict(fault, what, figures, complaints)


def _replaced(server: Server, kills: int) -> bool:
    return server.logged("front ready") >= kills


async def _live(
    server: Server, ledger: Ledger, rng: random.Random, stop: asyncio.Event, broken: list[Row]
) -> list[str]:
    """One client until the end; what it has to complain about."""
    client = Client(server.port, ledger, deadline=DEADLINE)
    try:
        while not stop.is_set():
            ask = echo(rng)
            row = await client.ask(ask)
            if row.how == "answered":
                continue
            broken.append(row)
            again = await client.ask(ask)
            if again.how != "answered":
                return [f"not answered on the second attempt: {again.how}, {again.err}"]
    finally:
        client.close()
    return []
