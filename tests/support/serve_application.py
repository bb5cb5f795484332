"""A running Ray Serve application: two nodes, and `serve run` of the file that `flambeau deploy ray` writes."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from chaos.cluster.nodes import Nodes
from flambeau.http import tokens
from tests.support.server import FLAMBEAU, free_port

START_SECONDS = 220.0


@dataclass(frozen=True, slots=True)
class Application:
    """What its proxies listen on, and its nodes. `network` is what the model `several` computes. `token` asks for
    predictions, `admin` for everything."""

    url: str
    target: str
    token: str
    admin: str
    process: "subprocess.Popen[bytes]"
    network: Any
    nodes: Nodes

    @property
    def headers(self) -> dict[str, str]:
        """What a request has to have."""
        return {"authorization": f"Bearer {self.token}"}

    def view(self, path: str) -> Any:
        """The JSON of a GET."""
        return requests.get(f"{self.url}{path}", headers=self.headers, timeout=30).json()


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Application]:
    """The models of `tests.support.grpc_server`, with two replicas each."""
    from tests.support import grpc_server

    network = grpc_server.write(folder / "repository")
    port, grpc_port, token, admin = free_port(), free_port(), tokens.fresh(), tokens.fresh()
    (folder / "tokens").write_text(f"infer {token}\nadmin {admin}\n")
    (folder / "tokens").chmod(0o600)
    with Nodes(2, cpus=2) as nodes:
        environment = dict(os.environ, RAY_ADDRESS=nodes.address, FLAMBEAU_CACHE=str(folder / "cache"))
        subprocess.run(
            [
                *map(str, FLAMBEAU), "deploy", "ray", str(folder / "repository"), "--allow-code", "--replicas", "2",
                "--min-replicas", "2", "--port", str(port), "--grpc-port", str(grpc_port), "--tokens-file",
                str(folder / "tokens"), "-o", str(folder / "serve.yaml"),
            ],
            check=True,
        )  # fmt: skip
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "ray.serve.scripts", "run", str(folder / "serve.yaml")],
                env=environment, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            url, target = f"http://127.0.0.1:{port}", f"127.0.0.1:{grpc_port}"
            made = Application(url, target, token, admin, process, network, nodes)
            _await(made, folder / "log")
            yield made
        finally:
            process.terminate()
            process.wait()


def _await(application: Application, log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(requests.ConnectionError, requests.Timeout):
            if requests.get(f"{application.url}/readyz", timeout=5).status_code == 200:
                return
        assert application.process.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < until, log.read_text()[-4000:]
        time.sleep(0.2)
