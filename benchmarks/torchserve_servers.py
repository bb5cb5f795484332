"""The real TorchServe and Flambeau in its place, started alike: with one model store, and one config.properties each.

Archives are made by the real torch-model-archiver. What is asked of the servers is not known here.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from benchmarks import environments
from benchmarks.environments import python
from benchmarks.processes import Server, free_port

_START_SECONDS = 600.0
_POLL = 0.05


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers for all its models, over REST and at two addresses for gRPC.

    `started`: seconds from its start until then.
    """

    url: str
    management: str
    grpc: str
    grpc_management: str
    server: Server
    log: Path
    started: float


def archive(store: Path, name: str, *, handler: str | Path, **given: str | Path | Sequence[Path]) -> Path:
    """A `.mar` in a model store. `given`: the archiver's other arguments, as `model_file`, `extra_files`."""
    store.mkdir(parents=True, exist_ok=True)
    arguments = {"model_name": name, "version": "1.0", "handler": handler, "export_path": store, **given}
    words: list[str] = []
    for key, value in arguments.items():
        text = str(value) if isinstance(value, str | Path) else ",".join(map(str, value))
        words += [f"--{key.replace('_', '-')}", text]
    environments.run_archiver(words)
    return store / f"{name}.mar"


@contextmanager
def theirs(store: Path, folder: Path, *, config: Mapping[str, object]) -> Iterator[Running]:
    """The real TorchServe, with every archive of a store. Raises `NotInstalledError` where it cannot be installed."""
    environments.install("torchserve")
    program = [str(environments.folder("torchserve") / "bin" / "torchserve")]
    with _running(program, store, folder, config) as found:
        yield found


@contextmanager
def ours(store: Path, folder: Path, *, config: Mapping[str, object], more: Sequence[str] = ()) -> Iterator[Running]:
    """Flambeau, with the same command line, and the permission to run the archives' code."""
    program = [sys.executable, "-m", "flambeau", "torchserve", "--allow-code", *more]
    with _running(program, store, folder, config) as found:
        yield found


@contextmanager
def _running(program: list[str], store: Path, folder: Path, config: Mapping[str, object]) -> Iterator[Running]:
    folder.mkdir(parents=True)
    ports = {name: free_port() for name in ("inference", "management", "metrics")}
    lines = [f"{name}_address=http://127.0.0.1:{port}" for name, port in ports.items()]
    called = {name: free_port() for name in ("inference", "management")}
    lines += [f"grpc_{name}_port={port}" for name, port in called.items()]
    lines += [f"initial_worker_port={free_port()}", "disable_token_authorization=true", "enable_model_api=true"]
    lines += [f"{key}={value}" for key, value in config.items()]
    (folder / "config.properties").write_text("\n".join(lines) + "\n")
    command = [
        *program, "--start", "--foreground", "--ncs", "--model-store", str(store), "--models", "all",
        "--ts-config", "config.properties",
    ]  # fmt: skip
    path = f"{Path(python('torchserve')).parent}:{os.environ['PATH']}"  # TorchServe starts the first `python` there
    own = {**os.environ, "PATH": path, "TMPDIR": str(folder)}  # where it notes its process: one there, at most
    began = time.monotonic()
    server = Server(command, environment=own, folder=folder, log=folder / "log")
    url, management = (f"http://127.0.0.1:{ports[name]}" for name in ("inference", "management"))
    grpc, grpc_management = (f"127.0.0.1:{called[name]}" for name in ("inference", "management"))
    try:
        names = [each.name.partition(".")[0] for each in sorted(store.iterdir())]
        workers = int(str(config.get("default_workers_per_model", 1)))
        _wait(server, management, names, workers, folder / "log")
        started = time.monotonic() - began
        yield Running(url, management, grpc, grpc_management, server, folder / "log", started)
    finally:
        server.stop()


def _wait(server: Server, management: str, names: Sequence[str], workers: int, log: Path) -> None:
    """Return when each model has so many workers that answer. TorchServe opens its ports long before."""
    deadline = time.monotonic() + _START_SECONDS
    for name in names:
        while _ready(management, name) < workers:
            if server.ended or time.monotonic() > deadline:
                raise RuntimeError(f"{name} has not {workers} workers: {log.read_text()[-2000:]}")
            time.sleep(_POLL)


def _ready(management: str, name: str) -> int:
    """How many workers of a model answer."""
    try:
        answered = requests.get(f"{management}/models/{name}", timeout=5)
    except requests.RequestException:
        return 0
    if answered.status_code != 200:
        return 0
    return sum(each["status"] == "READY" for each in answered.json()[0]["workers"])
