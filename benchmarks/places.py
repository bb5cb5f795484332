"""`python -m benchmarks.places`: a detector and a segmenter of torchvision, served by Flambeau and by eager PyTorch in
Flask under gunicorn with a worker for each core, in turns.

Both answer the same photograph, and their answers are compared first: boxes by their overlap, maps pixel by pixel. What
each turn measures are requests a second and the seconds of all cores that a request takes of the server's processes.
"""

import contextlib
import http.client
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
from PIL import Image

from benchmarks import machine
from benchmarks.processes import Server, free_port
from flambeau.answers.boxes import overlaps

_ROOT = Path(__file__).parents[1]
_PHOTOGRAPH = _ROOT / "src/flambeau/ui/static/samples/coffee.jpg"
_THRESHOLD = 0.7
_READY_SECONDS = 180.0
_SAME = 0.995  # of the pixels: those between two classes fall either way, and pictures are resized by other libraries


class Work(msgspec.Struct, frozen=True):
    """A network: its name here, torchvision's, its classes, and where each server answers it."""

    name: str
    network: str
    classes: int
    ours: str
    theirs: str


_WORKS = (
    Work("detector", "ssdlite320_mobilenet_v3_large", 3, f"/predict?threshold={_THRESHOLD}", "/detect"),
    Work("segmenter", "lraspp_mobilenet_v3_large", 21, "/predict", "/segment"),
)


class Turns(msgspec.Struct):
    """The medians of one work: requests a second and milliseconds of processor time a request, and of their ratios."""

    work: str
    ours_per_second: float
    theirs_per_second: float
    ours_cpu_ms: float
    theirs_cpu_ms: float
    faster: float
    cheaper: float

    def line(self) -> str:
        """A row of the table."""
        return (
            f"{self.work:12} {self.ours_per_second:8.2f} {self.theirs_per_second:8.2f} {self.faster:8.2f} "
            f"{self.ours_cpu_ms:9.0f} {self.theirs_cpu_ms:9.0f} {self.cheaper:8.2f}"
        )


_HEAD = (
    f"{'':12} {'ours /s':>8} {'eager /s':>8} {'times':>8} {'ours CPU':>9} {'eager CPU':>9} {'times':>8}"
    "  (CPU: ms a request)"
)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Turns of each server.")
@click.option("--seconds", default=8.0, show_default=True, type=click.FloatRange(0.5), help="Length of each turn.")
@click.option("--clients", default=4, show_default=True, type=click.IntRange(1), help="Clients, one request each.")
def main(rounds: int, seconds: float, clients: int) -> None:
    """Measure a detector and a segmenter against eager PyTorch under gunicorn, in turns."""
    photograph = _photograph()
    with tempfile.TemporaryDirectory(prefix="flambeau-places-") as name:
        found = [_compare(work, Path(name), photograph, rounds, seconds, clients) for work in _WORKS]
    click.echo("\n".join([_HEAD, *(each.line() for each in found)]))
    click.echo(json.dumps({"turns": msgspec.to_builtins(found), "machine": machine.describe()}))


def _photograph() -> bytes:
    """640 × 426 pixels, as a PNG: two decoders of JPEG may differ."""
    file = io.BytesIO()
    with Image.open(_PHOTOGRAPH) as image:
        image.convert("RGB").resize((640, 426)).save(file, "PNG")
    return file.getvalue()


def _compare(work: Work, folder: Path, photograph: bytes, rounds: int, seconds: float, clients: int) -> Turns:
    weights = folder / f"{work.network}.pth"
    _run(sys.executable, "-m", "benchmarks.places_weights", work.network, str(work.classes), str(weights))
    rates: list[tuple[float, float]] = []
    costs: list[tuple[float, float]] = []
    with _ours(work, weights, folder) as ours, _theirs(work, weights, folder) as theirs:
        _refuse_unlike(work, _ask(ours[1], work.ours, photograph), _ask(theirs[1], work.theirs, photograph))
        for _ in range(rounds):
            first = _turn(*ours, work.ours, photograph, seconds, clients)
            second = _turn(*theirs, work.theirs, photograph, seconds, clients)
            rates.append((first[0], second[0]))
            costs.append((first[1], second[1]))
    middle = statistics.median
    return Turns(
        work.name,
        ours_per_second=middle(one for one, _ in rates), theirs_per_second=middle(other for _, other in rates),
        ours_cpu_ms=middle(one for one, _ in costs), theirs_cpu_ms=middle(other for _, other in costs),
        faster=middle(one / other for one, other in rates), cheaper=middle(other / one for one, other in costs),
    )  # fmt: skip


def _run(*command: str) -> None:
    done = subprocess.run(command, cwd=_ROOT, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{' '.join(command[1:4])}: {done.stderr[-800:]}")


def _environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(_ROOT), str(_ROOT / "src")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


@contextlib.contextmanager
def _ours(work: Work, weights: Path, folder: Path) -> Iterator[tuple[Server, int]]:
    """Flambeau with a worker for each core."""
    bundle = folder / work.name
    _run(sys.executable, "-m", "flambeau", "build", str(weights), "-o", str(bundle), "--engine", "onnxruntime")
    port = free_port()
    command = [sys.executable, "-m", "flambeau", "serve", str(bundle), "--port", str(port), "--replicas", str(_cores())]
    with _started(command, {}, folder, port, work.ours) as server:
        yield server, port


@contextlib.contextmanager
def _theirs(work: Work, weights: Path, folder: Path) -> Iterator[tuple[Server, int]]:
    port = free_port()
    more = {
        "PLACES_WEIGHTS": str(weights), "PLACES_NETWORK": work.network, "PLACES_CLASSES": str(work.classes),
        "PLACES_THRESHOLD": str(_THRESHOLD),
    }  # fmt: skip
    command = [sys.executable, "-m", "gunicorn", "-w", str(_cores()), "-b", f"127.0.0.1:{port}", "--timeout", "300"]
    with _started([*command, "benchmarks.apps.places:app"], more, folder, port, work.theirs) as server:
        yield server, port


@contextlib.contextmanager
def _started(command: list[str], more: dict[str, str], folder: Path, port: int, path: str) -> Iterator[Server]:
    log = folder / f"{path.strip('/').partition('?')[0]}-{port}.log"
    server = Server(command, environment=_environment(**more), folder=_ROOT, log=log)
    try:
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            try:
                _ask(port, path, b"no picture", status=(400, 415, 422, 500))
                break
            except OSError:
                if server.ended or time.monotonic() > deadline:
                    raise click.ClickException(f"{command[2]} did not start: {log.read_text()[-800:]}") from None
                time.sleep(0.2)
        yield server
    finally:
        server.stop()


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _ask(port: int, path: str, body: bytes, *, status: tuple[int, ...] = (200,)) -> bytes:
    """The body of the answer. Raises `OSError` where nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    headers = {"Content-Type": "image/png", "Accept": "image/png, application/json;q=0.5"}
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
    finally:
        connection.close()
    if answer.status not in status:
        raise click.ClickException(f"{path} answered {answer.status}: {data[:200]!r}")
    return data


def _turn(server: Server, port: int, path: str, body: bytes, seconds: float, clients: int) -> tuple[float, float]:
    """Requests a second, and the milliseconds of processor time that one takes of the server."""
    counts = [0] * clients
    ends = time.monotonic() + seconds

    def live(place: int) -> None:
        while time.monotonic() < ends:
            _ask(port, path, body)
            counts[place] += 1

    before, began = sum(server.cpu().values()), time.monotonic()
    threads = [threading.Thread(target=live, args=(place,)) for place in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took, spent = time.monotonic() - began, sum(server.cpu().values()) - before
    if not all(counts):
        raise click.ClickException(f"a client of {path} got no answer: make the turns longer")
    return sum(counts) / took, 1000 * spent / sum(counts)


def _refuse_unlike(work: Work, ours: bytes, theirs: bytes) -> None:
    """Raise unless both servers gave the same answer."""
    if work.name == "segmenter":
        maps = [np.asarray(Image.open(io.BytesIO(each))) for each in (ours, theirs)]
        share = float((maps[0] == maps[1]).mean())
        if share < _SAME or len(np.unique(maps[0])) < 2:
            raise click.ClickException(f"only {share:.2%} of the pixels have the same class")
        return
    first, second = (json.loads(each)["predictions"] for each in (ours, theirs))
    boxes = [np.array([_corners(each["box"]) for each in found]).reshape(-1, 4) for found in (first, second)]
    if not len(boxes[0]) or len(boxes[0]) != len(boxes[1]) or overlaps(*boxes).max(axis=1).min() < 0.99:
        raise click.ClickException(f"the boxes are others: {len(boxes[0])} and {len(boxes[1])}")


def _corners(box: Any) -> list[float]:
    return list(box.values()) if isinstance(box, dict) else box


if __name__ == "__main__":
    main()
