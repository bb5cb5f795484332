"""What goes wrong in a cluster. A fault is played on a front of ours, and on a plain Ray Serve application."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from chaos.cluster.namespaces import ApartNodes
from chaos.cluster.nodes import Nodes
from chaos.cluster.stage import ClusterStage, Kind, staged
from chaos.cluster.stored import StoredNodes
from chaos.ledger import percentile
from chaos.run import Report, Run, verdict

_SHRINK_SECONDS = 90.0  # for what was not needed for half a minute to end

Play = Callable[[ClusterStage, float], Awaitable[str]]
"""Plays the fault for so many seconds, under load, and says what it did."""


@dataclass(frozen=True, slots=True)
class ClusterFault:
    """A fault by its id."""

    id: str
    what: str
    play: Play
    ours: Kind = "flambeau"
    nodes: Callable[..., Nodes] = Nodes
    replicas: int = 4
    least: int | None = None
    """The fewest replicas, where the service itself chooses how many it has."""
    clients: int | None = None
    """How many there are all the time, if not as many as the run has."""
    over_grpc: bool = False
    """Whether the clients of ours, an application, make calls. Those of the plain one ask over HTTP."""


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
    left = len(set(stage.hosts()) & set(stage.nodes.everything(node)))
    await asyncio.to_thread(stage.nodes.remove, node)
    await asyncio.sleep(seconds / 2)
    return f"a node told to end, and killed {seconds / 4:g} s later, with {left} replicas on it"


async def scale(stage: ClusterStage, seconds: float) -> str:
    for replicas in (6, 1):
        await asyncio.sleep(seconds / 10)
        await stage.scale(replicas)
        await asyncio.sleep(seconds * 4 / 10)
        stage.require(len(stage.hosts()) == replicas, f"{len(stage.hosts())} replicas, and {replicas} were asked for")
    return "from 1 replica to 6, and back to 1"


async def autoscale(stage: ClusterStage, seconds: float) -> str:
    """All clients come, and leave; one stays."""
    loop, most, first = asyncio.get_running_loop(), 0, len(stage.hosts())
    until = loop.time() + seconds * 4 / 10
    async with stage.load():
        while loop.time() < until:
            await asyncio.sleep(0.5)
            most = max(most, len(stage.hosts()))
    left = loop.time()
    while len(stage.hosts()) > 1 and loop.time() < left + _SHRINK_SECONDS:
        await asyncio.sleep(0.5)
    last, took = len(stage.hosts()), loop.time() - left
    stage.require(first == last == 1 < most <= 4, f"from {first} replicas to {most}, and back to {last}")
    return f"from {first} replica to {most} while all clients asked, and {last} after {took:.0f} s with one"


async def partition(stage: ClusterStage, seconds: float) -> str:
    nodes, cut = stage.nodes, min(20.0, seconds / 2)
    assert isinstance(nodes, ApartNodes)
    await asyncio.sleep(seconds / 4)
    node = nodes.any(stage.rng())
    await asyncio.to_thread(nodes.cut_off, node)
    await asyncio.sleep(cut)
    await asyncio.to_thread(nodes.heal, node)
    await asyncio.sleep(max(seconds / 4, seconds * 3 / 4 - cut))
    return f"all packets of a node dropped for {cut:g} s"


async def restart_gcs(stage: ClusterStage, seconds: float) -> str:
    nodes = stage.nodes
    assert isinstance(nodes, StoredNodes)
    await asyncio.sleep(seconds / 4)
    nodes.kill_gcs()
    await asyncio.sleep(seconds / 4)
    await asyncio.to_thread(nodes.start_gcs)
    victim = stage.rng().choice(stage.hosts())
    await asyncio.sleep(seconds / 8)
    os.kill(victim, signal.SIGKILL)  # the head that came back places its successor
    await asyncio.sleep(seconds * 3 / 8)
    hosts = stage.hosts()
    stage.require(len(hosts) == 4 and victim not in hosts, f"{len(hosts)} of 4 replicas after the head came back")
    return f"the GCS killed, back after {seconds / 4:g} s, then a replica killed"


async def kill_controller(stage: ClusterStage, seconds: float) -> str:
    kills = 0
    for _ in range(2):
        await asyncio.sleep(seconds / 4)
        kills += stage.nodes.kill_controllers()
    await asyncio.sleep(seconds / 2)
    stage.require(kills > 0, "there was no controller to be killed")
    return f"{kills} kills"


FAULTS = (
    ClusterFault("cluster/kill", "kill -9 of a random replica every 2 s", kill_replicas),
    ClusterFault(
        "cluster/grpc",
        "the same over gRPC, through the proxy of Ray Serve",
        kill_replicas,
        ours="serve",
        over_grpc=True,
    ),
    ClusterFault("cluster/node", "a worker node killed, and another added", remove_and_add),
    ClusterFault("cluster/raylet", "SIGSTOP of a worker node's raylet", stop_raylet),
    ClusterFault("cluster/frozen", "a worker node that stands still as a whole, and goes on", stop_node),
    ClusterFault("cluster/gcs", "the GCS killed, without external storage", kill_gcs),
    ClusterFault("cluster/drain", "a node drained (spot), then killed", drain),
    ClusterFault("cluster/drain-serve", "the same over Flambeau as an application of Ray Serve", drain, ours="serve"),
    ClusterFault("cluster/scale", "from one replica to six, and back to one", scale, replicas=1),
    ClusterFault(
        "cluster/autoscale",
        "an application of Ray Serve with --min-replicas 1, whose load comes and goes",
        autoscale,
        ours="serve",
        least=1,
        clients=1,
    ),
    ClusterFault("cluster/partition", "the network to a worker node fails, and heals", partition, nodes=ApartNodes),
    ClusterFault("cluster/redis", "the GCS killed, with Redis behind it, and back", restart_gcs, nodes=StoredNodes),
    ClusterFault("cluster/controller", "the controller of Ray Serve killed", kill_controller, ours="serve"),
)


async def play(run: Run, fault: ClusterFault, *, beside: bool) -> Report:
    """The fault on a front of ours, and beside it the figures of the plain application."""
    how: dict[str, Any] = {"nodes": fault.nodes, "replicas": fault.replicas, "least": fault.least}
    async with staged(run, fault.ours, **how) as stage:
        async with stage.calls() if fault.over_grpc else stage.load(clients=fault.clients):
            did = await fault.play(stage, run.seconds)
        if fault.over_grpc:  # whose clients leave when they find nobody
            stage.require(not (unsent := stage.ledger.counts["unsent"]), f"{unsent} calls found nobody")
    figures = f"{did}; {told(stage, run.seconds)}"
    if beside:
        async with staged(run, "plain", **how) as other, other.load(clients=fault.clients):
            did = await fault.play(other, run.seconds)
        figures += f" | plain Ray Serve: {did}; {told(other, run.seconds)}"
    return verdict(fault.id, f"{fault.what}, for {run.seconds:g} s, {run.clients} clients", figures, stage.complaints)


def told(stage: ClusterStage, seconds: float) -> str:
    """What a stage's ledger comes to."""
    good = [row.seconds for row in stage.ledger.rows if row.good]
    wrong = stage.ledger.counts["wrong"]
    return (
        f"{stage.ledger.summary()}, {wrong} wrong; {stage.ledger.good / seconds:.0f}/s, "
        f"p99 {percentile(good, 0.99):.2f} s, max {max(good, default=0.0):.2f} s"
    )
