"""What goes wrong in a cluster. A fault is played on a front of ours, and on a plain Ray Serve application."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from chaos.cluster.stage import ClusterStage, staged
from chaos.ledger import percentile
from chaos.run import Report, Run, verdict

Play = Callable[[ClusterStage, float], Awaitable[str]]
"""Plays the fault for so many seconds, under load, and says what it did."""


@dataclass(frozen=True, slots=True)
class ClusterFault:
    """A fault by its id."""

    id: str
    what: str
    play: Play


async def kill_replicas(stage: ClusterStage, seconds: float) -> str:
    rng, kills, loop = stage.rng(), 0, asyncio.get_running_loop()
    until = loop.time() + seconds
    while loop.time() < until:
        await asyncio.sleep(2.0)
        if pids := stage.hosts():
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(pids), signal.SIGKILL)
            kills += 1
    return f"{kills} kills"


async def remove_and_add(stage: ClusterStage, seconds: float) -> str:
    await asyncio.sleep(seconds / 4)
    await asyncio.to_thread(stage.nodes.remove, stage.nodes.any(stage.rng()))
    await asyncio.sleep(seconds / 4)
    stage.nodes.add()
    await asyncio.sleep(seconds / 2)
    return "a node of two killed, and another added"


async def stop_raylet(stage: ClusterStage, seconds: float) -> str:
    await asyncio.sleep(seconds / 4)
    node = stage.nodes.any(stage.rng())
    stage.nodes.stop([stage.nodes.raylet(node)])
    await asyncio.sleep(seconds / 2)
    stage.nodes.resume(node)
    await asyncio.sleep(seconds / 4)
    return f"a raylet stopped for {seconds / 2:g} s"


async def stop_node(stage: ClusterStage, seconds: float) -> str:
    await asyncio.sleep(seconds / 4)
    node = stage.nodes.any(stage.rng())
    stage.nodes.stop(stage.nodes.everything(node))
    await asyncio.sleep(seconds / 2)
    stage.nodes.resume(node)
    await asyncio.sleep(seconds / 4)
    return f"all processes of a node stopped for {seconds / 2:g} s"


async def kill_gcs(stage: ClusterStage, seconds: float) -> str:
    await asyncio.sleep(seconds / 4)
    stage.nodes.kill_gcs()
    await asyncio.sleep(seconds * 3 / 4)
    return f"the GCS killed, and {seconds * 3 / 4:g} s without it"


async def drain(stage: ClusterStage, seconds: float) -> str:
    await asyncio.sleep(seconds / 4)
    node = stage.nodes.any(stage.rng())
    said = await asyncio.to_thread(stage.nodes.drain, node, seconds / 4)
    stage.require(not said, f"the node was not drained: {said[-200:]}")
    await asyncio.sleep(seconds / 4)
    await asyncio.to_thread(stage.nodes.remove, node)
    await asyncio.sleep(seconds / 2)
    return f"a node told to end, and killed {seconds / 4:g} s later"


FAULTS = (
    ClusterFault("cluster/kill", "kill -9 of a random replica every 2 s", kill_replicas),
    ClusterFault("cluster/node", "a worker node killed, and another added", remove_and_add),
    ClusterFault("cluster/raylet", "SIGSTOP of a worker node's raylet", stop_raylet),
    ClusterFault("cluster/frozen", "a worker node that stands still as a whole, and goes on", stop_node),
    ClusterFault("cluster/gcs", "the GCS killed, without external storage", kill_gcs),
    ClusterFault("cluster/drain", "a node drained (spot), then killed", drain),
)


async def play(run: Run, fault: ClusterFault, *, beside: bool) -> Report:
    """The fault on a front of ours, and beside it the figures of the plain application."""
    async with staged(run, "flambeau") as stage, stage.load():
        did = await fault.play(stage, run.seconds)
    figures = f"{did}; {told(stage, run.seconds)}"
    if beside:
        async with staged(run, "plain") as other, other.load():
            await fault.play(other, run.seconds)
        figures += f" | plain Ray Serve: {told(other, run.seconds)}"
    return verdict(fault.id, f"{fault.what}, for {run.seconds:g} s, {run.clients} clients", figures, stage.complaints)


def told(stage: ClusterStage, seconds: float) -> str:
    """What a stage's ledger comes to."""
    good = [row.seconds for row in stage.ledger.rows if row.good]
    wrong = stage.ledger.counts["wrong"]
    return (
        f"{stage.ledger.summary()}, {wrong} wrong; {stage.ledger.good / seconds:.0f}/s, "
        f"p99 {percentile(good, 0.99):.2f} s, max {max(good, default=0.0):.2f} s"
    )
