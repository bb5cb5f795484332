"""The engine interface: one loaded model on one device. The front imports this too, so it imports no engine."""

import functools
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flambeau.bundle.storage import Manifest, Optimised
from flambeau.system.machine import processor
from flambeau.types import Tensors, TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadOptions:
    """How to load an engine.

    `threads` limits the engine's own threads. `max_batch` is the usual largest batch in rows; larger ones work too.
    `alone`: nothing else computes on this machine while the engine does. `allow_code`: the architecture's own code may
    run.
    """

    device: str
    threads: int
    max_batch: int
    alone: bool
    allow_code: bool


class Engine(Protocol):
    """A loaded model. Used by one thread at a time."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, batch: Tensors) -> Tensors:
        """Compute all rows of `batch`: arrays of shape (rows, *spec.shape) in, the same number of rows out."""
        ...

    def close(self) -> None:
        """Release the model. Called once; `run` is not called afterwards."""
        ...


class RowByRow:
    """Wraps an engine so that it computes one row per call, for a network whose rows are not independent.

    Such a network, for example one with `BatchNorm2d(track_running_stats=False)`, gives an image another answer when
    other images are in the batch. One client's image must not change another client's answer.
    """

    def __init__(self, engine: Engine) -> None:
        self.inputs = engine.inputs
        self.outputs = engine.outputs
        self._engine = engine

    def run(self, batch: Tensors) -> Tensors:
        rows = len(next(iter(batch.values())))
        if rows <= 1:
            return self._engine.run(batch)
        found = [self._engine.run({name: array[row : row + 1] for name, array in batch.items()}) for row in range(rows)]
        return {name: np.concatenate([each[name] for each in found]) for name in found[0]}

    def close(self) -> None:
        self._engine.close()


# Whether a bundle's optimised graph may run here: it is made for one processor and one version of ONNX Runtime. The
# front asks this too, so ONNX Runtime is not imported.


_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")


@functools.cache
def optimised_for_here() -> Optimised | None:
    """Where a graph optimised on this machine may run; `None` if ONNX Runtime's version is unknown."""
    import importlib.metadata  # with a parser of mail, which a worker need not load

    for name in _DISTRIBUTIONS:
        try:
            return Optimised(onnxruntime=importlib.metadata.version(name), processor=processor())
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def may_run_optimised(manifest: Manifest, *, version: str | None = None) -> bool:
    """Whether the bundle has an optimised graph that was made for this processor and this ONNX Runtime.

    `version`: that of ONNX Runtime, from a process that has it loaded; otherwise the installed package is asked.
    """
    if manifest.optimised is None:
        return False
    here = optimised_for_here() if version is None else Optimised(onnxruntime=version, processor=processor())
    return manifest.optimised == here
