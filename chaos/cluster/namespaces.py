"""Worker nodes with addresses of their own, so that the network between them can fail: each in a network namespace.

    this machine's namespace: head, front, clients  --bridge-- (veth) --  node 1, node 2, ...

It needs root, `ip` and `iptables`. Packets of a node that is cut off are dropped without a word, both ways.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.cluster.nodes import STORE, Nodes, below, send

_JOIN_SECONDS = 60.0


@dataclass(eq=False, slots=True)
class ApartNode:
    """A node: the name of its namespace, and the process that began it."""

    name: str
    process: "subprocess.Popen[bytes]"


class ApartNodes(Nodes):
    """A cluster whose worker nodes can be cut off."""

    def __enter__(self) -> "ApartNodes":
        found = shutil.which("ip"), shutil.which("iptables")
        if found[0] is None or found[1] is None:
            raise SystemExit("a node cannot be cut off without ip and iptables: apt-get install iproute2 iptables")
        self._tool = found[0]
        self._mark = f"fb{os.getpid() % 100000}"
        self._net = f"10.{random.SystemRandom().randrange(100, 200)}.{os.getpid() % 250}"
        self._closing = contextlib.ExitStack()
        self._folders = self._closing.enter_context(tempfile.TemporaryDirectory(prefix="flambeau-nodes-"))
        self._ip("link", "add", self._mark, "type", "bridge")
        self._closing.callback(self._ip, "link", "del", self._mark)
        self._ip("addr", "add", f"{self._net}.1/24", "dev", self._mark)
        self._ip("link", "set", self._mark, "up")
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        import ray

        ray.shutdown()
        for node in list(self._nodes):
            self.remove(node)
        try:
            super().__exit__(*error)
        finally:
            self._closing.close()

    def _head(self) -> dict[str, object]:
        return {**super()._head(), "node_ip_address": f"{self._net}.1"}

    def _begin(self) -> ApartNode:
        self._count = getattr(self, "_count", 0) + 1
        name, outer, inner = f"{self._mark}n{self._count}", f"{self._mark}v{self._count}", f"{self._mark}w{self._count}"
        self._ip("netns", "add", name)
        self._closing.callback(self._ip, "netns", "del", name)
        self._ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
        self._ip("link", "set", outer, "master", self._mark, "up")
        address = f"{self._net}.{self._count + 1}"
        for words in (f"addr add {address}/24 dev {inner}", f"link set {inner} up", "link set lo up"):
            self._ip("-n", name, *words.split())
        own = Path(self._folders, name)  # else all nodes would share what Ray notes of a machine
        own.mkdir()
        start = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--address", self.address,
            "--node-ip-address", address, "--num-cpus", str(self._cpus), "--object-store-memory", str(STORE),
        ]  # fmt: skip
        process = subprocess.Popen(
            [self._tool, "netns", "exec", name, "sh", "-c", f'mount --bind {own} /tmp/ray && exec "$@"', "sh", *start],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=os.environ | {"FLAMBEAU_CACHE": str(own / "flambeau")},
        )  # fmt: skip
        self._await(address)
        return ApartNode(name, process)

    def _await(self, address: str) -> None:
        """Return when the node at an address is a part of the cluster."""
        import ray

        if not ray.is_initialized():
            ray.init(address=self.address, logging_level="error", log_to_driver=False)
        until = time.monotonic() + _JOIN_SECONDS
        while not any(each["NodeManagerAddress"] == address and each["Alive"] for each in ray.nodes()):
            if time.monotonic() > until:
                raise SystemExit(f"the node at {address} did not join the cluster at {self.address}")
            time.sleep(0.2)

    def cut_off(self, node: ApartNode) -> None:
        """Drop all packets from and to a node."""
        for chain in ("INPUT", "OUTPUT"):
            self._ip("netns", "exec", node.name, "iptables", "-I", chain, "!", "-i" if chain == "INPUT" else "-o", "lo",
                     "-j", "DROP")  # fmt: skip

    def heal(self, node: ApartNode) -> None:
        """Let them pass again."""
        self._ip("netns", "exec", node.name, "iptables", "-F")

    def remove(self, node: ApartNode) -> None:
        """Kill a node and all that it started."""
        self._look()
        self._nodes.remove(node)
        send(reversed(self.everything(node)), signal.SIGKILL)
        node.process.wait()

    def everything(self, node: Any) -> list[int]:
        """The process that began the node, and all below it."""
        return below(node.process.pid) if isinstance(node, ApartNode) else super().everything(node)

    def _ip(self, *words: str) -> None:
        subprocess.run([self._tool, *words], check=True, capture_output=True)
