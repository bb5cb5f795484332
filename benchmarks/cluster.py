"""`python -m benchmarks.cluster`: our runner over Ray beside our processes and beside a plain Ray Serve application.

All three have two replicas on the cores of this machine and answer with the same graph and engine. It needs the extra
`ray`, `ray[serve]` and python-multipart, and the files that `python -m benchmarks` has made.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import click

from benchmarks import load
from benchmarks.apps.order import Order
from benchmarks.environments import WORK
from benchmarks.one_group import one_group
from benchmarks.processes import Server, free_port
from benchmarks.work import FILES, WORKS, Work, request, right_text

_STARTUP = 120.0  # seconds
_ROOT = Path(__file__).parent.parent


def _commands(work: Work, port: int) -> dict[str, list[str]]:
    flambeau = [sys.executable, "-m", "flambeau", "serve", str(FILES / work.name), "--port", str(port)]
    flambeau += ["--replicas", "2", "--threads", "1", "--log-level", "warning"]
    return {
        "processes": flambeau,
        "ray": [*flambeau, "--runner", "ray", "--ray-address", "local"],
        "plain Ray Serve": [sys.executable, "-m", "benchmarks.apps.rays"],
    }


def _measured(name: str, work: Work, clients: list[int], seconds: float) -> dict[str, object]:
    port = free_port()
    order = Order(work.name, "onnx", FILES, port)
    environment = os.environ | order.environment() | {"PYTHONPATH": f"{_ROOT / 'src'}:{_ROOT}"}
    with tempfile.TemporaryDirectory(prefix="flambeau-bench-") as folder:
        wire = Path(folder, "request")
        wire.write_bytes(request(work, "form", "/predict", port))
        server = Server(
            _commands(work, port)[name], environment=environment, folder=Path(folder), log=Path(folder, "log")
        )
        try:
            _first_answer(wire, port, right_text(work))
            row: dict[str, object] = {"server": name, "work": work.name}
            for count in clients:
                before = _cpu_seconds(server)
                window = load.run(wire, port=port, clients=count, text=right_text(work), seconds=seconds, warmup=0.0)
                each = 1000 * (_cpu_seconds(server) - before) / max(1, window.good)
                times = f"p50 {window.p50_ms:.1f} p99 {window.p99_ms:.1f} ms, {each:.1f} ms of a core"
                row[f"{count} clients"] = f"{window.per_second:.0f}/s {times}"
                row["wrong"] = window.wrong + int(str(row.get("wrong", 0)))
            row["memory"] = f"{server.memory() / 1e6:.0f} MB"
            return row
        finally:
            server.stop()


def _cpu_seconds(server: Server) -> float:
    """The time of cores that all of its processes have taken: unlike a rate, it does not depend on the neighbours."""
    ticks = 0
    for pid in server.processes():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _first_answer(wire: Path, port: int, text: str) -> None:
    head, _, body = wire.read_bytes().partition(b"\r\n\r\n")
    kind = next(line.split(": ")[1] for line in head.decode().split("\r\n") if line.startswith("Content-Type"))
    until = time.monotonic() + _STARTUP
    while True:
        url = f"http://127.0.0.1:{port}/predict"
        asked = urllib.request.Request(url, body, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(asked, timeout=10) as answer:  # noqa: S310
                if text in answer.read().decode():
                    return
        except OSError:
            pass
        if time.monotonic() > until:
            raise click.ClickException("the server gave no right answer")
        time.sleep(0.3)


@click.command()
@click.option("--seconds", default=8.0, show_default=True, help="How long each window is.")
@click.option("--work", "works", multiple=True, default=("lite0", "tiny"), show_default=True)
@click.option("--rounds", default=1, show_default=True, help="How often, in turns.")
@click.option("--clients", "clients", multiple=True, default=(1, 8, 32), show_default=True)
def main(seconds: float, works: tuple[str, ...], rounds: int, clients: tuple[int, ...]) -> None:
    """Measure the three, one after the other."""
    if not (FILES / "photograph.jpg").exists():
        raise click.ClickException(f"{WORK} has no files: run python -m benchmarks first")
    with one_group() as alike:
        if not alike:
            click.echo("no control group can be made here: where cores are busy, trust the core's time alone", err=True)
        for name in works:
            for server in list(_commands(WORKS[name], 0)) * rounds:
                click.echo(json.dumps(_measured(server, WORKS[name], list(clients), seconds)))


if __name__ == "__main__":
    try:
        main()
    except subprocess.SubprocessError as error:
        raise SystemExit(str(error)) from None
