"""`python -m benchmarks.many_models`: what many models in one service cost, and what they cost each other.

A hundred small models: on demand within memory for ten; all of them in threads of one process; and, with
`--peer`, all of them in MLServer. Of each: the start, the memory, and one request to each model in random order.
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
from collections.abc import Callable, Iterator
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


class Fleet(msgspec.Struct):
    """One server with all the small models: its figures in seconds and bytes, and the answers that were not right."""

    server: str
    start_seconds: float
    start_bytes: int
    median_seconds: float
    slowest_seconds: float
    most_bytes: int
    wrong: int

    def line(self) -> str:
        """A row of the table."""
        times = f"{1000 * self.median_seconds:9.1f} {1000 * self.slowest_seconds:9.1f}"
        memory = f"{self.most_bytes / 1e6:9.0f}"
        return (
            f"{self.server:28} {self.start_seconds:8.2f} {self.start_bytes / 1e6:9.0f} {times} {memory} {self.wrong:6}"
        )


_HEAD = (
    f"{'small models in':28} {'ready s':>8} {'start MB':>9} {'median ms':>9} {'most ms':>9} {'most MB':>9} {'wrong':>6}"
)


class ManyModels(msgspec.Struct):
    """The figures. Photographs a second."""

    models: int
    fleets: list[Fleet]
    busy_alone: float
    busy_beside_nine: float
    machine: dict[str, str]

    @property
    def ratio(self) -> float:
        """Of the busy model's throughput beside nine idle ones to that alone."""
        return self.busy_beside_nine / self.busy_alone


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--models", default=100, type=click.IntRange(2), show_default=True, help="Small models.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Turns of the busy model.")
@click.option("--seconds", default=5.0, show_default=True, type=click.FloatRange(0.5), help="Length of each turn.")
@click.option("--peer", is_flag=True, help="Measure MLServer with the same small models, too. It is installed first.")
def main(models: int, rounds: int, seconds: float, *, peer: bool) -> None:
    """Measure a service of many models: memory, first requests, and one busy model among idle ones."""
    with tempfile.TemporaryDirectory(prefix="flambeau-models-") as name:
        folder = Path(name)
        small = _small(folder, models)
        on_demand = ("--load", "on-demand", "--max-memory", str(_MEMORY_OF_TEN), "--replicas", "1")
        fleets = [
            _flambeau("Flambeau, on demand", small, models, folder, *on_demand),
            _flambeau("Flambeau, threads", small, models, folder, "--runner", "threads", "--replicas", "1"),
        ]
        if peer:
            fleets.append(_mlserver(small, models, folder))
        alone, ten = _photographs(folder)
        rates: dict[Path, list[float]] = {alone: [], ten: []}
        for _ in range(rounds):
            for repository, turns in rates.items():
                turns.append(_busy(repository, folder, seconds))
    busy_alone, beside_nine = statistics.median(rates[alone]), statistics.median(rates[ten])
    found = ManyModels(models, fleets, busy_alone, beside_nine, machine.describe())
    click.echo("\n".join([_HEAD, *(each.line() for each in fleets)]))
    click.echo(
        f"one busy photograph classifier: {found.busy_alone:.1f}/s alone, {found.busy_beside_nine:.1f}/s beside nine "
        f"idle ones, {100 * found.ratio:.0f} %"
    )
    click.echo(json.dumps(msgspec.to_builtins(found)))
    sys.exit(any(each.wrong for each in fleets if each.server.startswith("Flambeau")))


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
    with _started(command, port, folder, ready=lambda port: _ask(port, "GET", "/readyz")[0] == 200) as (
        server,
        seconds,
    ):
        yield server, port, seconds


@contextlib.contextmanager
def _started(
    command: list[str], port: int, folder: Path, *, ready: Callable[[int], bool]
) -> Iterator[tuple[Server, float]]:
    """A server that is ready, and the seconds until it was."""
    began = time.monotonic()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (_ROOT, _ROOT / "src")))}
    server = Server(command, environment=environment, folder=folder, log=folder / "log")
    try:
        while not _holds(ready, port):
            if server.ended or time.monotonic() - began > _READY_SECONDS:
                raise click.ClickException(f"the server did not start: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)
        yield server, time.monotonic() - began
    finally:
        server.stop()


def _holds(ready: Callable[[int], bool], port: int) -> bool:
    try:
        return ready(port)
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


def _flambeau(server: str, repository: Path, models: int, folder: Path, *flags: str) -> Fleet:
    """Flambeau with these flags."""

    def outputs(port: int, number: int) -> list[float] | None:
        status, body = _ask(port, "POST", f"/predict/net{number}", {"input": _NUMBERS})
        return body["output"] if status == 200 else None

    with _serving(repository, folder, *flags) as (process, port, seconds):
        return _fleet(server, process, models, seconds, lambda number: outputs(port, number))


def _fleet(
    server: str, process: Server, models: int, seconds: float, outputs: Callable[[int], list[float] | None]
) -> Fleet:
    """Ask each model once, in random order. `outputs` asks the one of that number; `None`: it did not answer."""
    order = list(range(models))
    random.Random(1).shuffle(order)  # noqa: S311 (a run is to be repeatable)
    first = most = process.memory()
    latencies, wrong = [], 0
    for number in order:
        began = time.monotonic()
        found = outputs(number)
        latencies.append(time.monotonic() - began)
        right = number % _FACTORS * sum(_NUMBERS)
        wrong += found is None or any(abs(each - right) > _TOLERANCE for each in found)
        most = max(most, process.memory())
    return Fleet(server, seconds, first, statistics.median(latencies), max(latencies), most, wrong)


def _mlserver(repository: Path, models: int, folder: Path) -> Fleet:
    """MLServer with one worker process, as is its default, and all models in it: it loads none on demand."""
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

    def ready(port: int) -> bool:
        states = _ask(port, "POST", "/v2/repository/index", {})[1]
        return len(states) == models and all(each["state"] == "READY" for each in states)

    def outputs(number: int) -> list[float] | None:
        status, answer = _ask(port, "POST", f"/v2/models/net{number}/infer", body)
        return answer["outputs"][0]["data"] if status == 200 else None

    name = f"MLServer {environments.version('mlserver', 'mlserver')}"
    with _started(command, port, folder, ready=ready) as (process, seconds):
        return _fleet(name, process, models, seconds, outputs)


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
