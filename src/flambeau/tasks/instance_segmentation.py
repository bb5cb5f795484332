"""Instance segmentation: what is in an image, as a box and a mask for each object, in the image's own size."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from flambeau.answers import Asked, instance_masks, label_maps, png
from flambeau.answers.boxes import BOXES, LABELS, MASKS, SCORES
from flambeau.answers.schemas import Schema, record
from flambeau.items import FREE, Item, MaskForm, Tensors, TensorSpec
from flambeau.tasks.base import CellKind, ClassNames, NetworkFacts, Postprocess
from flambeau.tasks.object_detection import (
    SIZE,
    Chosen,
    Detected,
    ObjectDetection,
    ObjectDetectionTask,
    require_outputs,
)

_MOST_NUMBERED = 255  # objects in a map of eight bits a pixel


class Instance(Detected, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One object with its mask: in COCO's run-length encoding, and as a PNG file if that was asked for. `pixels`: how
    many belong to the object."""

    pixels: int
    rle: str
    png: bytes = b""


class InstanceSegmentation(ObjectDetection, frozen=True):
    """The objects in one image, best first, each with its mask. `form`: how JSON has the masks."""

    KIND = "a list of objects with masks"

    found: tuple[Instance, ...]
    form: MaskForm = "png"

    @property
    def size(self) -> int:
        return sum(200 + len(each.rle) + len(each.png) * 4 // 3 for each in self.found)

    def mask(self, place: int) -> npt.NDArray[np.bool_]:
        """The mask of the object at that place of `found`: bool (height, width). Raises `ValueError` if its text is
        none of this picture."""
        return instance_masks.whole(self._region(place), (self.height, self.width))

    def _region(self, place: int) -> instance_masks.Region:
        return instance_masks.unpacked(self.found[place].rle, (self.height, self.width))

    def tensors(self) -> Tensors:
        """Those of a detector, and `masks` as text, (1, n): COCO's runs for the picture's `height` and `width`, int64
        (1)."""
        masks = np.empty((1, len(self.found)), np.object_)
        masks[0, :] = [each.rle for each in self.found]
        sides = {"height": np.array([self.height], np.int64), "width": np.array([self.width], np.int64)}
        return {**super().tensors(), MASKS: masks, **sides}

    def body(self, asked: Asked) -> dict[str, Any]:
        found = [
            {**each.body(), "pixels": each.pixels, "mask": self._shown(place)} for place, each in enumerate(self.found)
        ]
        return {**super().body(asked), "predictions": found}

    def _shown(self, place: int) -> Any:
        each = self.found[place]
        if self.form == "rle":
            return {"size": [self.height, self.width], "counts": each.rle}
        return each.png or instance_masks.file(self._region(place), (self.height, self.width))

    def row(self, *, top_k: int | None, probabilities: bool) -> dict[str, Any]:
        masks = {"masks": [each.rle for each in self.found], "pixels": [each.pixels for each in self.found]}
        return super().row(top_k=top_k, probabilities=probabilities) | masks

    def picture(self) -> bytes:
        """The number of each pixel's object, a PNG file with a palette: 1 is the best, and lies on top; 0 is none."""
        count = len(self.found)
        numbers = np.zeros((self.height, self.width), np.uint8 if count <= _MOST_NUMBERED else np.uint16)
        for place in reversed(range(count)):
            region = self._region(place)
            region.within(numbers)[region.inside] = place + 1
        return png.write(numbers, palette=label_maps.colours(count + 1) if numbers.dtype == np.uint8 else None)


class InstanceSegmentationTask(ObjectDetectionTask):
    """A detector's objects with their masks, which are pasted into the image one by one."""

    name = "instance-segmentation"
    title = "Instance segmentation"
    told = (
        "The objects whose score reaches the threshold, best first: the label of each, its score, its box in pixels of "
        "the image as it was sent, upright, and its mask in the size of that image."
    )
    answer = InstanceSegmentation
    parameters: ClassVar[Mapping[str, str]] = {
        **ObjectDetectionTask.parameters,
        "mask": "The form of a mask in JSON: `png`, a PNG in base64 that is 255 where the object is, or `rle`, COCO's "
        "run-length encoding. Default: png.",
    }
    columns: ClassVar[Mapping[str, CellKind]] = {**ObjectDetectionTask.columns, "masks": "texts", "pixels": "any"}
    beside_boxes = (MASKS, instance_masks.apart)

    def postprocess(self, network: NetworkFacts) -> Postprocess:
        wanted = {BOXES: (FREE, 4), SCORES: (FREE,), LABELS: (FREE,), MASKS: (FREE, FREE, FREE)}
        require_outputs(network.outputs, wanted, self.name)
        names = ClassNames.of(network)

        def answer(outputs: Tensors, item: Item) -> InstanceSegmentation:
            chosen = Chosen.of(outputs, item.options, network, names)
            [(height, width)] = outputs[SIZE].tolist()
            size, asked = (height, width), item.options.mask
            found = tuple(_instance(each, outputs[MASKS][0, place], size, asked) for place, each in chosen.found)
            weaker = chosen.weaker
            return InstanceSegmentation(
                found, width, height, chosen.threshold, weaker, form="rle" if asked == "rle" else "png"
            )

        return answer

    def of_each(self, network: NetworkFacts) -> dict[str, Schema]:
        whole: Schema = {"type": "integer", "minimum": 0}
        file: Schema = {"type": "string", "contentEncoding": "base64", "contentMediaType": png.PNG}
        size: Schema = {"type": "array", "items": whole, "minItems": 2, "maxItems": 2}
        runs = record({"size": size, "counts": {"type": "string"}})
        runs["description"] = "With `?mask=rle`: COCO's compressed run-length encoding; the size is height, width."
        return {"pixels": whole, "mask": {"anyOf": [file, runs]}}

    def arrays(self, network: NetworkFacts) -> tuple[TensorSpec, ...]:
        sides = (TensorSpec("height", "int64", ()), TensorSpec("width", "int64", ()))
        return (*super().arrays(network), TensorSpec(MASKS, "str", (FREE,)), *sides)


def _instance(each: Detected, small: npt.NDArray[Any], size: tuple[int, int], asked: MaskForm | None) -> Instance:
    region = instance_masks.pasted(small, each.box, size)
    file = instance_masks.file(region, size) if asked == "png" else b""
    return Instance(each.index, each.label, each.score, each.box, region.pixels, instance_masks.rle(region, size), file)


TASK = InstanceSegmentationTask()
