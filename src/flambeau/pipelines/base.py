"""What a pipeline is."""

from typing import Protocol

from flambeau.types import Answer, Item, Payload, Tensors


class Pipeline(Protocol):
    """The way from one item's payload to tensors, and from its rows of the outputs to its answer. Stateless."""

    def preprocess(self, payload: Payload) -> Tensors:
        """Make one item's tensors, shape (rows, ...). Raises `InvalidInput` when the payload is at fault."""
        ...

    def postprocess(self, outputs: Tensors, item: Item) -> Answer:
        """Make the item's answer from its rows of the model's outputs."""
        ...

    def example(self) -> Payload:
        """A payload that the model can answer, to warm up with."""
        ...
