"""What a fault is played on: a cluster, a front or a plain application in it, clients, and their ledger."""

import asyncio
import contextlib
import os
import random
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from chaos.client import Ask, Client, Load, Make, echo
from chaos.cluster.nodes import Nodes
from chaos.faults.swap import change
from chaos.grpc_load import GrpcLoad
from chaos.ledger import Ledger
from chaos.run import Run
from chaos.server import Server, ServerError, free_port

Kind = Literal["flambeau", "serve", "plain"]
"""A front with the runner `ray`; Flambeau as a Ray Serve application; an application of Ray Serve alone."""

DEADLINE = 60.0
_PLAIN_SECONDS = 90.0  # for a plain application to start, and to end
_GONE_SECONDS = 10.0


@dataclass(slots=True)
class ClusterStage:
    """A service in a cluster."""

    run: Run
    kind: Kind
    nodes: Nodes
    port: int
    ledger: Ledger = field(default_factory=Ledger)
    server: Server | None = None
    complaints: list[str] = field(default_factory=list)
    application: asyncio.subprocess.Process | None = None
    grpc_port: int = 0
    """Where an application of ours takes calls."""

    async def scale(self, replicas: int) -> None:
        """Have so many replicas. Returns when the change is asked for."""
        if self.kind == "flambeau":
            answer = await change(self.port, "PUT", "/models/Slow50", {"replicas": replicas})
            self.require(answer.status == 200, f"{replicas} replicas: {answer.status} {answer.body[:200]!r}")
        elif self.application is not None and self.application.stdin is not None:
            self.application.stdin.write(f"{replicas}\n".encode())

    def load(self, make: Make = echo, *, clients: int | None = None) -> Load:
        """The clients, as many as the run has unless told otherwise: `async with`."""
        clients = self.run.clients if clients is None else clients
        return Load(self.port, self.ledger, make, clients=clients, seed=self.run.next_seed(), deadline=DEADLINE)

    def calls(self) -> GrpcLoad:
        """The same clients over gRPC."""
        return GrpcLoad(self.run, f"127.0.0.1:{self.grpc_port}", self.ledger, deadline=DEADLINE)

    def require(self, holds: bool, otherwise: str) -> None:
        """Complain unless something holds."""
        if not holds:
            self.complaints.append(otherwise)

    def hosts(self) -> list[int]:
        """The processes of its replicas."""
        return self.nodes.hosts(self.kind)

    def rng(self) -> random.Random:
        """A generator that replays with the run's seed."""
        return self.run.rng()


@contextlib.asynccontextmanager
async def staged(
    run: Run,
    kind: Kind,
    *flags: str,
    model: str = "Slow50",
    workers: int = 2,
    replicas: int = 4,
    least: int | None = None,
    nodes: Callable[..., Nodes] = Nodes,
) -> AsyncIterator[ClusterStage]:
    """A cluster with so many worker nodes, and a service with so many replicas in it, from start to end. An application
    that may have as few as `least` chooses how many it has.
    """
    os.environ["FLAMBEAU_CACHE"] = str(run.cache)  # the nodes' as well
    with nodes(workers, cpus=max(4, replicas)) as cluster:
        if kind != "flambeau":
            async with _application(kind, cluster, replicas, least or replicas) as (process, port, grpc_port):
                stage = ClusterStage(run, kind, cluster, port, application=process, grpc_port=grpc_port)
                yield await _begun(stage)
                if kind == "serve":
                    stage.complaints += stage.ledger.complaints()
            return
        server = run.server(
            model, "--runner", "ray", "--ray-address", cluster.address, "--replicas", str(replicas), "--deadline",
            str(DEADLINE), "--max-batch-size", "8", *flags,
        )  # fmt: skip
        await server.begin()
        try:
            await server.ready()
            stage = await _begun(ClusterStage(run, kind, cluster, server.port, server=server))
            yield stage
            code = await server.stop()
            stage.require(code == 0, f"exit code {code} after SIGTERM")
            stage.complaints += stage.ledger.complaints()
            for _ in range(round(_GONE_SECONDS / 0.1)):
                if not stage.hosts():
                    break
                await asyncio.sleep(0.1)
            stage.require(not stage.hosts(), f"replicas left: {stage.hosts()}")
        finally:
            await server.kill()


async def _begun(stage: ClusterStage) -> ClusterStage:
    """After a first answer, which is not counted."""
    client = Client(stage.port, Ledger(), deadline=DEADLINE)
    try:
        await client.ask(Ask("00"))
    finally:
        client.close()
    return stage


@contextlib.asynccontextmanager
async def _application(
    kind: Kind, nodes: Nodes, replicas: int, least: int
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int, int]]:
    port, grpc_port = free_port(), free_port()
    module = {"plain": "chaos.cluster.plain", "serve": "chaos.cluster.served"}[kind]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, nodes.address, *map(str, (port, replicas, least, grpc_port)),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(_PLAIN_SECONDS):
            line = b""
            while not line.startswith(b"http://"):
                if not (line := await process.stdout.readline()):
                    raise ServerError("the application did not start")
        yield process, port, grpc_port
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(_PLAIN_SECONDS):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
