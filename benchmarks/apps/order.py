"""What an application is told about its run, through its environment. Standard library only: every peer imports it."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

_PREFIX = "BENCH_"

Engine = Literal["eager", "onnx"]


@dataclass(frozen=True, slots=True)
class Order:
    """One application on one port.

    `work` names what it answers; `files` is the folder with the weights and bundles of all works; `threads` bounds the
    engine of each of the `workers`; up to `batch` requests are computed together, the first of them waiting at most
    `wait` seconds for the others.
    """

    work: str
    engine: Engine
    files: Path
    port: int
    workers: int = 2
    threads: int = 1
    batch: int = 1
    wait: float = 0.0

    @property
    def numbers(self) -> bool:
        """Whether requests carry numbers and not photographs."""
        return self.work == "tiny"

    def environment(self) -> dict[str, str]:
        """The variables that `ordered` reads, and those that keep an engine to its threads."""
        own = {_PREFIX + name.upper(): str(value) for name, value in asdict(self).items()}
        return own | {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}


def ordered() -> Order:
    """The order that this process was started with."""
    said = {name: os.environ[_PREFIX + name.upper()] for name in Order.__slots__}
    return Order(
        work=said["work"],
        engine="onnx" if said["engine"] == "onnx" else "eager",
        files=Path(said["files"]),
        port=int(said["port"]),
        workers=int(said["workers"]),
        threads=int(said["threads"]),
        batch=int(said["batch"]),
        wait=float(said["wait"]),
    )
