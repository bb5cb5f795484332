"""Semantic segmentation: the class of every pixel of an image, as a mask for each class, in the image's own size."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np
import numpy.typing as npt

from flambeau.answers import Answer, Asked, Expected, agreement, label_maps, png
from flambeau.answers.activation import Activation, sigmoid
from flambeau.answers.agreement import Agreement
from flambeau.answers.base import foreign
from flambeau.answers.label_maps import Pieces
from flambeau.answers.schemas import Schema, named, record
from flambeau.errors import BundleError
from flambeau.items import FREE, Item, MaskForm, Tensors, TensorSpec
from flambeau.tasks.base import CellKind, ClassNames, NetworkFacts, Postprocess, Renderer, Task

SIZE = "size"
"""What the pipeline adds to the outputs: the height and width of the image as it was sent, int64 [1, 2]."""

EXTENT = "extent"
"""What the pipeline adds: how many rows and columns of the outputs the image covers, float64 [1, 2]; the rest is
padding."""

SAME_PIXELS = 0.999
"""The least share of pixels with the same class in two maps that count as the same."""

_SAME_SHARE = 0.01  # of all pixels: how far the share of a class may be from the one that a golden sample expects
Probability = Callable[[int, npt.NDArray[np.bool_]], npt.NDArray[np.float32]]
"""The probabilities of the class of this number, at the places that are true."""

_MOST_PALETTE = 256
_CLASSES, _NUMBERS = "classes", "numbers"  # what a golden sample keeps
_SAMPLED = 64  # rows and columns at most of which it keeps the numbers


class Segment(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One class in an image: its number, its name, the mean of its pixels' probabilities, and how many pixels it has.

    `png`: its mask as a PNG file, 255 where the class is; `rle`: the same in COCO's run-length encoding. Each is empty
    unless it was asked for.
    """

    index: int
    label: str
    score: float
    pixels: int
    png: bytes = b""
    rle: str = ""


class SemanticSegmentation(Answer, frozen=True):
    """The classes in one image, by their numbers. `width`, `height`: those of the image, upright, in pixels.

    `map`: the class of each pixel, a PNG file with a palette (with more than 256 classes: 16-bit grey). `form`: how
    JSON has the masks. `strange`: how many of the network's numbers were not finite.
    """

    KIND = "a map of classes"
    PARTS: ClassVar[Mapping[str, Any]] = {"labels": tuple[str, ...], "shares": dict[str, float]}

    found: tuple[Segment, ...]
    width: Annotated[int, msgspec.Meta(ge=1)]
    height: Annotated[int, msgspec.Meta(ge=1)]
    map: bytes
    form: MaskForm = "png"
    strange: int = 0

    def __post_init__(self) -> None:
        if png.size_of(self.map) != (self.width, self.height):
            raise ValueError(f"the map is not of {self.width} × {self.height} pixels")

    @property
    def nonfinite(self) -> int:
        return self.strange

    @property
    def size(self) -> int:
        return sum(160 + len(each.png) * 4 // 3 + len(each.rle) for each in self.found)

    @property
    def summary(self) -> str:
        """The labels, the one with the most pixels first: "cat, sofa". Empty without any."""
        return ", ".join(each.label for each in sorted(self.found, key=lambda each: -each.pixels))

    @property
    def labels(self) -> npt.NDArray[Any]:
        """The number of each pixel's class: uint8 (height, width), or uint16 for more than 256 classes."""
        return png.read(self.map)

    @property
    def shares(self) -> dict[str, float]:
        """The share of all pixels that each class has, by label."""
        whole = self.width * self.height
        found: dict[str, float] = {}
        for each in self.found:
            found[each.label] = found.get(each.label, 0.0) + each.pixels / whole
        return found

    def tensors(self) -> Tensors:
        """The map, (1, height, width)."""
        return {"mask": self.labels[None]}

    def body(self, asked: Asked) -> dict[str, Any]:
        masks = self._masks()
        segments = [
            {
                "label": each.label,
                "score": each.score,
                "class_index": each.index,
                "pixels": each.pixels,
                "mask": mask,
            }
            for each, mask in zip(self.found, masks, strict=True)
        ]
        return {"predictions": segments, "image": {"width": self.width, "height": self.height}}

    def _masks(self) -> list[Any]:
        """The masks in their form; those that were not made yet are made of the map."""
        if self.form == "rle":
            return [{"size": [self.height, self.width], "counts": each.rle} for each in self.found]
        if all(each.png for each in self.found):
            return [each.png for each in self.found]
        pieces, size = Pieces.along_rows(self.labels), (self.height, self.width)
        return [each.png or png.mask(pieces.of(each.index), size) for each in self.found]

    def row(self, *, top_k: int | None, probabilities: bool) -> dict[str, Any]:
        return {
            "labels": [each.label for each in self.found],
            "scores": [each.score for each in self.found],
            "pixels": [each.pixels for each in self.found],
            "masks": [each.rle for each in self.found],
            "width": self.width,
            "height": self.height,
        }

    def picture(self) -> bytes:
        return self.map

    def differs(self, expected: Expected) -> str | None:
        """`labels`: exactly those of which there are pixels. `shares`: of all pixels, within 0.01, of those named."""
        if odd := foreign(expected, self):
            return odd
        shares = self.shares
        wanted = expected.get("labels")
        if wanted is not None and set(wanted) != shares.keys():
            return f"labels are {sorted(shares)} where {sorted(wanted)} are expected"
        for label, share in (expected.get("shares") or {}).items():
            if abs(shares.get(label, 0.0) - share) > _SAME_SHARE:
                return f"{shares.get(label, 0.0):.3f} of the pixels are {label} where {share:.3f} are expected"
        return None

    def readable(self) -> dict[str, Any]:
        return {"shares": {label: round(share, 4) for label, share in self.shares.items()}}


def map_png(found: Sequence[SemanticSegmentation]) -> bytes:
    """The map of the only answer."""
    [only] = found
    return only.map


class SemanticSegmentationTask(Task):
    """Each pixel gets the class with the largest number there, after the network's numbers were enlarged to the image.

    A network with one channel has two classes, and a pixel is of the second where its probability is above the
    threshold.
    """

    name = "semantic-segmentation"
    title = "Semantic segmentation"
    told = (
        "The classes in the image, by their numbers: the label of each, the mean probability of its pixels, and its "
        "mask in the size of the image as it was sent, upright. With `Accept: image/png`, which takes one image at a "
        "time, the classes of all pixels as a PNG with a palette."
    )
    answer = SemanticSegmentation
    labelled = True
    dense = True
    parameters: ClassVar[Mapping[str, str]] = {
        "threshold": "The lowest score at which a class is answered; of a network with one channel, the probability "
        "above which a pixel is of its class. Default: the service's.",
        "mask": "The form of a mask in JSON: `png`, a PNG in base64 that is 255 where the class is, or `rle`, COCO's "
        "run-length encoding. Default: png.",
    }
    media_types: ClassVar[Mapping[str, Renderer]] = {png.PNG: map_png}
    columns: ClassVar[Mapping[str, CellKind]] = {
        "labels": "texts", "scores": "numbers", "pixels": "any", "masks": "texts", "width": "whole", "height": "whole",
    }  # fmt: skip

    def postprocess(self, network: NetworkFacts) -> Postprocess:
        output = _require_map(network.outputs)
        names = ClassNames.of(network)
        palette = label_maps.colours(min(max(network.classes, 2), _MOST_PALETTE))
        alone = output.shape[0] == 1

        def answer(outputs: Tensors, item: Item) -> SemanticSegmentation:
            options = item.options
            threshold = network.threshold if options.threshold is None else options.threshold
            numbers = outputs[output.name][0].astype(np.float32, copy=False)
            [(height, width)] = outputs[SIZE].tolist()
            [(rows, columns)] = outputs[EXTENT].tolist()
            numbers = numbers[:, : math.ceil(rows), : math.ceil(columns)]
            strange = int(numbers.size - np.count_nonzero(np.isfinite(numbers)))
            scores = _above(numbers, threshold, network.activation) if alone else numbers
            coarse = label_maps.largest(scores)
            labels = label_maps.enlarged(scores, (height, width), extent=(rows, columns), best=coarse)
            found = _segments(labels, coarse, _probabilities(numbers, network.activation), len(scores))
            rows = Pieces.along_rows(labels) if options.mask == "png" else None
            columns = Pieces.along_columns(labels) if options.mask == "rle" else None
            segments = tuple(
                Segment(
                    index,
                    names(index),
                    score,
                    count,
                    png=png.mask(rows.of(index), (height, width)) if rows else b"",
                    rle=label_maps.rle(columns.of(index), labels.size) if columns else "",
                )
                for index, (score, count) in found.items()
                if alone or not score < threshold
            )
            file = png.write(labels, palette=None if labels.dtype == np.uint16 else palette)
            form: MaskForm = "rle" if options.mask == "rle" else "png"
            return SemanticSegmentation(segments, width, height, file, form, strange)

        return answer

    def arrays(self, network: NetworkFacts) -> tuple[TensorSpec, ...]:
        dtype = "uint8" if network.classes <= _MOST_PALETTE else "uint16"
        return (TensorSpec("mask", dtype, (FREE, FREE)),)

    def schemas(self, network: NetworkFacts) -> tuple[Schema, ...]:
        _, name = named(network.labels)
        whole: Schema = {"type": "integer", "minimum": 1}
        file: Schema = {"type": "string", "contentEncoding": "base64", "contentMediaType": png.PNG}
        size: Schema = {"type": "array", "items": whole, "minItems": 2, "maxItems": 2}
        runs = record({"size": size, "counts": {"type": "string"}})
        runs["description"] = "With `?mask=rle`: COCO's compressed run-length encoding; the size is height, width."
        index: Schema = {"type": "integer", "minimum": 0} | (
            {"maximum": max(network.classes, 2) - 1} if network.classes else {}
        )
        score: Schema = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
        each = record(
            {"label": name, "score": score, "class_index": index, "pixels": whole, "mask": {"anyOf": [file, runs]}},
            title="Segment",
        )
        found: Schema = {"type": "array", "items": each, "description": "The classes that have pixels, by number."}
        image = record({"width": whole, "height": whole})
        image["description"] = "The size of the image as it was sent, turned upright, in pixels; masks are as large."
        return (record({"predictions": found, "image": image}),)

    def agreement(
        self, network: NetworkFacts, expected: Tensors, found: Tensors, *, tolerance: float = agreement.TOLERANCE
    ) -> Agreement:
        name = network.outputs[0].name
        return compare(expected[name], found[name], network.activation, tolerance=tolerance)

    def kept(self, network: NetworkFacts, outputs: Tensors) -> Tensors:
        """The class of each pixel, and the numbers at some of them: of 21 classes a fortieth of all numbers."""
        numbers = outputs[network.outputs[0].name]
        dtype = np.uint8 if network.classes <= _MOST_PALETTE else np.uint16
        steps = [-(-side // _SAMPLED) for side in numbers.shape[2:]]
        return {
            _CLASSES: _classes(numbers, network.activation).astype(dtype),
            _NUMBERS: np.ascontiguousarray(numbers[:, :, :: steps[0], :: steps[1]]),
        }

    def outputs_apart(self, network: NetworkFacts, expected: Tensors, found: Tensors) -> str | None:
        name = network.outputs[0].name
        if not expected:
            return None
        if name not in found:
            return f"{name} is missing"
        if not np.isfinite(found[name]).all():
            return f"{name} holds numbers that are not finite"
        kept = self.kept(network, found)
        measured = agreement.measure(expected[_NUMBERS], kept[_NUMBERS], classes=False)
        if expected[_CLASSES].shape != kept[_CLASSES].shape:
            return f"its map is of {kept[_CLASSES].shape[1:]} where {expected[_CLASSES].shape[1:]} is expected"
        share = float((expected[_CLASSES] == kept[_CLASSES]).mean())
        measured = msgspec.structs.replace(measured, same_top_class=share >= SAME_PIXELS, pixels=share)
        return None if measured.holds else f"its map is another: {measured}"

    def lead(self, outputs: Sequence[TensorSpec]) -> str:
        return "Show it a picture, and it says of every pixel what it belongs to."

    def line(self, row: Mapping[str, Any]) -> tuple[str, bool]:
        whole = row["width"] * row["height"]
        told = [f"{label} {count / whole:.0%}" for label, count in zip(row["labels"], row["pixels"], strict=True)]
        return ", ".join(told), bool(told)


def compare(
    expected: npt.NDArray[Any], found: npt.NDArray[Any], activation: Activation, *, tolerance: float
) -> Agreement:
    """How well maps of numbers, (rows, classes, height, width), agree: the numbers, and the class of each pixel."""
    measured = agreement.measure(expected, found, classes=False, tolerance=tolerance)
    if expected.shape != found.shape:
        return measured
    first, second = (_classes(each, activation) for each in (expected, found))
    share = float((first == second).mean())
    return Agreement(
        len(expected), measured.difference, measured.same_top_class and share >= SAME_PIXELS, tolerance, pixels=share
    )


def _classes(numbers: npt.NDArray[Any], activation: Activation) -> npt.NDArray[Any]:
    if numbers.shape[1] > 1:
        best: npt.NDArray[Any] = numbers.argmax(axis=1)
        return best
    above: npt.NDArray[np.bool_] = numbers > _cut(0.5, activation)
    return above


def _cut(threshold: float, activation: Activation) -> float:
    """The number of the only channel above which a pixel's probability is above the threshold."""
    if activation.by == "network":
        return threshold
    if not 0 < threshold < 1:
        return math.copysign(math.inf, threshold - 0.5)
    return math.log(threshold / (1 - threshold))


def _above(numbers: npt.NDArray[np.float32], threshold: float, activation: Activation) -> npt.NDArray[np.float32]:
    """The only channel as the scores of two classes, of which the second wins above the threshold."""
    cut = np.float32(np.clip(_cut(threshold, activation), -3e38, 3e38))
    return np.concatenate([np.full_like(numbers, cut), numbers])


def _probabilities(numbers: npt.NDArray[np.float32], activation: Activation) -> Probability:
    """The probabilities of a class at some places, by the network's numbers; of one channel there are two classes.

    They are computed where they are asked for: of 21 classes each place has 21, and one counts.
    """
    if len(numbers) == 1:
        of_second = numbers[0] if activation.by == "network" else sigmoid(numbers[0])
        return lambda index, where: of_second[where] if index else 1 - of_second[where]
    if activation.logarithm:
        return lambda index, where: np.exp(numbers[index][where])
    if activation.by == "network" or activation.function == "none":
        return lambda index, where: numbers[index][where]
    if activation.function == "sigmoid":
        return lambda index, where: sigmoid(numbers[index][where])
    top, whole = numbers.max(axis=0), np.zeros(numbers.shape[1:], np.float32)
    with np.errstate(invalid="ignore"):
        for plane in numbers:
            shifted = plane - top
            whole += np.exp(shifted, out=shifted)
    return lambda index, where: np.exp(numbers[index][where] - top[where]) / whole[where]


def _segments(
    labels: npt.NDArray[Any], coarse: npt.NDArray[Any], probabilities: Probability, classes: int
) -> dict[int, tuple[float, int]]:
    """The score and the pixels of each class in `labels`. The score is the mean probability over the places of the
    network's own output where the class is the most probable one, which are in `coarse`; if there are none, its
    highest."""
    counts = np.bincount(labels.ravel(), minlength=classes)
    places = np.bincount(coarse.ravel(), minlength=classes)
    found = {}
    with np.errstate(invalid="ignore"):
        for index in np.flatnonzero(counts).tolist():
            if places[index]:
                score = float(probabilities(index, coarse == index).mean())
            else:
                score = float(probabilities(index, np.ones(coarse.shape, bool)).max())
            found[index] = (min(score, 1.0), int(counts[index]))
    return found


def _require_map(outputs: Sequence[TensorSpec]) -> TensorSpec:
    """The only output. Raises `BundleError` unless it has a number for each class and pixel."""
    if len(outputs) == 1 and len(outputs[0].shape) == 3 and outputs[0].shape[0] > 0:
        return outputs[0]
    told = ", ".join(f"{spec.name} {spec}" for spec in outputs)
    raise BundleError(
        "the task semantic-segmentation needs one output of classes × height × width, and this network has "
        f"{told}: build it again without --task"
    )


TASK = SemanticSegmentationTask()
