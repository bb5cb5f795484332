"""What an engine is: one loaded model on one device."""

from typing import Protocol

from flambeau.types import Tensors, TensorSpec


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
