"""What an engine is: one loaded model on one device."""

from dataclasses import dataclass
from typing import Protocol

from flambeau.types import Tensors, TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
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
