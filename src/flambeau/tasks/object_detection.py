"""Object detection: what is in an image and where, as boxes in pixels of the image as it was sent."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import msgspec
import numpy as np

from flambeau.answers import Answer, Asked, Expected, agreement
from flambeau.answers.agreement import Agreement
from flambeau.answers.base import foreign
from flambeau.answers.boxes import BOXES, LABELS, SAME_BOX, SCORES, Apart, Detections, compare, overlaps
from flambeau.answers.schemas import NUMBER, Schema, named, record
from flambeau.errors import BundleError
from flambeau.items import FREE, Item, Options, Tensors, TensorSpec
from flambeau.tasks.base import COUNT, CellKind, ClassNames, NetworkFacts, Postprocess, Task

NAMES = "names"
"""The array of the found objects' labels as text; `labels` has their numbers, as the network's own output has."""

SIZE = "size"
"""What the pipeline adds to the outputs: the height and width of the image as it was sent, int64 [1, 2]."""

CORNERS = ("xmin", "ymin", "xmax", "ymax")
"""The names of a box's numbers, in order."""


class Detected(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One object: the number of its class, its name, its score in [0, 1] and its box, (xmin, ymin, xmax, ymax)."""

    index: int
    label: str
    score: float
    box: tuple[float, float, float, float]

    def body(self) -> dict[str, Any]:
        """The object as an element of `predictions`."""
        return {
            "label": self.label,
            "score": self.score,
            "class_index": self.index,
            "box": dict(zip(CORNERS, self.box, strict=True)),
        }

    @property
    def numbers(self) -> tuple[float, ...]:
        """Its numbers that a network may have made other than finite."""
        return (self.score, *self.box)


class ExpectedBox(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A box that a golden sample expects, in pixels."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float


class ExpectedObject(msgspec.Struct, frozen=True):
    """An object that a golden sample expects, as an answer has it: its label, its box, and perhaps its score."""

    label: str
    box: ExpectedBox
    score: float | None = None


class ObjectDetection(Answer, frozen=True):
    """The objects in one image, best first, whose score reaches the threshold. `width`, `height`: those of the image,
    upright, in pixels.

    `weaker`: objects just below the threshold, which another engine may find at it: golden samples compare them.
    """

    KIND = "a list of objects"
    PARTS: ClassVar[Mapping[str, Any]] = {"labels": tuple[str, ...], "predictions": tuple[ExpectedObject, ...]}

    found: tuple[Detected, ...]
    width: Annotated[int, msgspec.Meta(ge=1)]
    height: Annotated[int, msgspec.Meta(ge=1)]
    threshold: float
    weaker: tuple[Detected, ...] = ()

    @property
    def nonfinite(self) -> int:
        return sum(not math.isfinite(number) for each in self.found for number in each.numbers)

    @property
    def size(self) -> int:
        return 160 * len(self.found)

    @property
    def summary(self) -> str:
        """What was found, counted by label, the best first: "2 × cat, dog". Empty without anything."""
        return summary(each.label for each in self.found)

    def tensors(self) -> Tensors:
        """Boxes (1, n, 4) and scores (1, n) as float32, labels (1, n) as int64 and their names as text, and `count`,
        int64 (1), which is n; it is 0 if nothing was found."""
        names = np.empty((1, len(self.found)), np.object_)
        names[0, :] = [each.label for each in self.found]
        return {
            BOXES: np.array([each.box for each in self.found], np.float32).reshape(1, -1, 4),
            SCORES: np.array([[each.score for each in self.found]], np.float32),
            LABELS: np.array([[each.index for each in self.found]], np.int64),
            NAMES: names,
            COUNT: np.array([len(self.found)], np.int64),
        }

    def body(self, asked: Asked) -> dict[str, Any]:
        return {
            "predictions": [each.body() for each in self.found],
            "image": {"width": self.width, "height": self.height},
        }

    def row(self, *, top_k: int | None, probabilities: bool) -> dict[str, Any]:
        return {
            "objects": len(self.found),
            "labels": [each.label for each in self.found],
            "scores": [each.score for each in self.found],
            "boxes": [list(each.box) for each in self.found],
            "width": self.width,
            "height": self.height,
        }

    def differs(self, expected: Expected) -> str | None:
        """Objects are matched: the same label, and boxes that overlap by 0.99. One within the tolerance of the
        threshold may be found or not: two engines may differ by as much."""
        if odd := foreign(expected, self):
            return odd
        if (wanted := expected.get("labels")) is not None and (why := self._labels_apart(wanted)):
            return why
        return self._objects_apart(expected["predictions"]) if expected.get("predictions") is not None else None

    def _labels_apart(self, wanted: Sequence[str]) -> str | None:
        sure = Counter(each.label for each in self.found if not self._borderline(each))
        most = Counter(each.label for each in (*self.found, *self.weaker))
        if sure <= Counter(wanted) <= most:
            return None
        return f"labels are {sorted(each.label for each in self.found)} where {sorted(wanted)} are expected"

    def _objects_apart(self, wanted: Sequence[ExpectedObject]) -> str | None:
        waiting = [*self.found, *self.weaker]
        for each in wanted:
            box = np.array([msgspec.structs.astuple(each.box)])
            alike = [
                found
                for found in waiting
                if found.label == each.label
                and overlaps(box, np.array([found.box]))[0, 0] >= SAME_BOX
                and (each.score is None or abs(each.score - found.score) <= agreement.TOLERANCE)
            ]
            if not alike:
                place = ", ".join(f"{number:g}" for number in box[0])
                return f"no {each.label} is found at ({place}), where one is expected"
            waiting.remove(alike[0])
        for found in waiting:
            if found.score >= self.threshold and not self._borderline(found):
                place = ", ".join(f"{number:.0f}" for number in found.box)
                return f"{found.label} is found at ({place}), where nothing is expected"
        return None

    def _borderline(self, each: Detected) -> bool:
        return abs(each.score - self.threshold) <= agreement.TOLERANCE

    def readable(self) -> dict[str, Any]:
        return {"labels": [each.label for each in self.found]}


class ObjectDetectionTask(Task):
    """The objects whose score reaches the threshold, best first. Equal scores keep the order of the outputs.

    The network has suppressed boxes that overlap others already.
    """

    name = "object-detection"
    title = "Object detection"
    told = (
        "The objects whose score reaches the threshold, best first: the label of each, its score, and its box in "
        "pixels of the image as it was sent, upright."
    )
    answer: ClassVar[type[Answer]] = ObjectDetection
    labelled = True
    usual_threshold = 0.5
    parameters: ClassVar[Mapping[str, str]] = {
        "threshold": "The lowest score at which an object counts as found. Default: the service's.",
        "max_detections": "How many objects to answer at most, the best. Default: all.",
    }
    columns: ClassVar[Mapping[str, CellKind]] = {
        "objects": "whole", "labels": "texts", "scores": "numbers", "boxes": "any", "width": "whole",
        "height": "whole",
    }  # fmt: skip
    beside_boxes: ClassVar[tuple[str, Apart | None]] = ("", None)
    """What the agreement is about beside boxes, in a word, and how it is compared."""

    def postprocess(self, network: NetworkFacts) -> Postprocess:
        require_outputs(network.outputs, {BOXES: (FREE, 4), SCORES: (FREE,), LABELS: (FREE,)}, self.name)
        names = ClassNames.of(network)

        def answer(outputs: Tensors, item: Item) -> ObjectDetection:
            chosen = Chosen.of(outputs, item.options, network, names)
            [(height, width)] = outputs[SIZE].tolist()
            found = tuple(each for _, each in chosen.found)
            return ObjectDetection(found, width, height, chosen.threshold, chosen.weaker)

        return answer

    def of_each(self, network: NetworkFacts) -> dict[str, Schema]:
        """The schemas of what an object has besides its class and its box."""
        return {}

    def schemas(self, network: NetworkFacts) -> tuple[Schema, ...]:
        _, name = named(network.labels)
        last = network.classes - 1 if network.classes else None
        index: Schema = {"type": "integer", "minimum": 0} | ({} if last is None else {"maximum": last})
        box = record(dict.fromkeys(CORNERS, NUMBER))
        box["description"] = (
            "In pixels of the image as it was sent, turned upright; the origin is its upper left corner."
        )
        score: Schema = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
        members = {"label": name, "score": score, "class_index": index, "box": box, **self.of_each(network)}
        each = record(members, title="DetectedObject")
        found: Schema = {"type": "array", "items": each, "description": "The objects, best first; empty without any."}
        if network.most:
            found["maxItems"] = network.most
        pixels: Schema = {"type": "integer", "minimum": 1}
        image = record({"width": pixels, "height": pixels})
        image["description"] = "The size of the image as it was sent, turned upright, in pixels."
        return (record({"predictions": found, "image": image}),)

    def arrays(self, network: NetworkFacts) -> tuple[TensorSpec, ...]:
        return (
            TensorSpec(BOXES, "float32", (FREE, 4)),
            TensorSpec(SCORES, "float32", (FREE,)),
            TensorSpec(LABELS, "int64", (FREE,)),
            TensorSpec(NAMES, "str", (FREE,)),
            TensorSpec(COUNT, "int64", ()),
        )

    def agreement(
        self, network: NetworkFacts, expected: Tensors, found: Tensors, *, tolerance: float = agreement.TOLERANCE
    ) -> Agreement:
        part, apart = self.beside_boxes
        return compare(
            expected, found, least=network.least, most=network.most, tolerance=tolerance, part=part, apart=apart
        )

    def outputs_apart(self, network: NetworkFacts, expected: Tensors, found: Tensors) -> str | None:
        if not expected:
            return None
        if missing := expected.keys() - found.keys():
            return f"{min(missing)} is missing"
        measured = self.agreement(network, expected, found)
        return None if measured.holds else f"its boxes are others: {measured}"

    def lead(self, outputs: Sequence[TensorSpec]) -> str:
        return "Show it a picture, and it says what is in it and where."

    def line(self, row: Mapping[str, Any]) -> tuple[str, bool]:
        told = summary(row["labels"])
        return told or "nothing found", bool(told)


def summary(labels: Iterable[str]) -> str:
    """Labels, counted, in the order of their first: "2 × cat, dog"."""
    return ", ".join(label if count == 1 else f"{count} × {label}" for label, count in Counter(labels).items())


class Chosen(NamedTuple):
    """The objects that are answered, each with its place in the outputs, best first; and those just below the
    threshold."""

    found: tuple[tuple[int, Detected], ...]
    weaker: tuple[Detected, ...]
    threshold: float

    @classmethod
    def of(cls, outputs: Tensors, options: Options, network: NetworkFacts, names: ClassNames) -> "Chosen":
        """Those in a detector's outputs for one picture."""
        threshold = network.threshold if options.threshold is None else options.threshold
        [row] = Detections.rows(outputs)
        order = np.argsort(-row.scores, kind="stable")
        scores = row.scores[order].astype(np.float64)  # as the answer compares them
        kept = [
            (place, Detected(index, names(index), score, tuple(box)))
            for place, index, score, box in zip(
                order.tolist(), row.labels[order].tolist(), scores.tolist(), row.boxes[order].tolist(), strict=True
            )
            if not score < threshold - agreement.TOLERANCE  # NaN is kept, and counted as such
        ]
        reaching = [each for each in kept if not each[1].score < threshold]
        most = len(reaching) if options.most is None else options.most
        weaker = tuple(each for _, each in kept if each.score < threshold)
        return cls(tuple(reaching[:most]), weaker, threshold)


def require_outputs(outputs: Sequence[TensorSpec], wanted: Mapping[str, tuple[int, ...]], task: str) -> None:
    """Raise `BundleError` unless the outputs are those of a detector for that task. `wanted`: their shapes by name,
    where `FREE` stands for any length."""
    shapes = {spec.name: spec.shape for spec in outputs}
    fits = shapes.keys() == wanted.keys() and all(
        len(shapes[name]) == len(shape)
        and all(size in (own, FREE) for size, own in zip(shape, shapes[name], strict=True))
        for name, shape in wanted.items()
    )
    if not fits:
        told = ", ".join(f"{spec.name} {spec}" for spec in outputs)
        *first, last = wanted
        raise BundleError(
            f"the task {task} needs the outputs {', '.join(first)} and {last} of a detector, and this "
            f"network has {told}: build it again without --task"
        )


TASK = ObjectDetectionTask()
