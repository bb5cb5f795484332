"""`python -m benchmarks.torchserve_turns`: one `.mar` in the real TorchServe and in Flambeau, in turns; then workers of
each are killed under load.

The archive is `image_classifier` with ResNet-18 (random weights), made by the real archiver. Both servers are given the
same command line, the same config.properties and as many workers as there are cores, and have their own defaults for
the rest. The machine's other work counts for both: beside requests a second stands the processor time of one.
"""

import http.client
import json
import os
import signal
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click
import requests

from benchmarks import load, machine, torchserve_servers, work
from benchmarks.peers import CORES
from benchmarks.torchserve_servers import Running, archive

_NETWORK = """
from torchvision.models.resnet import BasicBlock, ResNet


class Classifier(ResNet):
    def __init__(self):
        super().__init__(BasicBlock, [2, 2, 2, 2])
"""
_CLIENTS = (8, 32)
_SERVERS: dict[str, Callable[..., AbstractContextManager[Running]]] = {
    "TorchServe": torchserve_servers.theirs, "Flambeau": torchserve_servers.ours,
}  # fmt: skip
_MIB = 2**20
_WARMUP = 1.0  # seconds
_FEWEST = 60  # answers that a window needs, unless it is ten times as long by then

Row = dict[str, Any]


def _make_store(folder: Path) -> Path:
    import torch

    from flambeau.architectures import torchvision_compat

    torchvision_compat.declare_missing()
    from torchvision.models import resnet18

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), folder / "net.pth")
    (folder / "net.py").write_text(_NETWORK)
    store = folder / "store"
    archive(store, "m", handler="image_classifier", model_file=folder / "net.py", serialized_file=folder / "net.pth")
    return store


def _windows(server: Running, body: bytes, folder: Path, *, seconds: float) -> Row:
    """What a server does under load, and what it takes of the machine."""
    port = int(server.url.rpartition(":")[2])
    best = next(iter(requests.post(f"{server.url}/predictions/m", data=body, timeout=300).json()))
    head = (
        f"POST /predictions/m HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: image/jpeg\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    (folder / "request").write_bytes(head.encode() + body)
    found: Row = {"start_s": server.started, "idle_mib": server.server.memory() / _MIB}
    for clients in _CLIENTS:
        before = server.server.cpu()
        window = load.run(
            folder / "request", port=port, clients=clients, text=f'"{best}"', seconds=seconds, warmup=_WARMUP,
            fewest=_FEWEST, longest=10 * seconds,
        )  # fmt: skip
        if not window.good:
            raise click.ClickException(
                f"{server.url} answered nothing in {window.seconds:g} s: the machine is too busy"
            )
        after = server.server.cpu()
        spent = sum(used - before.get(pid, 0.0) for pid, used in after.items())
        found[f"{clients}/s"], found[f"{clients} p50 ms"] = window.per_second, window.p50_ms
        found[f"{clients} wrong"] = window.wrong
        # the warm-up is asked too, at the same rate
        found[f"{clients} cpu ms"] = 1000 * spent / (window.per_second * (window.seconds + _WARMUP))
    found["loaded_mib"] = server.server.memory() / _MIB
    return found


def _kill(server: Running, body: bytes, *, clients: int, kills: int) -> Row:
    """What clients get while workers are killed: every one of them asks again when it is answered, or refused."""
    port = int(server.url.rpartition(":")[2])
    ledger: Counter[str] = Counter()
    over = threading.Event()
    best = next(iter(requests.post(f"{server.url}/predictions/m", data=body, timeout=300).json()))

    def ask() -> None:
        while not over.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            try:
                connection.request("POST", "/predictions/m", body, {"Content-Type": "image/jpeg"})
                answered = connection.getresponse()
                text = answered.read()
                right = answered.status == 200 and next(iter(json.loads(text))) == best
                ledger["right" if right else f"status {answered.status}"] += 1
            except (OSError, http.client.HTTPException) as error:
                ledger[type(error).__name__] += 1
            finally:
                connection.close()

    asking = [threading.Thread(target=ask) for _ in range(clients)]
    for each in asking:
        each.start()
    for _ in range(kills):
        time.sleep(3.0)
        os.kill(_a_worker(server), signal.SIGKILL)
        _until_whole(server)
    over.set()
    for each in asking:
        each.join()
    lost = sum(count for what, count in ledger.items() if what != "right")
    return {"kills": kills, "asked": ledger.total(), "lost": lost, **ledger}


def _a_worker(server: Running) -> int:
    """A process that has the network: by what it was started with."""
    for pid in sorted(server.server.processes()):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"model_service_worker" in command or b"flambeau.runners.worker" in command:
            return pid
    raise click.ClickException(f"{server.url} has no worker")


def _until_whole(server: Running) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        [shown] = requests.get(f"{server.management}/models/m", timeout=30).json()
        if sum(each["status"] == "READY" for each in shown["workers"]) >= CORES:
            return
        time.sleep(0.1)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Turns of each server.")
@click.option("--seconds", default=8.0, show_default=True, type=click.FloatRange(1), help="Length of each window.")
@click.option("--work", "place", type=click.Path(path_type=Path), help="Keep the archive and the bundle there.")
@click.option("--kills", default=3, show_default=True, type=click.IntRange(0), help="Workers killed in each server.")
def main(*, rounds: int, seconds: float, kills: int, place: Path | None) -> None:
    """Measure, and print a table and a line of JSON."""
    body = work.photograph()
    turns: dict[str, list[Row]] = {name: [] for name in _SERVERS}
    ledgers: dict[str, Row] = {}
    config = {"default_workers_per_model": CORES}
    with tempfile.TemporaryDirectory(prefix="torchserve-turns-") as text:
        folder = Path(text)
        kept = place or folder
        store = kept / "store"
        if not store.is_dir():
            _make_store(kept)
        os.environ["FLAMBEAU_CACHE"] = str(kept / "cache")
        with _SERVERS["Flambeau"](store, folder / "first", config=config) as server:
            first = server.started  # it builds the bundle, unless it is kept
        for turn in range(rounds):
            for name, start in _SERVERS.items():
                inside = folder / f"{name}-{turn}"
                with start(store, inside, config=config) as server:
                    turns[name].append(_windows(server, body, inside, seconds=seconds))
                    if kills and turn == rounds - 1:
                        ledgers[name] = _kill(server, body, clients=_CLIENTS[0], kills=kills)
                click.echo(f"{name}: {json.dumps(turns[name][-1])}", err=True)
    medians = {
        name: {key: round(statistics.median(row[key] for row in rows), 2) for key in rows[0]}
        for name, rows in turns.items()
    }
    for line in _table(medians, ledgers):
        click.echo(line)
    click.echo(json.dumps({
        "machine": machine.describe(), "rounds": rounds, "seconds": seconds, "load": os.getloadavg()[0],
        "first_start_s": round(first, 2), "medians": medians, "turns": turns, "kill": ledgers,
    }))  # fmt: skip


def _table(medians: dict[str, Row], ledgers: dict[str, Row]) -> list[str]:
    names = list(medians)
    lines = [f"|  | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    lines += [f"| {key} | {' | '.join(f'{medians[name][key]:g}' for name in names)} |" for key in medians[names[0]]]
    if ledgers:
        lost = (f"{ledgers[name]['lost']} of {ledgers[name]['asked']}" for name in names)
        lines.append(f"| lost while workers were killed | {' | '.join(lost)} |")
    return lines


if __name__ == "__main__":
    main()
