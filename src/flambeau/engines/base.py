"""What an engine is: one loaded model on one device. The front asks here too, so this imports no engine."""

import functools
import importlib.metadata
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flambeau.bundle.storage import Manifest, Optimised
from flambeau.system.machine import processor
from flambeau.types import Tensors, TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadOptions:
    """How an engine is to be loaded.

    `threads` bounds the engine's own. `max_batch` is the most rows that will usually be computed together; more are
    computed all the same. `alone`: nothing else computes on this machine while the engine does. `allow_code`: the
    architecture's own code may be run.
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
        """Let go of the model. Called once; `run` is not called afterwards."""
        ...


# An engine for a network whose rows are not independent: whatever it is given, it computes one row at a time.
#
# Such a network, for example one with `BatchNorm2d(track_running_stats=False)`, answers an image in another way when
# others lie beside it. A stranger's image must not change an answer.


class RowByRow:
    """Another engine, which sees one row in each call."""

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
# front asks too, so this imports neither.


_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")


@functools.cache
def optimised_for_here() -> Optimised | None:
    """What a graph that is optimised now and here is good for; `None` where ONNX Runtime's version cannot be told."""
    for name in _DISTRIBUTIONS:
        try:
            return Optimised(onnxruntime=importlib.metadata.version(name), processor=processor())
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def may_run_optimised(manifest: Manifest) -> bool:
    """Whether the bundle has an optimised graph, and this is the place it was made for."""
    return manifest.optimised is not None and manifest.optimised == optimised_for_here()
