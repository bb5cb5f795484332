"""The base of all tasks: what a model does for its user, and all that follows from it. No bundles, no HTTP."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np

from flambeau.answers import Answer, Label, PartName, agreement
from flambeau.answers.activation import Activation
from flambeau.answers.agreement import Agreement
from flambeau.answers.schemas import Schema
from flambeau.errors import BundleError
from flambeau.items import Item, PipelineKind, Tensors, TensorSpec

CellKind = Literal["text", "whole", "number", "truth", "texts", "numbers", "any"]
"""The type of a table's column."""

COUNT = "count"
"""The array that says how many entries the others have, of an answer without a fixed number of them."""

Postprocess = Callable[[Tensors, Item], Answer]
"""Makes an item's answer from its rows of the network's outputs."""

Renderer = Callable[[Sequence[Any]], bytes]
"""Makes a response body from the answers to a request, one for each item."""


@dataclass(frozen=True, kw_only=True)
class NetworkFacts:
    """What a task knows of its network. Without `labels`, classes are named by their numbers.

    Of a detector or a segmenter: `classes`, the number of classes that its labels count. Of a detector: `least`, the
    score below which it reports nothing; `most`, how many boxes it reports at most; and `keypoints`, the names of the
    points that it finds of each object, if they are known. Of a network whose answer is a
    picture: `scale`, how many pixels its output has for how many of its input; and `levels`, its numbers for black and
    white, or `None` if each picture has its own.
    """

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    activation: Activation
    labels: tuple[Label, ...] | None = None
    threshold: float = 0.0
    classes: int = 0
    least: float = 0.0
    most: int = 0
    keypoints: tuple[str, ...] = ()
    scale: tuple[int, int] = (1, 1)
    levels: tuple[float, float] | None = None


class Task:
    """What a model does for its user. Stateless; each module of this package has one, its `TASK`.

    A complete task defines `name`, `title`, `told`, `answer`, `postprocess` and `schemas`; the rest has defaults, here
    and in its answer. For example, a task over images that says whether a picture is dark: an answer with the field
    `dark`, a postprocess that compares the network's number with the threshold, and the schema of `{"dark": true}`.
    """

    name: ClassVar[str]
    """The name in manifests, in `--task` and of the page's template."""

    title: ClassVar[str]
    """The name for people."""

    told: ClassVar[str]
    """The answer, in a sentence for the OpenAPI document."""

    answer: ClassVar[type[Answer]]

    takes: ClassVar[PipelineKind] = "image"

    labelled: ClassVar[bool] = False
    """Whether the outputs are classes, which can have labels and a threshold."""

    dense: ClassVar[bool] = False
    """Whether the network answers for every pixel, so that images keep their sizes."""

    pictorial: ClassVar[bool] = False
    """Whether its answers are pictures and little else, which a table cannot hold."""

    usual_threshold: ClassVar[float | None] = None
    """The threshold of a build, unless the user gives another."""

    parameters: ClassVar[Mapping[str, str]] = {}
    """The query parameters that a client may send, with their meaning for this task."""

    parts: ClassVar[Mapping[PartName, str]] = {}
    """How each part of a form is answered, if that depends on the part."""

    media_types: ClassVar[Mapping[str, Renderer]] = {}
    """Media types of the answer other than JSON, for a client that prefers one in `Accept`. There one bad item fails
    the request. An image, `image/…`, is the answer to one item only."""

    columns: ClassVar[Mapping[str, CellKind]] = {"output": "any"}
    """The columns of the answer in a table, in order."""

    ranked: ClassVar[tuple[str, ...]] = ()
    """Those of `columns` that describe one class, and are repeated in a table of several ranked classes."""

    def columns_of(self, outputs: Sequence[TensorSpec]) -> Mapping[str, CellKind]:
        """The columns for a network with these outputs."""
        return self.columns

    def postprocess(self, network: NetworkFacts) -> Postprocess:
        """The function that makes the network's answers. Raises `BundleError` if its outputs do not fit this task."""
        raise NotImplementedError

    def arrays(self, network: NetworkFacts) -> tuple[TensorSpec, ...]:
        """What `tensors()` of an answer holds, for protocols of arrays; the dtype of text is `str`. With an array
        `COUNT` the others have so many entries, and those of unlike answers may be padded.

        Empty if there is nothing of the kind: such protocols then give the answer's JSON.
        """
        return ()

    def schemas(self, network: NetworkFacts) -> tuple[Schema, ...]:
        """The schemas of one item's body: one, or one for each form of it."""
        raise NotImplementedError

    def lead(self, outputs: Sequence[TensorSpec]) -> str:
        """The page's first sentence: what a visitor can try."""
        return "Show it a picture, and see what it makes of it."

    def line(self, row: Mapping[str, Any]) -> tuple[str, bool]:
        """The answer in a table's row as one line of text, and whether the model found anything."""
        cells = {name: row[name] for name in self.columns}
        return msgspec.json.encode(cells.get("output") if len(cells) == 1 else cells).decode(), True

    def agreement(
        self, network: NetworkFacts, expected: Tensors, found: Tensors, *, tolerance: float = agreement.TOLERANCE
    ) -> Agreement:
        """How well outputs agree with the network's own, by the measure that suits the task. The worst output counts.

        Outputs in `found` that are not expected are ignored.
        """
        measured = [
            agreement.measure(rows, found[name], classes=self.answer.RANKS, tolerance=tolerance, each=True)
            for name, rows in expected.items()
        ]
        return max(measured, key=lambda each: (not each.holds, each.difference))

    def kept(self, network: NetworkFacts, outputs: Tensors) -> Tensors:
        """What a golden sample keeps of the network's outputs, for `outputs_apart`: all, unless they are large."""
        return outputs

    def outputs_apart(self, network: NetworkFacts, expected: Tensors, found: Tensors) -> str | None:
        """How a golden sample's outputs differ from what is expected, by the first that does; `None` if none does.
        `expected` is what `kept` made of the network's own."""
        for name, rows in expected.items():
            if name not in found or found[name].shape != rows.shape:
                shape = list(found[name].shape) if name in found else "missing"
                return f"{name} is {shape} where {list(rows.shape)} is expected"
            if not np.isfinite(found[name]).all():
                return f"{name} holds numbers that are not finite"
            measured = agreement.measure(rows, found[name], classes=self.answer.RANKS, each=True)
            if not measured.holds:
                top = "" if measured.same_top_class else ", with another top class"
                return f"{name} is {measured.difference:.1e} apart (tolerance {measured.tolerance:.0e}){top}"
        return None

    def row_of(self, network: NetworkFacts) -> int:
        """How many numbers the output has. Raises `BundleError` unless they are one row."""
        output = network.outputs[0]
        if len(output.shape) != 1:
            raise BundleError(
                f"the task {self.name} needs one row of numbers, but {output.name} has shape {list(output.shape)}: "
                "build it again with --task regression"
            )
        return output.shape[0]

    def classes_of(self, network: NetworkFacts) -> Sequence[Label]:
        """A label for each output. Raises `BundleError` if there are too few."""
        count = self.row_of(network)
        classes = network.labels or [Label(str(index), str(index)) for index in range(count)]
        if len(classes) < count:
            raise BundleError(
                f"there are {len(classes)} labels for {count} classes: build it again with a label for each"
            )
        return classes


class ClassNames:
    """The name of a class by its number: its label, or else the number."""

    def __init__(self, labels: Sequence[Label]) -> None:
        self._labels = labels

    @classmethod
    def of(cls, network: NetworkFacts) -> "ClassNames":
        """Those of a network that counts its `classes` itself. Raises `BundleError` if it has labels, but too few."""
        if network.labels is not None and network.classes and len(network.labels) < network.classes:
            raise BundleError(
                f"there are {len(network.labels)} labels for {network.classes} classes: "
                "build it again with a label for each"
            )
        return cls(network.labels or ())

    def __call__(self, index: int) -> str:
        return self._labels[index].name if 0 <= index < len(self._labels) else str(index)


def in_words(outputs: Sequence[TensorSpec]) -> tuple[str, bool]:
    """The number of outputs, for people, and whether it is one."""
    shape = outputs[0].shape
    count = shape[0] if shape else 1
    return f"{count:,}", count == 1
