"""Keypoint detection: what is in an image and where, as a box and points for each object, such as a person's joints."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from flambeau.answers import Asked, keypoints
from flambeau.answers.boxes import BOXES, KEYPOINT_SCORES, KEYPOINTS, LABELS, SCORES
from flambeau.answers.schemas import NUMBER, Schema, record
from flambeau.items import FREE, Item, Tensors, TensorSpec
from flambeau.tasks.base import CellKind, ClassNames, NetworkFacts, Postprocess
from flambeau.tasks.object_detection import (
    SIZE,
    Chosen,
    Detected,
    ObjectDetection,
    ObjectDetectionTask,
    require_outputs,
)


class Posed(Detected, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One object with its keypoints: x and y in pixels of the image, and the network's own score of each, a logit."""

    keypoints: tuple[tuple[float, float, float], ...]

    @property
    def numbers(self) -> tuple[float, ...]:
        return (*super().numbers, *(number for point in self.keypoints for number in point))


class KeypointDetection(ObjectDetection, frozen=True):
    """The objects in one image, best first, each with its keypoints. `names`: those of the points, if known."""

    KIND = "a list of objects with keypoints"

    found: tuple[Posed, ...]
    points: int = 0
    names: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return sum(160 + 80 * len(each.keypoints) for each in self.found)

    def tensors(self) -> Tensors:
        """Those of a detector, and `keypoints`, float32 (1, n, points, 3): x, y and the score of each."""
        placed = np.array([each.keypoints for each in self.found], np.float32).reshape(1, -1, self.points, 3)
        return {**super().tensors(), KEYPOINTS: placed}

    def body(self, asked: Asked) -> dict[str, Any]:
        found = [{**each.body(), "keypoints": self._shown(each)} for each in self.found]
        return {**super().body(asked), "predictions": found}

    def _shown(self, each: Posed) -> list[dict[str, Any]]:
        points: list[dict[str, Any]] = [{"x": x, "y": y, "score": score} for x, y, score in each.keypoints]
        if not self.names:
            return points
        return [{"name": name, **point} for name, point in zip(self.names, points, strict=True)]

    def row(self, *, top_k: int | None, probabilities: bool) -> dict[str, Any]:
        points = {"keypoints": [[list(point) for point in each.keypoints] for each in self.found]}
        return super().row(top_k=top_k, probabilities=probabilities) | points


class KeypointDetectionTask(ObjectDetectionTask):
    """A detector's objects with their keypoints, in the order of the network."""

    name = "keypoint-detection"
    title = "Keypoint detection"
    told = (
        "The objects whose score reaches the threshold, best first: the label of each, its score, its box and its "
        "keypoints in pixels of the image as it was sent, upright."
    )
    answer = KeypointDetection
    columns: ClassVar[Mapping[str, CellKind]] = {**ObjectDetectionTask.columns, "keypoints": "any"}
    beside_boxes = (KEYPOINTS, keypoints.apart)

    def postprocess(self, network: NetworkFacts) -> Postprocess:
        wanted = {
            BOXES: (FREE, 4), SCORES: (FREE,), LABELS: (FREE,),
            KEYPOINTS: (FREE, FREE, 2), KEYPOINT_SCORES: (FREE, FREE),
        }  # fmt: skip
        require_outputs(network.outputs, wanted, self.name)
        names, points = ClassNames.of(network), points_of(network)
        named = network.keypoints if len(network.keypoints) == points else ()

        def answer(outputs: Tensors, item: Item) -> KeypointDetection:
            chosen = Chosen.of(outputs, item.options, network, names)
            [(height, width)] = outputs[SIZE].tolist()
            found = tuple(
                _posed(each, outputs[KEYPOINTS][0, place], outputs[KEYPOINT_SCORES][0, place])
                for place, each in chosen.found
            )
            return KeypointDetection(found, width, height, chosen.threshold, chosen.weaker, points=points, names=named)

        return answer

    def of_each(self, network: NetworkFacts) -> dict[str, Schema]:
        number: Schema = {"type": ["number", "null"]}
        members: dict[str, Schema] = {"x": NUMBER, "y": NUMBER, "score": number}
        if network.keypoints:
            members = {"name": {"type": "string", "enum": list(network.keypoints)}, **members}
        count = points_of(network)
        points: Schema = {"type": "array", "items": record(members), "minItems": count, "maxItems": count}
        points["description"] = "In pixels of the image as it was sent; the score is the network's own, a logit."
        return {"keypoints": points}

    def arrays(self, network: NetworkFacts) -> tuple[TensorSpec, ...]:
        return (*super().arrays(network), TensorSpec(KEYPOINTS, "float32", (FREE, points_of(network), 3)))


def points_of(network: NetworkFacts) -> int:
    """How many keypoints an object has."""
    return next(spec.shape[1] for spec in network.outputs if spec.name == KEYPOINTS)


def _posed(each: Detected, places: Any, scores: Any) -> Posed:
    points = tuple((x, y, score) for (x, y), score in zip(places.tolist(), scores.tolist(), strict=True))
    return Posed(each.index, each.label, each.score, each.box, points)


TASK = KeypointDetectionTask()
