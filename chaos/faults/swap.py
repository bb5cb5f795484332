"""The default version switched under load, again and again, and what can happen meanwhile: F-18.

Every answer says which version gave it, and in which batch. A request that was sent after a switch was confirmed, and
answered before the next one began, must have the new version's answer; and no batch may hold answers of two versions.
"""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from chaos.client import Ask, nonce, own_answer
from chaos.ledger import Row
from chaos.run import Report, Run, Stage
from chaos.wire import Answer, Connection, Times, request, strict_json

Beside = Literal["nothing", "kills", "failing loads"]

_PERIOD = 2.0  # seconds from one switch to the next
_CHANGE_SECONDS = 30.0  # within which a change is answered, on two busy cores
_CODE = '''
import hashlib
import time
import uuid

import flambeau


class Versioned(flambeau.PythonModel):
    """Version {version}: 20 ms a batch, and answers that say so."""

    def load(self):
        {load}

    def predict(self, batch):
        time.sleep(0.02)
        mark = {{"version": "{version}", "batch": uuid.uuid4().hex}}
        return [{{"hash": hashlib.sha256(str(item["nonce"]).encode()).hexdigest()}} | mark for item in batch]
'''


def put_version(repository: Path, version: str, *, load: str = "pass") -> None:
    """Write a version of the model `versioned`, which says in its answers which one it is."""
    folder = repository / "versioned" / version
    folder.mkdir(parents=True)
    (folder / "versioned.py").write_text(_CODE.format(version=version, load=load))
    (folder / "model.toml").write_text('source = "versioned.py:Versioned"\n')


@dataclass(slots=True)
class Seen:
    """Which version answered, by nonce; which versions a batch held; and when versions were switched."""

    versions: dict[str, str] = field(default_factory=dict)
    batches: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    switches: list[tuple[float, float, str]] = field(default_factory=list)  # begun, confirmed, and the version

    def verify(self, nonce: str, answer: Answer) -> str:
        """Note who answered; what is wrong with the answer itself."""
        if wrong := own_answer(nonce, answer):
            return wrong
        body: Any = strict_json(answer.body)
        output: dict[str, str] = body["output"]
        self.versions[nonce] = output["version"]
        self.batches[output["batch"]].add(output["version"])
        return ""

    def stale(self, rows: list[Row]) -> list[str]:
        """Requests that lie between two switches, and have not the answer of the version that was the default there."""
        found = []
        ends = [begun for begun, _, _ in self.switches[1:]] + [time.monotonic()]
        for (_, confirmed, version), end in zip(self.switches, ends, strict=True):
            for row in rows:
                between = confirmed <= row.t_send and row.t_done <= end
                if between and row.good and self.versions[row.nonce] != version:
                    found.append(f"#{row.id} was answered by version {self.versions[row.nonce]}, not {version}")
        return found


async def swap(run: Run, fault: str = "F-18", *, beside: Beside = "nothing") -> Report:
    """Versions 1 and 2 take turns every 2 s; what is left is unloaded at once."""
    repository = run.folder / f"repository-{fault.replace('/', '-')}"
    for version in ("1", "2"):
        put_version(repository, version)
    put_version(repository, "3", load="raise ValueError('this version cannot be loaded')")
    seconds, seen, refused = run.headline_seconds, Seen(), 0
    flags = (str(repository), "--allow-code", "--replicas", "2", "--max-batch-size", "8", "--keep-loaded", "0")
    rng = run.rng()
    async with run.stage("", *flags) as stage:
        await _switch(stage, seen, "2")
        async with stage.load(lambda rng: Ask(nonce(rng), verify=seen.verify)):
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                await asyncio.sleep(_PERIOD)
                if beside == "kills":
                    _kill(rng.choice(stage.server.workers()))
                if beside == "failing loads":
                    refused += await _refused(stage)
                for version in ("1", "2"):  # and so it ends as it began
                    await _switch(stage, seen, version)
                    await asyncio.sleep(_PERIOD / 2 if version == "1" else 0)
        stage.require(len(seen.switches) > 2, f"only {len(seen.switches)} switches")
        mixed = [batch for batch, versions in seen.batches.items() if len(versions) > 1]
        stage.require(not mixed, f"{len(mixed)} batches with answers of two versions")
        stale = seen.stale(stage.ledger.rows)
        stage.require(not stale, f"{len(stale)} answers of a version that was left: {'; '.join(stale[:3])}")
        if beside == "failing loads":
            stage.require(refused > 0, "no load was refused")
    slowest = max((confirmed - begun for begun, confirmed, _ in seen.switches), default=0.0)
    told = (
        f"{len(seen.switches)} switches, the slowest {slowest:.2f} s; {len(seen.batches)} batches, {len(mixed)} mixed"
    )
    if refused:
        told += f"; {refused} loads refused"
    figures = f"{told}; {stage.ledger.summary()}; p99 {1000 * stage.latency():.0f} ms"
    what = f"the default switched between two versions for {seconds:g} s, {run.clients} clients, beside it {beside}"
    return run.report(fault, what, figures, stage)


def _kill(worker: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, signal.SIGKILL)


async def _switch(stage: Stage, seen: Seen, version: str) -> None:
    begun = time.monotonic()
    answer = await change(stage.server.port, "PUT", "/models/versioned", {"default_version": version})
    stage.require(answer.status == 200, f"the switch to version {version}: {answer.status} {answer.body[:200]!r}")
    seen.switches.append((begun, time.monotonic(), version))


async def _refused(stage: Stage) -> int:
    """Load the version that cannot be loaded."""
    answer = await change(stage.server.port, "POST", "/models/versioned/versions/3/load")
    stage.require(answer.status == 422, f"a version that cannot be loaded: {answer.status} {answer.body[:200]!r}")
    return answer.status == 422


async def change(port: int, method: str, path: str, wanted: Any = None) -> Answer:
    """Ask a server for a change of its models."""
    body = b"" if wanted is None else json.dumps(wanted).encode()
    connection = await Connection.open(port)
    try:
        return await connection.ask(request(method, path, body=body), Times(), give_up=_CHANGE_SECONDS)
    finally:
        connection.close()


async def terminated(run: Run) -> Report:
    """SIGTERM in the middle of a switch."""
    repository = run.folder / "repository-terminated"
    for version in ("1", "2"):
        put_version(repository, version)
    seen = Seen()
    flags = (str(repository), "--allow-code", "--replicas", "1", "--keep-loaded", "0")
    async with run.stage("", *flags) as stage:
        async with stage.load(lambda rng: Ask(nonce(rng), verify=seen.verify)):
            await asyncio.sleep(1.0)
        changing = asyncio.create_task(change(stage.server.port, "PUT", "/models/versioned", {"default_version": "1"}))
        await asyncio.sleep(0.1)
    # leaving the stage sends SIGTERM, waits for exit code 0, and looks for processes that were left behind
    changed = await asyncio.gather(changing, return_exceptions=True)
    figures = f"{stage.ledger.summary()}; the change itself: {getattr(changed[0], 'status', changed[0])}"
    return run.report("F-18/stop", "SIGTERM while a version is loaded", figures, stage)
