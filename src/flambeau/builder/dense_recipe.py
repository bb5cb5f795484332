"""What a network that answers for every pixel needs to know of its images: their preparation, sizes and scale.

It asks the network itself, as a function from sizes to the shape of its answer. Imports no torch, because graphs need
none.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import msgspec

from flambeau.builder.filled import Tell
from flambeau.bundle.storage import DenseConfig
from flambeau.errors import SourceError
from flambeau.settings.source import SourceOptions
from flambeau.tasks import TASKS

ONE_ROW = "pictures of unlike sizes keep sizes of their own"
"""Why such a network is given one picture at a time."""

SEGMENTS = "semantic-segmentation"
"""The task whose numbers are classes."""

AnswerShape = Callable[[tuple[int, int]], tuple[int, ...] | None]
"""The shape of the network's answer to an image of that height and width; `None` if it cannot compute it."""

_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
_LEAST_TRIED = 64  # pixels
_SCALES = (Fraction(1, 32), Fraction(8))
_OF_A_PICTURE = (1, 3)  # planes
_HALF = 0.5  # the probability above which a pixel is of the class of a network's only channel


class Sizes(NamedTuple):
    """The number of which sides have to be multiples, the output's pixels for one of the input, and its planes.

    `fixed`: the only height and width that it takes, if there are no others.
    """

    multiple: int
    scale: Fraction
    planes: int
    fixed: tuple[int, int] | None = None


def wanted(options: SourceOptions) -> bool:
    """Whether the user named a task that answers for every pixel."""
    return options.task is not None and TASKS[options.task].dense


def pipeline_of(options: SourceOptions, channels: int, sizes: Sizes, name: str, *, tell: Tell) -> DenseConfig:
    """The preparation, and what the user is told of it. Raises `SourceError`."""
    segments = options.task == SEGMENTS
    plain = channels == 1 or not segments
    recipe = DenseConfig(mean=(0.0,) * channels, std=(1.0,) * channels) if plain else DenseConfig()
    pipeline = msgspec.structs.replace(
        customised(recipe, options),
        multiple=sizes.multiple,
        scale=(sizes.scale.numerator, sizes.scale.denominator),
        classes=max(sizes.planes, 2) if segments else 0,
        fixed=sizes.fixed,
    )
    if sizes.planes == 1 and options.threshold is None and segments:
        pipeline = msgspec.structs.replace(pipeline, threshold=_HALF)
    if sizes.multiple > 1:
        tell(
            f"{name} computes sides that are multiples of {sizes.multiple}: pictures are padded, the answer is cropped"
        )
    resize = "" if sizes.fixed else "--resize, "
    tell(f"preparation: {pipeline}: {resize}--mean and --std change that")
    return pipeline


def customised(pipeline: DenseConfig, options: SourceOptions) -> DenseConfig:
    """The pipeline with the user's options applied. Raises `SourceError` for numbers that do not fit its channels."""
    asked = {key: getattr(options, key) for key in ("resize", "mean", "std", "threshold")}
    for key in ("mean", "std"):
        if asked[key] is not None and len(asked[key]) != len(pipeline.mean):
            raise SourceError(
                f"--{key} has {len(asked[key])} numbers, but the network takes {len(pipeline.mean)} channels"
            )
    return msgspec.structs.replace(pipeline, **{key: value for key, value in asked.items() if value is not None})


def sizes(answered: AnswerShape, name: str) -> Sizes:
    """Find them for a network that takes images of any size. Raises `SourceError` if there is no such multiple."""
    for multiple in _MULTIPLES:
        first = max(1, _LEAST_TRIED // multiple) | 1
        tried = [(first * multiple, (first + 2) * multiple), ((first + 4) * multiple, (first + 2) * multiple)]
        ratios, planes = set(), set()
        for sides in tried:
            shape = answered(sides)
            if shape is None or not of_pixels(shape):
                break
            ratios |= {Fraction(shape[2 + axis], side) for axis, side in enumerate(sides)}
            planes.add(shape[1])
        else:
            if len(ratios) == len(planes) == 1 and _SCALES[0] <= min(ratios) <= _SCALES[1]:
                return Sizes(multiple, ratios.pop(), planes.pop())
    shown = answered((256, 256))
    told = "cannot compute them" if shown is None else f"answers one of 256 × 256 with {list(shown)}"
    raise SourceError(
        f"{name} does not answer for every pixel of images of unlike sizes, and {told}: wrap it in a "
        "flambeau.PythonModel, which can give it images of the size that it needs"
    )


def sizes_of_one(shape: tuple[int, ...], fixed: tuple[int, int], name: str) -> Sizes:
    """Those of a network that takes images of one height and width, which it answers with `shape`.

    Raises `SourceError`.
    """
    ratios = {Fraction(size, side) for size, side in zip(shape[2:], fixed, strict=True)} if of_pixels(shape) else set()
    if len(ratios) != 1 or not _SCALES[0] <= min(ratios) <= _SCALES[1]:
        raise SourceError(
            f"{name} answers an image of {fixed[0]} × {fixed[1]} with {list(shape)}, which is no map of its pixels: "
            "leave out --task, or wrap it in a flambeau.PythonModel"
        )
    return Sizes(1, ratios.pop(), shape[1], fixed)


def of_pixels(shape: tuple[int, ...]) -> bool:
    """Whether this may be the shape of a map: (1, planes, height, width)."""
    return len(shape) == 4 and shape[0] == 1 and min(shape) > 0


def question(shape: tuple[int, ...], height: int, name: str) -> str:
    """The question to the user, if the answer to an image of that height is a map of its pixels; else nothing."""
    if not of_pixels(shape) or shape[2] * 32 < height:
        return ""
    what = "one number" if shape[1] == 1 else f"{shape[1]} numbers"
    told = f"{name} answers an image with {what} for each pixel, "
    say = f"say --task {SEGMENTS} if they are the scores of classes"
    if shape[1] not in _OF_A_PICTURE:
        return f"{told}and a picture has 1 or 3: {say}"
    return f"{told}which may be classes or a picture: {say}, or --task image-to-image if they are a picture or a map"
