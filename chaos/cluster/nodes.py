"""A real Ray cluster on this machine: a head without replicas, and worker nodes to be killed, stopped and drained.

`ray.cluster_utils.Cluster` starts one raylet for each node. All share the machine's address, and have ids of their own.
"""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from chaos import proc

STORE = 100_000_000
"""Bytes of each node's object store, the least that Ray likes."""

_HOSTS = {"flambeau": b"ray::ReplicaHost", "serve": b"ray::ReplicaHost", "plain": b"ray::ServeReplica"}
"""How Ray calls the processes of replicas."""


class Nodes:
    """The cluster: `with Nodes(2) as nodes`."""

    def __init__(self, workers: int, *, cpus: int = 2) -> None:
        self._workers = workers
        self._cpus = cpus
        self._nodes: list[Any] = []
        self._late: list[subprocess.Popen[bytes]] = []
        self._started: set[int] = set()
        """What nodes were seen to have started: what a raylet that was killed has started may outlive it."""

    def __enter__(self) -> "Nodes":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(initialize_head=True, head_node_args=self._head())
        for _ in range(self._workers):
            self._nodes.append(self._begin())
        return self

    def _head(self) -> dict[str, object]:
        return {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False}

    def _begin(self) -> Any:
        return self._cluster.add_node(num_cpus=self._cpus, object_store_memory=STORE)

    def __exit__(self, *error: object) -> None:
        import ray

        ray.shutdown()
        self._look()
        for node in (*self._nodes, self._cluster.head_node):
            self.resume(node)
        for process in self._late:
            for pid in reversed(below(process.pid)):
                send([pid], signal.SIGKILL)
            process.wait()
        self._cluster.shutdown()
        send(self._started & set(titled((b"ray::",))), signal.SIGKILL)

    def _look(self) -> None:
        for node in (*self._nodes, self._cluster.head_node):
            self._started.update(self.everything(node))
        for process in self._late:
            self._started.update(below(process.pid))

    def _ours(self, title: bytes) -> list[int]:
        """The cluster's processes whose title begins so; other clusters may run on this machine."""
        self._look()
        return sorted(self._started & set(titled((title,))))

    @property
    def address(self) -> str:
        """The head's HOST:PORT."""
        return str(self._cluster.address)

    def exporters(self) -> list[str]:
        """The URL at which each node tells Ray's metrics, Serve's among them."""
        nodes = (self._cluster.head_node, *self._nodes)
        return [f"http://{each.node_ip_address}:{each.metrics_export_port}" for each in nodes]

    def add(self) -> None:
        """One worker node more, without waiting for it: `Cluster.add_node` would hold the clients' loop."""
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--address", self.address, "--num-cpus",
            str(self._cpus), "--object-store-memory", str(STORE),
        ]  # fmt: skip
        self._late.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def any(self, rng: random.Random) -> Any:
        """A worker node."""
        return rng.choice(self._nodes)

    def remove(self, node: Any) -> None:
        """Kill a node: its raylet, and with it all that it started."""
        self._look()
        self._nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def drain(self, node: Any, seconds: float) -> str:
        """Tell the cluster that a node ends in so many seconds, as clouds do; what Ray said."""
        done = subprocess.run(
            [
                sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", self.address, "--node-id",
                node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot",
                "--deadline-remaining-seconds", str(int(seconds)),
            ],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return (done.stdout + done.stderr).strip() if done.returncode else ""

    def raylet(self, node: Any) -> int:
        """The pid of a node's raylet."""
        return int(node.all_processes["raylet"][0].process.pid)

    def everything(self, node: Any) -> list[int]:
        """The raylet of a node and all processes below it."""
        return below(self.raylet(node))

    def stop(self, pids: list[int]) -> None:
        """Have processes stand still."""
        send(pids, signal.SIGSTOP)

    def resume(self, node: Any) -> None:
        """Have all of a node go on."""
        send(self.everything(node), signal.SIGCONT)

    def kill_gcs(self) -> None:
        """Kill the cluster's control: no actor can be placed any more."""
        [gcs] = self._cluster.head_node.all_processes["gcs_server"]
        os.kill(gcs.process.pid, signal.SIGKILL)

    def kill_controllers(self) -> int:
        """Kill the controller of Ray Serve. Returns how many there were."""
        found = self._ours(b"ray::ServeController")
        send(found, signal.SIGKILL)
        return len(found)

    def hosts(self, kind: str) -> list[int]:
        """The processes of replicas, ours or those of the `plain` application."""
        return self._ours(_HOSTS[kind])


def titled(titles: tuple[bytes, ...]) -> list[int]:
    """The processes whose title begins with one of these."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if (folder / "cmdline").read_bytes().startswith(titles):
                    found.append(int(folder.name))
            except OSError:
                continue
    return sorted(pid for pid in found if proc.alive(pid))


def below(pid: int) -> list[int]:
    """A process and all that it and its children have started."""
    found = [pid]
    for each in found:
        found += proc.children(each)
    return found


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Send them a signal, as far as they are there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
