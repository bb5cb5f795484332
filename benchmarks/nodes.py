"""`python -m benchmarks.nodes`: what another node costs the front, measured with one to three nodes on this machine.

    flambeau serve (the front)  --  a head, and N nodes of two replicas; each batch takes 50 ms, and no core

The replicas sleep, so that the nodes do not take each other's cores, and what is counted is the front's time for each
answer: all of its threads, and its loop alone, which is the one that cannot be divided. `--simulate` computes from
these costs what a front does with up to 100 nodes. It needs the extra `ray`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import click

from benchmarks import load, simulate
from benchmarks.one_group import one_group
from benchmarks.processes import free_port
from chaos.cluster.nodes import Nodes
from chaos.cluster.stage import DEADLINE
from chaos.server import MODEL

_ROOT = Path(__file__).parent.parent
_BODY = json.dumps({"input": {"nonce": "00", "do": "echo"}}).encode()
_STARTUP = 120.0  # seconds


def _request(port: int) -> bytes:
    head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(_BODY)}\r\n\r\n".encode() + _BODY


def _busy(pid: int) -> tuple[float, float]:
    """Seconds of cores that a process has taken: all of its threads, and the first."""
    taken = {
        int(task.name): int((task / "schedstat").read_text().split()[0]) / 1e9
        for task in Path(f"/proc/{pid}/task").iterdir()
    }
    return sum(taken.values()), taken[pid]


def _window(wire: Path, port: int, clients: int, seconds: float) -> load.Window:
    return load.run(wire, port=port, clients=clients, text='"hash"', seconds=seconds, warmup=0.0)


def _measured(nodes: int, batch: int, clients: int, seconds: float) -> dict[str, object]:
    port = free_port()
    with Nodes(nodes, cpus=2) as cluster, tempfile.TemporaryDirectory(prefix="flambeau-bench-") as folder:
        wire = Path(folder, "request")
        wire.write_bytes(_request(port))
        command = [
            sys.executable, "-m", "flambeau", "serve", f"{MODEL}:Slow50", "--allow-code", "--port", str(port),
            "--runner", "ray", "--ray-address", cluster.address, "--replicas", str(2 * nodes), "--max-batch-size",
            str(batch), "--deadline", str(DEADLINE), "--log-level", "warning",
        ]  # fmt: skip
        environment = os.environ | {"FLAMBEAU_CACHE": folder, "PYTHONPATH": f"{_ROOT / 'src'}:{_ROOT}"}
        server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        try:
            until = time.monotonic() + _STARTUP
            while (first := _window(wire, port, clients, 1.0)).wrong or not first.good:
                if time.monotonic() > until:
                    raise click.ClickException("the server gave no right answer")
            before = _busy(server.pid)
            window = _window(wire, port, clients, seconds)
            after = _busy(server.pid)
            whole, loop = (1000 * (b - a) / max(1, window.good) for a, b in zip(before, after, strict=True))
            return {
                "nodes": nodes, "batch": batch, "clients": clients, "rate": round(window.per_second),
                "p50_ms": round(window.p50_ms), "p99_ms": round(window.p99_ms), "front_ms": round(whole, 3),
                "loop_ms": round(loop, 3), "wrong": window.wrong,
            }  # fmt: skip
        finally:
            server.terminate()
            server.wait()


RAY_SEND, RAY_RECEIVE = 400e-6, 260e-6
"""Seconds of the front's loop for a batch over Ray: to submit the call, and to take its result. Measured as above: the
difference between batches of one and of eight."""


def _simulated(nodes: int) -> dict[str, object]:
    """Photographs over one front and so many nodes of two cores and two replicas, with clients to keep them busy."""
    stages = replace(simulate.PHOTOGRAPHS, send=RAY_SEND, receive=RAY_RECEIVE, wide=1.0)
    simulation = simulate.Simulation(stages, clients=16 * nodes, cores=2 * nodes + 2, replicas=2 * nodes)
    result = simulation.run(answers=max(1000, 100 * nodes))
    return {"nodes": nodes, "rate": round(result.rate), "p99_ms": round(result.p99), "front": round(result.front, 2)}


@click.command()
@click.option("--seconds", default=8.0, show_default=True, help="How long each window is.")
@click.option("--simulate/--measure", "simulated", default=False, help="Up to 100 nodes, from what was measured.")
def main(seconds: float, simulated: bool) -> None:
    """Say what another node costs."""
    if simulated:
        for nodes in (1, 2, 3, 5, 10, 20, 50, 100):
            click.echo(json.dumps(_simulated(nodes)))
        return
    with one_group():
        for nodes, batch in ((1, 8), (2, 8), (3, 8), (1, 1), (3, 1)):
            click.echo(json.dumps(_measured(nodes, batch, clients=4 * nodes * batch, seconds=seconds)))


if __name__ == "__main__":
    main()
