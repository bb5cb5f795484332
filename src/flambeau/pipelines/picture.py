"""Whole images to tensors, for networks that take them in any size, such as detectors.

The image is decoded as `image` does it, and scaled to [0, 1], as torchvision's `to_tensor` does; nothing is cut off.
One of very many pixels is reduced by a whole factor, so that memory has a bound: a float32 image takes twelve bytes a
pixel, and the network copies it. Answers are in pixels of the image as it was sent.
"""

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from flambeau.answers.boxes import BOXES, KEYPOINTS
from flambeau.bundle import storage
from flambeau.errors import InvalidInput
from flambeau.pipelines.image import decode, file_in, size_of
from flambeau.tasks import Postprocess
from flambeau.tasks.object_detection import SIZE
from flambeau.types import Answer, Item, Payload, Tensors, TensorSpec

MOST_UNEQUAL = 256
"""The most times as long as wide that an image may be: resized to what a detector takes, nothing of one is left."""

_EXAMPLE = (320, 240)


class PicturePipeline:
    """One image to (1, 3, height, width) float32, and its row of the outputs to the task's answer."""

    def __init__(
        self,
        config: storage.PictureConfig,
        *,
        postprocess: Postprocess,
        inputs: Sequence[TensorSpec],
        max_pixels: int,
    ) -> None:
        self._most_pixels = config.most_pixels
        self._answer = postprocess
        self._input = inputs[0].name
        self._max_pixels = max_pixels

    def preprocess(self, payload: Payload) -> Tensors:
        """Raises `InvalidInput` if the payload is not an image, is too large by its header, too thin, or broken."""
        image = decode(file_in(payload), max_pixels=self._max_pixels)
        refuse_thin(image.size)
        factor = self._factor(*image.size)
        return {self._input: scaled(image.reduce(factor) if factor > 1 else image)}

    def postprocess(self, outputs: Tensors, item: Item) -> Answer:
        """The task's answer, with boxes and keypoints in pixels of the image as it was sent."""
        width, height = size_of(item.payload.data)
        factor = self._factor(width, height)
        if factor > 1:  # the last pixel of a reduced image may stand for less than a whole block
            edge = np.array([width, height, width, height], np.float32)
            larger = {BOXES: np.minimum(outputs[BOXES] * np.float32(factor), edge)}
            if KEYPOINTS in outputs:
                larger[KEYPOINTS] = np.minimum(outputs[KEYPOINTS] * np.float32(factor), edge[:2])
            outputs = outputs | larger
        return self._answer(outputs | {SIZE: np.array([[height, width]])}, item)

    def example(self) -> Payload:
        """A small grey PNG."""
        file = io.BytesIO()
        Image.new("RGB", _EXAMPLE, (128, 128, 128)).save(file, "PNG")
        return Payload("file", file.getvalue())

    def _factor(self, width: int, height: int) -> int:
        return max(1, math.ceil(math.sqrt(width * height / self._most_pixels)))


def refuse_thin(size: tuple[int, int]) -> None:
    """Raise `InvalidInput` for an image of which nothing would be left once it is resized."""
    if max(size) > MOST_UNEQUAL * min(size):
        raise InvalidInput(
            f"an image of {size[0]} × {size[1]} pixels is too thin: the most is {MOST_UNEQUAL} times as long as wide",
            code="input_rejected",
        )


def scaled(image: Image.Image) -> np.ndarray:
    """The pixels of an RGB image on the scale [0, 1], float32 (1, 3, height, width), as `to_tensor` has them."""
    planes = np.empty((1, 3, image.height, image.width), np.float32)
    for plane, channel in zip(planes[0], image.split(), strict=True):
        np.divide(np.asarray(channel), np.float32(255), out=plane)
    return planes
