"""The peers, and how each is started: with the settings its own guide recommends for a processor, or better ones.

One engine thread for each of as many workers as there are cores is best for photographs everywhere (more threads than
cores is a cliff, not a slope). Tiny models gain by batching where a peer can. Nothing here measures.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import commands
from benchmarks.apps.order import Engine, Order
from benchmarks.environments import python
from benchmarks.work import FILES, Encoding, Work

CORES = len(os.sched_getaffinity(0))
"""Those that this process may use."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How many workers with how many engine threads, and up to how many requests at once after what wait (seconds)."""

    workers: int = CORES
    threads: int = 1
    batch: int = 1
    wait: float = 0.0


@dataclass(frozen=True, slots=True)
class Peer:
    """A server. `start` writes what it needs into a scratch folder and gives the command.

    `photographs` and `numbers` are its settings for the two kinds of work, `None` where it takes no part. `tuned`: it
    is not the recipe as written, so it is told its threads, and can be given another engine.
    """

    name: str
    environment: str
    start: Callable[[Order, Path], list[str]]
    path: str = "/predict"
    encoding: Encoding = "form"
    photographs: Setting | None = Setting()
    numbers: Setting | None = Setting()
    tuned: bool = True

    def setting(self, work: Work) -> str:
        """For people: how it is set for a work."""
        setting = self._setting(work)
        if self.environment == "" or setting is None:
            return "defaults" if self.start is commands.flambeau else " ".join(commands.TWO_FRONTS)
        if not self.tuned:
            return "as the recipe says"
        batch = f", batches of {setting.batch}" if setting.batch > 1 else ""
        workers = "in one process" if setting.workers == 0 else f"{setting.workers} × {setting.threads}"
        return workers + batch

    def takes(self, work: Work, engine: Engine) -> bool:
        """Whether it takes part in a work with an engine."""
        return self._setting(work) is not None and (self.tuned or (engine == "eager" and work.recipe))

    def order(self, work: Work, engine: Engine, port: int) -> Order:
        """What its application is told."""
        setting = self._setting(work)
        assert setting is not None
        return Order(
            work.name, engine, FILES, port,
            workers=setting.workers, threads=setting.threads, batch=setting.batch, wait=setting.wait,
        )  # fmt: skip

    def _setting(self, work: Work) -> Setting | None:
        return self.numbers if work.name == "tiny" else self.photographs


def _module(name: str, *arguments: str) -> Callable[[Order, Path], list[str]]:
    """An application that is run as a module of its environment's Python."""
    environment = {"lit": "litserve", "mosec_server": "mosec", "rays": "ray"}[name]

    def start(order: Order, _: Path) -> list[str]:
        filled = [argument.format(port=order.port) for argument in arguments]
        return [python(environment), "-m", f"benchmarks.apps.{name}", *filled]

    return start


_MOSEC = _module("mosec_server", "--address", "127.0.0.1", "--port", "{port}", "--timeout", "120000")


def _mosec_batched(name: str, *, workers: int, batch: int) -> Peer:
    """mosec for tiny models: which of these is its best differs by the number of clients."""
    numbers = Setting(workers=workers, batch=batch, wait=0.001)
    return Peer(name, "mosec", _MOSEC, path="/inference", encoding="raw", photographs=None, numbers=numbers)


PEERS = {
    peer.name: peer
    for peer in (
        Peer("flask run", "flask", commands.flask_run, tuned=False, photographs=Setting(workers=1)),
        Peer("gunicorn as written", "flask", commands.gunicorn_as_written, tuned=False, numbers=None),
        Peer("gunicorn tuned", "flask", commands.gunicorn_tuned),
        Peer("LitServe", "litserve", _module("lit"), numbers=Setting(workers=1, batch=16, wait=0.001)),
        Peer("BentoML", "bentoml", commands.bentoml),
        Peer("Ray Serve", "ray", _module("rays")),
        Peer(
            "TorchServe", "torchserve", commands.torchserve, path="/predictions/m",
            numbers=Setting(workers=1, batch=16, wait=0.001),
        ),
        Peer(
            "MLServer", "mlserver", commands.mlserver, path="/v2/models/m/infer", encoding="v2",
            numbers=Setting(workers=0, batch=16, wait=0.001),
        ),
        Peer("mosec", "mosec", _MOSEC, path="/inference", encoding="raw"),
        _mosec_batched("mosec batches of 16", workers=1, batch=16),
        _mosec_batched("mosec batches of 16 twice", workers=2, batch=16),
        _mosec_batched("mosec batches of 64", workers=1, batch=64),
        _mosec_batched("mosec batches of 64 twice", workers=2, batch=64),
        Peer("Flambeau", "", commands.flambeau),
        Peer("Flambeau two fronts", "", commands.two_fronts),
    )
}  # fmt: skip
