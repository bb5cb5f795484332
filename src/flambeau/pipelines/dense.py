"""Images of any size to tensors, for networks that answer for every pixel.

The image is decoded as `image` does it, resized as its config says, and padded at its right and lower edges to sides
that the network can compute. Tasks get to know how much of the output the image covers, and the image's own size.
"""

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from flambeau.bundle.pipeline_config import DenseConfig
from flambeau.errors import InvalidInput
from flambeau.pipelines.image import decode, file_in, normalise, size_of
from flambeau.pipelines.picture import refuse_thin
from flambeau.pipelines.tiling import Grid
from flambeau.tasks import Postprocess
from flambeau.tasks.semantic_segmentation import EXTENT, SIZE
from flambeau.types import Answer, Item, Payload, Tensors, TensorSpec

LEAST_SIDE = 32
"""Pixels: a shorter side is padded to this length at least, because networks halve their maps a few times."""

MOST_ANSWERED = 16_777_216
"""The most pixels of a picture that a network makes: they are in memory as float32, with a copy."""

_EXAMPLE = (96, 64)


class DensePipeline:
    """One image to (1, channels, height, width) float32, and its row of the output to the task's answer."""

    def __init__(
        self,
        config: DenseConfig,
        *,
        postprocess: Postprocess,
        inputs: Sequence[TensorSpec],
        max_pixels: int,
    ) -> None:
        self._config = config
        self._answer = postprocess
        self._input = inputs[0].name
        self._max_pixels = max_pixels

    def preprocess(self, payload: Payload) -> Tensors:
        """Raises `InvalidInput` if the payload is not an image, is too large by its header, too thin, or broken."""
        image = decode(file_in(payload), max_pixels=self._max_pixels)
        refuse_thin(image.size)
        self._refuse_large(image.size)
        grid = self._grid(*resized(self._config, *image.size))
        if grid is None:
            return {self._input: prepared(image, self._config)}
        return {self._input: grid.cut(planes_of(image, self._config))}

    def postprocess(self, outputs: Tensors, item: Item) -> Answer:
        """The task's answer, in the size of the image as it was sent."""
        width, height = size_of(item.payload.data)
        taken = resized(self._config, width, height)
        up, down = self._config.scale
        extent = [side * up / down for side in reversed(taken)]
        if (grid := self._grid(*taken)) is not None:
            outputs = {name: grid.join(tiles, self._config.scale) for name, tiles in outputs.items()}
        return self._answer(outputs | {SIZE: np.array([[height, width]]), EXTENT: np.array([extent])}, item)

    def _grid(self, width: int, height: int) -> Grid | None:
        """The tiles of an image of that size; `None` if it is computed as a whole."""
        config = self._config
        if config.fixed or config.large != "tile" or width * height <= config.most_pixels:
            return None
        return Grid.over(height, width, config.overlap)

    def _refuse_large(self, size: tuple[int, int]) -> None:
        """Raise `InvalidInput` for an image that the network cannot compute, or whose answer would be too large."""
        stretched = self._config.fixed is not None
        width, height = size if stretched else resized(self._config, *size)
        up, down = self._config.scale
        told = f"an image of {size[0]} × {size[1]} pixels is too large"
        if self._config.large == "refuse" and not stretched and width * height > self._config.most_pixels:
            raise InvalidInput(
                f"{told}: this network takes {self._config.most_pixels} pixels at most, for its answer to a pixel "
                "depends on the whole image, so that it cannot be cut into tiles",
                code="image_too_large",
            )
        up, down = (up, down) if up > down or not stretched else (1, 1)  # a picture is no smaller than the image
        pictures = stretched and not self._config.classes
        if (self._config.large != "reduce" or pictures) and width * height * up * up > MOST_ANSWERED * down * down:
            raise InvalidInput(
                f"{told}: the answer would have {width * height * up * up // (down * down)} pixels, and the most is "
                f"{MOST_ANSWERED}",
                code="image_too_large",
            )

    def example(self) -> Payload:
        """A small grey PNG."""
        file = io.BytesIO()
        Image.new("RGB", _EXAMPLE, (128, 128, 128)).save(file, "PNG")
        return Payload("file", file.getvalue())


def resized(config: DenseConfig, width: int, height: int) -> tuple[int, int]:
    """The width and height to which an image is resized, before it is padded."""
    if config.fixed is not None:
        return config.fixed[1], config.fixed[0]
    short, long = min(width, height), max(width, height)
    if config.resize is not None:
        short, long = config.resize, int(config.resize * long / short)
    if short * long > config.most_pixels and config.large == "reduce":
        shrunk = math.sqrt(config.most_pixels / (short * long))
        short, long = max(1, int(short * shrunk)), max(1, int(long * shrunk))
    return (short, long) if width <= height else (long, short)


def prepared(image: Image.Image, config: DenseConfig) -> np.ndarray:
    """The network's input for an RGB image: float32 (1, channels, height, width), padded."""
    planes = planes_of(image, config)
    return planes if config.fixed else padded(planes, config.multiple)


def planes_of(image: Image.Image, config: DenseConfig) -> np.ndarray:
    """The same before it is padded."""
    size = resized(config, *image.size)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    if len(config.mean) == 1:
        image = image.convert("L")
    return normalise(image, np.array(config.mean, np.float32), np.array(config.std, np.float32))


def padded(planes: np.ndarray, multiple: int) -> np.ndarray:
    """The planes (1, channels, height, width) with their last row and column repeated, until both sides are multiples
    of `multiple` and no shorter than `LEAST_SIDE`."""
    sides = [math.ceil(max(side, LEAST_SIDE) / multiple) * multiple for side in planes.shape[2:]]
    more = [(0, wanted - side) for wanted, side in zip(sides, planes.shape[2:], strict=True)]
    return planes if not any(after for _, after in more) else np.pad(planes, [(0, 0), (0, 0), *more], "edge")
