"""What a task is: what a model does for its user, and all that follows from it. It knows no bundle and no HTTP."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import msgspec

from flambeau.answers import Answer, Label, PartName
from flambeau.answers.activation import Activation
from flambeau.answers.schemas import Schema
from flambeau.errors import BundleError
from flambeau.items import Item, PipelineKind, Tensors, TensorSpec

CellKind = Literal["text", "whole", "number", "truth", "texts", "numbers", "any"]
"""What a column of a table holds."""

Postprocess = Callable[[Tensors, Item], Answer]
"""Make an item's answer of its rows of the network's outputs."""

Renderer = Callable[[Sequence[Any]], bytes]
"""Make a body of the answers to a request: of one where it had one item."""


@dataclass(frozen=True, kw_only=True)
class NetworkFacts:
    """What a task is told of the network that it answers for. Without `labels` its classes are called by number."""

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    activation: Activation
    labels: tuple[Label, ...] | None = None
    threshold: float = 0.0


class Task:
    """What a model does for its user. Stateless, and one for each module of this room: its `TASK`.

    What is left out here is left to the answer: a task that says no more than its name, its title, its answer, its
    postprocess and its schema is whole.
    """

    name: ClassVar[str]
    """What manifests, `--task` and the page's templates call it."""

    title: ClassVar[str]
    """What people call it."""

    told: ClassVar[str]
    """Its answer, in a sentence for the OpenAPI document."""

    answer: ClassVar[type[Answer]]

    takes: ClassVar[PipelineKind] = "image"

    labelled: ClassVar[bool] = False
    """Whether the outputs are classes, which may be named, and have a threshold."""

    usual_threshold: ClassVar[float | None] = None
    """What a build takes unless the user says another."""

    parameters: ClassVar[Mapping[str, str]] = {}
    """What a client may ask in the query, with its meaning here."""

    parts: ClassVar[Mapping[PartName, str]] = {}
    """How the parts of a form are answered, where that is not the same for all."""

    media_types: ClassVar[Mapping[str, Renderer]] = {}
    """What the answer may be besides JSON, for a client that prefers it in `Accept`. A bad item fails the request."""

    columns: ClassVar[Mapping[str, CellKind]] = {"output": "any"}
    """The columns of its rows in a table, in their order."""

    ranked: ClassVar[tuple[str, ...]] = ()
    """The columns of one class, where a table may hold several, ranked; they are among `columns`."""

    def columns_of(self, outputs: Sequence[TensorSpec]) -> Mapping[str, CellKind]:
        """The columns for a network with those outputs."""
        return self.columns

    def postprocess(self, network: NetworkFacts) -> Postprocess:
        """How the answers of that network are made. Raises `BundleError` where its outputs cannot be of this task."""
        raise NotImplementedError

    def schemas(self, network: NetworkFacts) -> tuple[Schema, ...]:
        """The schemas of one item's body: one, or one for each form that it can have."""
        raise NotImplementedError

    def lead(self, outputs: Sequence[TensorSpec]) -> str:
        """What a person may try, for the page."""
        return "Show it a picture, and see what it makes of it."

    def line(self, row: Mapping[str, Any]) -> tuple[str, bool]:
        """The answer of a table's row in a line, and whether there is one."""
        cells = {name: row[name] for name in self.columns}
        return msgspec.json.encode(cells.get("output") if len(cells) == 1 else cells).decode(), True

    def row_of(self, network: NetworkFacts) -> int:
        """How many numbers the network gives, in one row. Raises `BundleError` where it gives them otherwise."""
        output = network.outputs[0]
        if len(output.shape) != 1:
            raise BundleError(
                f"the task {self.name} needs one row of numbers, and {output.name} has shape {list(output.shape)}: "
                "build it again with --task regression"
            )
        return output.shape[0]

    def classes_of(self, network: NetworkFacts) -> Sequence[Label]:
        """A label for each output. Raises `BundleError` where there are too few."""
        count = self.row_of(network)
        classes = network.labels or [Label(str(index), str(index)) for index in range(count)]
        if len(classes) < count:
            raise BundleError(f"there are {len(classes)} labels for {count} classes: build it again with all of them")
        return classes


def in_words(outputs: Sequence[TensorSpec]) -> tuple[str, bool]:
    """How many outputs there are, for people, and whether that is one."""
    shape = outputs[0].shape
    count = shape[0] if shape else 1
    return f"{count:,}", count == 1
