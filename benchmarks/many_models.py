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
from collections.abc import Callable, Iterator, Sequence
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
NUMBERS = [5.1, 3.5, 1.4, 0.2]
"""What every small network is asked."""

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
        small = small_repository(folder, models)
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


def small_repository(folder: Path, models: int) -> Path:
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
def serving(repository: Path, folder: Path, *flags: str) -> Iterator[tuple[Server, int, float]]:
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
        status, body = _ask(port, "POST", f"/predict/net{number}", {"input": NUMBERS})
        return body["output"] if status == 200 else None

    with serving(repository, folder, *flags) as (process, port, seconds):
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
        right = number % _FACTORS * sum(NUMBERS)
        wrong += found is None or any(abs(each - right) > _TOLERANCE for each in found)
        most = max(most, process.memory())
    return Fleet(server, seconds, first, statistics.median(latencies), max(latencies), most, wrong)


class MlServer:
    """MLServer with one worker process, as is its default, and these models in it: it loads none on demand."""

    def __init__(self, repository: Path, names: Sequence[str], folder: Path) -> None:
        self._names = names
        self._folder = folder
        self._served = folder / "mlserver"
        self.port, self.grpc_port = free_port(), free_port()
        settings = {
            "debug": False, "host": "127.0.0.1", "http_port": self.port, "grpc_port": self.grpc_port,
            "metrics_port": free_port(), "metrics_endpoint": None, "parallel_workers": 1,
        }  # fmt: skip
        for name in names:
            (self._served / name).mkdir(parents=True)
            model = {
                "name": name, "implementation": "benchmarks.apps.mlserver_small.SmallGraph",
                "parameters": {"uri": str(repository / name / storage.ONNX)},
            }  # fmt: skip
            (self._served / name / "model-settings.json").write_text(json.dumps(model))
        (self._served / "settings.json").write_text(json.dumps(settings))

    @contextlib.contextmanager
    def running(self) -> Iterator[tuple[Server, int, float]]:
        """The server, ready: itself, its port, and the seconds until it was."""
        command = [str(environments.folder("mlserver") / "bin" / "mlserver"), "start", str(self._served)]
        with _started(command, self.port, self._folder, ready=self._ready) as (process, seconds):
            yield process, self.port, seconds

    def _ready(self, port: int) -> bool:
        states = _ask(port, "POST", "/v2/repository/index", {})[1]
        return len(states) == len(self._names) and all(each["state"] == "READY" for each in states)


def _mlserver(repository: Path, models: int, folder: Path) -> Fleet:
    environments.install("mlserver")
    body = {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [NUMBERS]}]}
    peer = MlServer(repository, [f"net{number}" for number in range(models)], folder)

    def outputs(number: int) -> list[float] | None:
        status, answer = _ask(peer.port, "POST", f"/v2/models/net{number}/infer", body)
        return answer["outputs"][0]["data"] if status == 200 else None

    with peer.running() as (process, _, seconds):
        name = f"MLServer {environments.version('mlserver', 'mlserver')}"
        return _fleet(name, process, models, seconds, outputs)


def _busy(repository: Path, folder: Path, seconds: float) -> float:
    """Photographs a second of the first model of a repository."""
    work.make_files()
    with serving(repository, folder, "--default", "photos0") as (_, port, _):
        wire = folder / "request"
        wire.write_bytes(work.request(work.WORKS["lite0"], "raw", "/predict/photos0", port))
        window = load.run(wire, port=port, clients=8, text="n02124075", seconds=seconds, warmup=1.0)
    if window.wrong:
        raise click.ClickException(f"{window.wrong} answers were not right: {window.complaint}")
    return window.per_second


if __name__ == "__main__":
    main()
