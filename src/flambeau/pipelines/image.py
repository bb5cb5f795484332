"""Image bytes to a normalised tensor. The task makes the answer from the outputs.

The numbers are torchvision's: Resize (shorter side, antialiased), CenterCrop, ToTensor, Normalize, on Pillow images.
Only numpy and Pillow are needed, not torch. Tested against torchvision itself over a table of odd images.

Images are decoded as training scripts decode them, with `convert("RGB")`: alpha is dropped, palettes and CMYK are
converted, and of an animation only the first frame is used. Two things differ from such scripts on purpose: EXIF
orientation is applied (a phone's portrait photograph is turned upright), and 16-bit samples are scaled to 8 bits,
because Pillow's own conversion would clip nearly all of them to white. `image_limits` decides how much of a file Pillow
gets to see.
"""

import io
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from flambeau.bundle import storage
from flambeau.errors import InvalidInput
from flambeau.pipelines.image_limits import trim
from flambeau.pipelines.kept_part import KeptPart, part_kept
from flambeau.pipelines.not_an_image import what_is
from flambeau.tasks import Postprocess
from flambeau.types import Payload, Tensors, TensorSpec

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""The parsers that may see a request's bytes. Pillow has forty more, which few need and attackers like."""

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
Whole = Callable[[float], int]
"""What makes a whole pixel of a place between two: `round` takes the even one."""

_FILTER_REACH = 2  # source pixels on each side that the widest filter, bicubic, reads when it enlarges
_FAST_DECODE = 3  # times `resize`: the least shorter side of a JPEG that is decoded at a reduced size
_LARGEST_RESIZED = 16_000_000  # pixels; a thin strip that would be larger is cut before it is resized


class ImagePipeline:
    """One image to (1, channels, crop, crop) float32, and its row of the outputs to the task's answer."""

    def __init__(
        self,
        config: storage.ImageConfig,
        *,
        postprocess: Postprocess,
        inputs: Sequence[TensorSpec],
        max_pixels: int,
        fast_decode: bool = False,
    ) -> None:
        self._config = config
        self.postprocess = postprocess
        self._input = inputs[0].name
        self._max_pixels = max_pixels
        self._draft = _FAST_DECODE * config.resize if fast_decode else None
        self._mean = np.array(config.mean, np.float32)
        self._std = np.array(config.std, np.float32)

    def preprocess(self, payload: Payload) -> Tensors:
        """Raises `InvalidInput` if the payload is not an image, is too large by its header, or is broken."""
        image = decode(file_in(payload), max_pixels=self._max_pixels, shorter_side=self._draft)
        config = self._config
        image = resize_and_crop(
            image, config.resize, config.crop, resampling=_RESAMPLING[config.interpolation], stretch=config.stretch,
            whole=math.floor if config.crop_floor else round,
        )  # fmt: skip
        if len(self._mean) == 1:
            image = image.convert("L")
        return {self._input: normalise(image, self._mean, self._std)}

    def example(self) -> Payload:
        """A grey PNG of the crop's size."""
        file = io.BytesIO()
        Image.new("RGB", (self._config.crop, self._config.crop), (128, 128, 128)).save(file, "PNG")
        return Payload("file", file.getvalue())


def file_in(payload: Payload) -> bytes | memoryview:
    """The bytes of an image file. Raises `InvalidInput` if the payload is something else."""
    if payload.kind != "file":
        raise InvalidInput(
            "this model takes an image, not JSON: send the file as multipart field 'file'",
            code="unsupported_media_type",
        )
    data: bytes | memoryview = payload.data
    return data


def decode(data: bytes | memoryview, *, max_pixels: int, shorter_side: int | None = None) -> Image.Image:
    """The first frame of an image file, upright, as 8-bit RGB.

    With `shorter_side` a JPEG may be decoded at a half, a quarter or an eighth of its size, as long as its shorter side
    is at least that long. Its blocks are then decoded to fewer pixels each: several times as fast, but not exact.

    Raises `InvalidInput` with code `unsupported_image_format`, `image_too_large` (decided before anything is decoded,
    by the header's pixels and by what decoding them would take) or `image_undecodable`.
    """
    trimmed = trim(bytes(data))
    try:
        image = Image.open(io.BytesIO(trimmed.data), formats=FORMATS)
    except UnidentifiedImageError:
        raise _unsupported(trimmed.data) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large("an image of that size", max_pixels) from None
    except Exception:  # on hostile bytes a parser may raise anything; it all means the same to the client
        raise _undecodable() from None
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(f"an image of {width} × {height} pixels", max_pixels)
    try:
        if shorter_side:
            image.draft(None, (shorter_side, shorter_side))  # does nothing to other formats
        image.load()
        return _upright(_to_rgb(image, trimmed.bits), trimmed.orientation)
    except MemoryError:
        raise _too_large(f"an image of {width} × {height} pixels", max_pixels) from None
    except Exception:
        raise _undecodable() from None


def size_of(data: bytes | memoryview) -> tuple[int, int]:
    """Width and height of an image that `decode` can decode, upright. Nothing is decoded."""
    trimmed = trim(bytes(data))
    width, height = Image.open(io.BytesIO(trimmed.data), formats=FORMATS).size
    return (height, width) if trimmed.orientation in _LYING else (width, height)


def _to_rgb(image: Image.Image, bits: int | None) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: I;16 and its byte orders; Pillow widens some files to I
        samples = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
        return Image.fromarray((samples * 255 // _white(samples, bits)).astype(np.uint8)).convert("RGB")
    image.info.pop("transparency", None)  # dropped in any case; if it is a table, Pillow would warn
    return image if image.mode == "RGB" else image.convert("RGB")


def _white(samples: npt.NDArray[np.uint32], bits: int | None) -> int:
    """The value of white in a 16-bit grey image, `bits` of which are significant.

    A PNG's samples fill all 16 bits, whatever its chunk sBIT says (W3C PNG, third edition, 11.3.2.4): sBIT is how many
    bits they had before they were scaled. But some writers add the chunk to samples that they did not scale. Then all
    samples are below 2**bits, and they cannot all be the result of scaling. So the file itself decides, not a guess.
    For example, with 12 bits and the samples 0, 1000 and 4095, white is 4095: a scaled 12-bit sample cannot be 1000.
    """
    if not bits or not 8 <= bits < 16 or samples.max(initial=0) >= 1 << bits:
        return 65535
    before = samples >> (16 - bits)  # the samples before scaling, if they were scaled
    scaled = (
        before << (16 - bits),  # filled up with zeros
        before << (16 - bits) | before >> (2 * bits - 16),  # filled up with the upper bits
        (before * 65535 + ((1 << bits) - 1) // 2) // ((1 << bits) - 1),  # multiplied
    )
    return 65535 if any(np.array_equal(samples, each) for each in scaled) else (1 << bits) - 1


_TURNS = {  # by EXIF orientation (CIPA DC-008, 4.6.4): the transposition that turns the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_LYING = (5, 6, 7, 8)
"""The orientations of an image that lies on its side."""


def _upright(image: Image.Image, orientation: int | None) -> Image.Image:
    turn = None if orientation is None else _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def resize_and_crop(
    image: Image.Image,
    resize: int,
    crop: int,
    *,
    resampling: Image.Resampling,
    stretch: bool = False,
    whole: Whole = round,
) -> Image.Image:
    """torchvision's `Resize(resize)` and `CenterCrop(crop)` on an RGB image; `Resize((resize, resize))` to `stretch`.

    `whole` makes a whole pixel of the place where the crop begins, which may be half of one.
    A strip so thin that its resized form would not fit in memory is cut around the crop first, with a margin for the
    filter. The result then agrees with torchvision's to one grey level, otherwise exactly.
    """
    width, height = image.size
    target = (resize, int(resize * height / width)) if width <= height else (int(resize * width / height), resize)
    if stretch:
        target = (resize, resize)
    if target != image.size:
        if (part := part_kept(image.size, target, crop=crop, resampling=resampling)) is not None:
            return _cut_out(image.resize(part.size, resampling, box=part.box), target, crop, part, whole)
        if target[0] * target[1] <= _LARGEST_RESIZED:
            image = image.resize(target, resampling)
        else:
            image = _resize_around_crop(image, target, crop, resampling)
    return _center_crop(image, crop, whole)


def _resize_around_crop(
    image: Image.Image, target: tuple[int, int], crop: int, resampling: Image.Resampling
) -> Image.Image:
    """Resize only those columns (or rows) of a thin strip that the centre crop keeps."""
    axis = 0 if target[0] > target[1] else 1
    scale = image.size[axis] / target[axis]
    margin = _FILTER_REACH * max(1, math.ceil(1 / scale)) + 2  # output pixels that the filter reads, and two to spare
    start = max(0, round((target[axis] - crop) / 2) - margin)
    start -= start % 2  # `round` rounds halves to even: only an even shift leaves the crop in its place
    size = target[axis] - 2 * start
    box = [0.0, 0.0, float(image.size[0]), float(image.size[1])]
    box[axis], box[axis + 2] = start * scale, min((start + size) * scale, box[axis + 2])
    kept = list(target)
    kept[axis] = size
    return image.resize((kept[0], kept[1]), resampling, box=(box[0], box[1], box[2], box[3]))


def _center_crop(image: Image.Image, size: int, whole: Whole) -> Image.Image:
    """Cut out the middle. A smaller image is padded with black, as in torchvision."""
    width, height = image.size
    if width < size or height < size:
        left, top = max(0, size - width) // 2, max(0, size - height) // 2
        right, bottom = (max(0, size - width) + 1) // 2, (max(0, size - height) + 1) // 2
        image = ImageOps.expand(image, (left, top, right, bottom), fill=0)
        width, height = image.size
    left, top = whole((width - size) / 2.0), whole((height - size) / 2.0)
    return image.crop((left, top, left + size, top + size))


def _cut_out(image: Image.Image, target: tuple[int, int], crop: int, part: KeptPart, whole: Whole) -> Image.Image:
    """Cut the middle of a result of the size `target` out of the part of it that was computed."""
    left, top = whole((target[0] - crop) / 2.0) - part.left, whole((target[1] - crop) / 2.0) - part.top
    return image.crop((left, top, left + crop, top + crop))


def normalise(
    image: Image.Image, mean: npt.NDArray[np.float32], std: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """ToTensor and Normalize: an image of one or three channels to (1, channels, height, width).

    The recipe's three steps in float32, to the last bit. One channel at a time, so that each step runs over contiguous
    memory: eight times as fast as over all channels at once. Pillow takes the channels apart faster than numpy does.
    """
    planes = np.empty((1, len(mean), image.height, image.width), np.float32)
    for channel, (plane, band) in enumerate(zip(planes[0], image.split(), strict=True)):
        plane[...] = np.asarray(band)
        plane /= np.float32(255.0)
        plane -= mean[channel]
        plane /= std[channel]
    return planes


def _too_large(what: str, max_pixels: int) -> InvalidInput:
    return InvalidInput(f"{what} is too large: the most is {max_pixels} pixels", code="image_too_large")


def _unsupported(data: bytes) -> InvalidInput:
    """Says what was sent, if its bytes show it, and what to send."""
    name, remedy = what_is(data)
    taken = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    if name is None:
        sentence = f"the file is not an image that this model reads: send {taken}"
    else:
        sentence = f"this is {name}, and not an image that this model reads: {remedy} ({taken})"
    return InvalidInput(sentence, code="unsupported_image_format")


def _undecodable() -> InvalidInput:
    return InvalidInput("the image is broken or cut short: send the whole file", code="image_undecodable")
