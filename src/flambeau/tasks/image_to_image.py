"""Image to image: a picture made of an image, such as a sharper or larger one, or a map of depths."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np
import numpy.typing as npt

from flambeau.answers import Answer, Asked, Expected, interpolation, png
from flambeau.answers.base import foreign
from flambeau.answers.schemas import NUMBER, Schema, record
from flambeau.errors import BundleError
from flambeau.items import FREE, Item, Tensors, TensorSpec
from flambeau.tasks.base import CellKind, NetworkFacts, Postprocess, Renderer, Task
from flambeau.tasks.semantic_segmentation import EXTENT, SIZE

_PLANES = (1, 3)
_ROWS = 256  # of a picture that are made at a time


class ImageToImage(Answer, frozen=True):
    """The picture made of one image, as a PNG file: grey or RGB, of 8 or 16 bits. `width`, `height`: its own.

    `black`, `white`: the network's numbers that are 0 and the largest number in the file. `strange`: how many of the
    network's numbers were not finite; NaN is black.
    """

    KIND = "a picture"
    PARTS: ClassVar[Mapping[str, Any]] = {"width": int, "height": int}

    file: bytes
    width: Annotated[int, msgspec.Meta(ge=1)]
    height: Annotated[int, msgspec.Meta(ge=1)]
    black: float
    white: float
    strange: int = 0

    def __post_init__(self) -> None:
        if png.size_of(self.file) != (self.width, self.height):
            raise ValueError(f"the picture is not of {self.width} × {self.height} pixels")

    @property
    def nonfinite(self) -> int:
        return self.strange

    @property
    def size(self) -> int:
        return len(self.file) * 4 // 3

    @property
    def pixels(self) -> npt.NDArray[Any]:
        """uint8 or uint16 of shape (height, width), or (height, width, 3)."""
        return png.read(self.file)

    def tensors(self) -> Tensors:
        """The pixels, (1, height, width, channels)."""
        pixels = self.pixels
        return {"picture": pixels.reshape(1, *pixels.shape[:2], -1)}

    def body(self, asked: Asked) -> dict[str, Any]:
        return {
            "picture": self.file,
            "width": self.width,
            "height": self.height,
            "range": {"black": self.black, "white": self.white},
        }

    def row(self, *, top_k: int | None, probabilities: bool) -> dict[str, Any]:
        return {"width": self.width, "height": self.height, "black": self.black, "white": self.white}

    def picture(self) -> bytes:
        return self.file

    def differs(self, expected: Expected) -> str | None:
        """The size alone; the numbers of the network are compared as its outputs."""
        if odd := foreign(expected, self):
            return odd
        for name in ("width", "height"):
            if expected.get(name) not in (None, getattr(self, name)):
                return f"{name} is {getattr(self, name)} where {expected[name]} is expected"
        return None


def only_file(found: Sequence[ImageToImage]) -> bytes:
    """The file of the only answer."""
    [only] = found
    return only.file


class ImageToImageTask(Task):
    """The network's numbers as pixels. Those outside of the range from black to white become black or white."""

    name = "image-to-image"
    title = "Image to image"
    told = (
        "The picture that the network makes of the image, as a PNG in base64, with its size and the numbers that are "
        "black and white in it. With `Accept: image/png`, which takes one image at a time, the file itself."
    )
    answer = ImageToImage
    dense = True
    pictorial = True
    parameters: ClassVar[Mapping[str, str]] = {
        "bits": "The bits of a sample in the PNG: `8`, or `16` for maps whose steps matter. Default: 8.",
    }
    media_types: ClassVar[Mapping[str, Renderer]] = {png.PNG: only_file}
    columns: ClassVar[Mapping[str, CellKind]] = {
        "width": "whole", "height": "whole", "black": "number", "white": "number",
    }  # fmt: skip

    def postprocess(self, network: NetworkFacts) -> Postprocess:
        output = _require_picture(network.outputs)
        up, down = network.scale

        def answer(outputs: Tensors, item: Item) -> ImageToImage:
            planes = outputs[output.name][0]
            [(height, width)] = outputs[SIZE].tolist()
            [(rows, columns)] = outputs[EXTENT].tolist()
            factor = max(1.0, up / down)
            size = (max(1, round(height * factor)), max(1, round(width * factor)))
            if size == (rows, columns):
                planes = planes[:, : size[0], : size[1]]
            else:
                planes = interpolation.resampled(planes, size, extent=(rows, columns))
            finite = np.isfinite(planes)
            strange = int(planes.size - np.count_nonzero(finite))
            black, white = network.levels or _own_levels(planes, finite)
            pixels = _pixels(planes, black, white, item.options.bits)
            smooth = pixels.shape[0] > 1
            return ImageToImage(png.write(pixels, smooth=smooth), size[1], size[0], black, white, strange)

        return answer

    def arrays(self, network: NetworkFacts) -> tuple[TensorSpec, ...]:
        return (TensorSpec("picture", "uint8", (FREE, FREE, network.outputs[0].shape[0])),)

    def schemas(self, network: NetworkFacts) -> tuple[Schema, ...]:
        whole: Schema = {"type": "integer", "minimum": 1}
        file: Schema = {"type": "string", "contentEncoding": "base64", "contentMediaType": png.PNG}
        levels = record({"black": NUMBER, "white": NUMBER})
        levels["description"] = "The network's numbers that are black and white in the picture."
        return (record({"picture": file, "width": whole, "height": whole, "range": levels}),)

    def lead(self, outputs: Sequence[TensorSpec]) -> str:
        return "Show it a picture, and it makes another of it."

    def line(self, row: Mapping[str, Any]) -> tuple[str, bool]:
        return f"a picture of {row['width']} × {row['height']} pixels", True


def _own_levels(planes: npt.NDArray[Any], finite: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """The least and the largest number of a map; of a flat one, such that it is black."""
    numbers = planes[finite]
    if not numbers.size:
        return 0.0, 1.0
    black, white = float(numbers.min()), float(numbers.max())
    return (black, white) if white > black else (black, black + max(1.0, abs(black)))


def _pixels(planes: npt.NDArray[Any], black: float, white: float, bits: int) -> npt.NDArray[Any]:
    """(channels, height, width) to whole numbers, (height, width) or (height, width, 3), rounded to the nearest.

    In float64, some rows at a time: in float32 the factor is infinite for levels closer than 1e-34.
    """
    most = (1 << bits) - 1
    made = np.empty((*planes.shape[1:], len(planes)), np.uint8 if bits == 8 else np.uint16)
    for channel, plane in enumerate(planes):
        for start in range(0, len(plane), _ROWS):
            part = slice(start, start + _ROWS)
            scaled = (plane[part].astype(np.float64) - black) * (most / (white - black))
            made[part, :, channel] = np.nan_to_num(scaled, nan=0.0).round().clip(0, most)
    return made[..., 0] if len(planes) == 1 else made


def _require_picture(outputs: Sequence[TensorSpec]) -> TensorSpec:
    """The only output. Raises `BundleError` unless it is a picture or a map."""
    if len(outputs) == 1 and len(outputs[0].shape) == 3 and outputs[0].shape[0] in _PLANES:
        return outputs[0]
    told = ", ".join(f"{spec.name} {spec}" for spec in outputs)
    raise BundleError(
        f"the task image-to-image needs one output of 1 or 3 channels × height × width, and this network has {told}: "
        "build it again without --task"
    )


TASK = ImageToImageTask()
