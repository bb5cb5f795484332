"""`python -m benchmarks.many_models`: what many models in one service cost, and what they cost each other.

A hundred small models on demand, within memory for ten: the start, the memory, and one request to each in random order.
With `--peer`, MLServer serves the same hundred, all of them in memory, for it loads none on demand.
Ten photograph classifiers, of which one is busy: its throughput beside the nine, against alone, in alternation.
"""

import contextlib
import http.client
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
from safetensors.numpy import save_file

from benchmarks import environments, load, machine, work
from benchmarks.processes import Server, free_port
from flambeau.bundle import storage
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache

_ROOT = Path(__file__).parents[1]
_NUMBERS = [5.1, 3.5, 1.4, 0.2]
_MEMORY_OF_TEN = 10 * 90_000_000  # bytes: a worker of one small model takes less
_READY_SECONDS = 300.0
_FACTORS = 4  # different networks among the small ones
_TOLERANCE = 1e-3


class ManyModels(msgspec.Struct):
    """The figures. Seconds, bytes, and requests a second."""

    models: int
    start_seconds: float
    start_bytes: int
    median_seconds: float
    slowest_seconds: float
    loaded_at_the_end: int
    most_bytes: int
    wrong: int
    busy_alone: float
    busy_beside_nine: float
    peer: "Peer | None"
    machine: dict[str, str]

    @property
    def ratio(self) -> float:
        """Of the busy model's throughput beside nine idle ones to that alone."""
        return self.busy_beside_nine / self.busy_alone


class Peer(msgspec.Struct):
    """The figures of MLServer, with all models in memory."""

    version: str
    start_seconds: float
    start_bytes: int
    median_seconds: float
    slowest_seconds: float
    most_bytes: int
    wrong: int


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--models", default=100, type=click.IntRange(2), show_default=True, help="Small models.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Turns of the busy model.")
@click.option("--seconds", default=5.0, show_default=True, type=click.FloatRange(0.5), help="Length of each turn.")
@click.option("--peer", is_flag=True, help="Measure MLServer with the same small models, too. It is installed first.")
def main(models: int, rounds: int, seconds: float, *, peer: bool) -> None:
    """Measure a service of many models: memory, first requests, and one busy model among idle ones."""
    with tempfile.TemporaryDirectory(prefix="flambeau-models-") as folder:
        small = _small(Path(folder), models)
        alone, ten = _photographs(Path(folder))
        start, first, latencies, loaded, most, wrong = _on_demand(small, models, Path(folder))
        other = _mlserver(small, models, Path(folder)) if peer else None
        rates: dict[Path, list[float]] = {alone: [], ten: []}
        for _ in range(rounds):
            for repository, turns in rates.items():
                turns.append(_busy(repository, Path(folder), seconds))
    found = ManyModels(
        models, start, first, statistics.median(latencies), max(latencies), loaded, most, wrong,
        statistics.median(rates[alone]), statistics.median(rates[ten]), other, machine.describe(),
    )  # fmt: skip
    click.echo(
        f"{models} small models on demand, memory for ten: ready in {start:.2f} s with {first / 1e6:.0f} MB\n"
        f"one request to each, in random order: median {found.median_seconds:.2f} s, "
        f"slowest {found.slowest_seconds:.2f} s\n"
        f"at most {most / 1e6:.0f} MB for all processes, {loaded} models loaded at the end, {wrong} wrong answers\n"
        f"one busy photograph classifier: {found.busy_alone:.1f}/s alone, {found.busy_beside_nine:.1f}/s beside nine "
        f"idle ones, {100 * found.ratio:.0f} %"
    )
    if other is not None:
        click.echo(
            f"MLServer {other.version}, all {models} in memory: ready in {other.start_seconds:.2f} s with "
            f"{other.start_bytes / 1e6:.0f} MB; one request to each: median {other.median_seconds:.3f} s, slowest "
            f"{other.slowest_seconds:.2f} s; at most {other.most_bytes / 1e6:.0f} MB, {other.wrong} wrong answers"
        )
    click.echo(json.dumps(msgspec.to_builtins(found)))
    sys.exit(wrong + (other.wrong if other else 0) > 0)


def _small(folder: Path, models: int) -> Path:
    """A repository of small networks that multiply the sum of their input by 0, 1, 2 or 3, in turn."""
    repository = folder / "small"
    repository.mkdir()
    for factor in range(_FACTORS):
        weights = folder / f"times{factor}.safetensors"
        save_file({"0.weight": np.full((3, 4), factor, np.float32), "0.bias": np.zeros(3, np.float32)}, weights)
        click.echo(f"building small network {factor + 1} of {_FACTORS} ...", err=True)
        options = SourceOptions(source=str(weights))
        made = build_cache.build_into(options, folder / f"times{factor}", progress=lambda event: None)
        for number in range(factor, models, _FACTORS):
            shutil.copytree(made.path, repository / f"net{number}")
    return repository


def _photographs(folder: Path) -> tuple[Path, Path]:
    """A repository of one photograph classifier, and one of ten."""
    bundle = build_cache.open_source(SourceOptions(), progress=lambda event: None)
    repositories = folder / "one", folder / "ten"
    for repository, count in zip(repositories, (1, 10), strict=True):
        repository.mkdir()
        for number in range(count):
            (repository / f"photos{number}").symlink_to(bundle.path)
    return repositories


@contextlib.contextmanager
def _serving(repository: Path, folder: Path, *flags: str) -> Iterator[tuple[Server, int, float]]:
    """Flambeau, ready: itself, its port, and the seconds until it was."""
    port = free_port()
    command = [sys.executable, "-m", "flambeau", "serve", str(repository), "--port", str(port), *flags]
    with _started(command, port, folder, ready="/readyz") as (server, seconds):
        yield server, port, seconds


@contextlib.contextmanager
def _started(command: list[str], port: int, folder: Path, *, ready: str) -> Iterator[tuple[Server, float]]:
    """A server that is ready, and the seconds until it was."""
    began = time.monotonic()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (_ROOT, _ROOT / "src")))}
    server = Server(command, environment=environment, folder=folder, log=folder / "log")
    try:
        while not _answers(port, ready):
            if server.ended or time.monotonic() - began > _READY_SECONDS:
                raise click.ClickException(f"the server did not start: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)
        yield server, time.monotonic() - began
    finally:
        server.stop()


def _answers(port: int, path: str) -> bool:
    try:
        return _ask(port, "GET", path)[0] == 200
    except OSError:
        return False


def _ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        text = None if body is None else json.dumps(body)
        connection.request(method, path, text, {"Content-Type": "application/json"} if text else {})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"null")
    finally:
        connection.close()


def _on_demand(repository: Path, models: int, folder: Path) -> tuple[float, int, list[float], int, int, int]:
    """Start, and one request to each model: seconds and bytes at the start, seconds of each, models loaded at the end,
    the most bytes, and how many answers were wrong."""
    flags = ("--load", "on-demand", "--max-memory", str(_MEMORY_OF_TEN), "--replicas", "1")
    with _serving(repository, folder, *flags) as (server, port, seconds):
        first = most = server.memory()
        latencies, wrong = [], 0
        for number in _shuffled(models):
            began = time.monotonic()
            status, body = _ask(port, "POST", f"/predict/net{number}", {"input": _NUMBERS})
            latencies.append(time.monotonic() - began)
            right = number % _FACTORS * sum(_NUMBERS)
            wrong += status != 200 or any(abs(each - right) > _TOLERANCE for each in body["output"])
            most = max(most, server.memory())
        listed = _ask(port, "GET", "/models")[1]["models"]
    return seconds, first, latencies, sum(each["state"] == "ready" for each in listed), most, wrong


def _shuffled(models: int) -> list[int]:
    order = list(range(models))
    random.Random(1).shuffle(order)  # noqa: S311 (a run is to be repeatable)
    return order


def _mlserver(repository: Path, models: int, folder: Path) -> Peer:
    """The same for MLServer, with one worker process, as is its default."""
    environments.install("mlserver")
    served = folder / "mlserver"
    port = free_port()
    settings = {
        "debug": False, "host": "127.0.0.1", "http_port": port, "grpc_port": free_port(), "metrics_port": free_port(),
        "metrics_endpoint": None, "parallel_workers": 1,
    }  # fmt: skip
    for number in range(models):
        (served / f"net{number}").mkdir(parents=True)
        model = {
            "name": f"net{number}", "implementation": "benchmarks.apps.mlserver_small.SmallGraph",
            "parameters": {"uri": str(repository / f"net{number}" / storage.ONNX)},
        }  # fmt: skip
        (served / f"net{number}" / "model-settings.json").write_text(json.dumps(model))
    (served / "settings.json").write_text(json.dumps(settings))
    command = [str(environments.folder("mlserver") / "bin" / "mlserver"), "start", str(served)]
    body = {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [_NUMBERS]}]}
    with _started(command, port, folder, ready=f"/v2/models/net{models - 1}/ready") as (server, seconds):
        first = most = server.memory()
        latencies, wrong = [], 0
        for number in _shuffled(models):
            began = time.monotonic()
            status, answer = _ask(port, "POST", f"/v2/models/net{number}/infer", body)
            latencies.append(time.monotonic() - began)
            right = number % _FACTORS * sum(_NUMBERS)
            wrong += status != 200 or any(abs(each - right) > _TOLERANCE for each in answer["outputs"][0]["data"])
            most = max(most, server.memory())
    version = environments.version("mlserver", "mlserver")
    return Peer(version, seconds, first, statistics.median(latencies), max(latencies), most, wrong)


def _busy(repository: Path, folder: Path, seconds: float) -> float:
    """Photographs a second of the first model of a repository."""
    work.make_files()
    with _serving(repository, folder, "--default", "photos0") as (_, port, _):
        wire = folder / "request"
        wire.write_bytes(work.request(work.WORKS["lite0"], "raw", "/predict/photos0", port))
        window = load.run(wire, port=port, clients=8, text="n02124075", seconds=seconds, warmup=1.0)
    if window.wrong:
        raise click.ClickException(f"{window.wrong} answers were not right: {window.complaint}")
    return window.per_second


if __name__ == "__main__":
    main()
