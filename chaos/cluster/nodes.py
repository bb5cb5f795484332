"""A real Ray cluster on this machine: a head without replicas, and worker nodes to be killed, stopped and drained.

`ray.cluster_utils.Cluster` starts one raylet for each node. All share the machine's address, and have ids of their own.
"""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from chaos import proc

_STORE = 100_000_000  # bytes of each node's object store, the least that Ray likes
_HOSTS = {"flambeau": b"ray::ReplicaHost", "plain": b"ray::ServeReplica"}
"""How Ray calls the processes of replicas."""


class Nodes:
    """The cluster: `with Nodes(2) as nodes`."""

    def __init__(self, workers: int, *, cpus: int = 2) -> None:
        self._workers = workers
        self._cpus = cpus
        self._nodes: list[Any] = []
        self._late: list[subprocess.Popen[bytes]] = []
        self._started: set[int] = set()
        """What nodes have started: the agents of a raylet that was killed may outlive it."""

    def __enter__(self) -> "Nodes":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "object_store_memory": _STORE, "include_dashboard": False},
        )
        for _ in range(self._workers):
            self._nodes.append(self._cluster.add_node(num_cpus=self._cpus, object_store_memory=_STORE))
        return self

    def __exit__(self, *error: object) -> None:
        import ray

        ray.shutdown()
        for node in (*self._nodes, self._cluster.head_node):
            self._started.update(self.everything(node))
            self.resume(node)
        for process in self._late:
            for pid in reversed(_below(process.pid)):
                _send([pid], signal.SIGKILL)
            process.wait()
        self._cluster.shutdown()
        agents = (b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")
        _send([*self._started & set(_titled(agents)), *_titled(tuple(_HOSTS.values()))], signal.SIGKILL)

    @property
    def address(self) -> str:
        """The head's HOST:PORT."""
        return str(self._cluster.address)

    def add(self) -> None:
        """One worker node more, without waiting for it: `Cluster.add_node` would hold the clients' loop."""
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--address", self.address, "--num-cpus",
            str(self._cpus), "--object-store-memory", str(_STORE),
        ]  # fmt: skip
        self._late.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def any(self, rng: random.Random) -> Any:
        """A worker node."""
        return rng.choice(self._nodes)

    def remove(self, node: Any) -> None:
        """Kill a node: its raylet, and with it all that it started."""
        self._started.update(self.everything(node))
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
        return _below(self.raylet(node))

    def stop(self, pids: list[int]) -> None:
        """Have processes stand still."""
        _send(pids, signal.SIGSTOP)

    def resume(self, node: Any) -> None:
        """Have all of a node go on."""
        _send(self.everything(node), signal.SIGCONT)

    def kill_gcs(self) -> None:
        """Kill the cluster's control: no actor can be placed any more."""
        [gcs] = self._cluster.head_node.all_processes["gcs_server"]
        os.kill(gcs.process.pid, signal.SIGKILL)

    def hosts(self, kind: str) -> list[int]:
        """The processes of replicas, of `flambeau` or of the `plain` application."""
        return _titled((_HOSTS[kind],))


def _titled(titles: tuple[bytes, ...]) -> list[int]:
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


def _below(pid: int) -> list[int]:
    """A process and all that it and its children have started."""
    found = [pid]
    for each in found:
        found += proc.children(each)
    return found


def _send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
