"""Versions that take turns over the cluster, under load: nothing lost, no batch mixed, no answer of a version left."""

import asyncio
import time

from chaos.client import Ask, nonce
from chaos.cluster.stage import staged
from chaos.faults.swap import Seen, change, put_version
from chaos.run import Report, Run, verdict

_PERIOD = 2.0  # seconds from one switch to the next


async def swap(run: Run) -> Report:
    """Versions 1 and 2 take turns."""
    repository = run.folder / "repository"
    for version in ("1", "2"):
        put_version(repository, version)
    seen = Seen()
    async with staged(run, "flambeau", str(repository), "--allow-code", model="", replicas=2) as stage:
        # two of each version have to fit beside each other
        begun = time.monotonic()
        async with stage.load(lambda rng: Ask(nonce(rng), verify=seen.verify)):
            while time.monotonic() < begun + run.seconds:
                for version in ("1", "2"):
                    await asyncio.sleep(_PERIOD)
                    asked = time.monotonic()
                    answer = await change(stage.port, "PUT", "/models/versioned", {"default_version": version})
                    ok = answer.status == 200
                    stage.require(ok, f"the switch to version {version}: {answer.status} {answer.body[:200]!r}")
                    seen.switches.append((asked, time.monotonic(), version))
        mixed = [batch for batch, versions in seen.batches.items() if len(versions) > 1]
        stage.require(not mixed, f"{len(mixed)} batches with answers of two versions")
        stale = seen.stale(stage.ledger.rows)
        stage.require(not stale, f"{len(stale)} answers of a version that was left: {'; '.join(stale[:3])}")
    slowest = max((confirmed - asked for asked, confirmed, _ in seen.switches), default=0.0)
    figures = (
        f"{len(seen.switches)} switches, the slowest {slowest:.2f} s; {len(seen.batches)} batches, {len(mixed)} mixed; "
        f"{stage.ledger.summary()}, {stage.ledger.counts['wrong']} wrong"
    )
    what = f"the default switched between two versions for {run.seconds:g} s, {run.clients} clients"
    return verdict("cluster/swap", what, figures, stage.complaints)
