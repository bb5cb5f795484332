"""Decide whether inputs of a known shape are images or numbers, and how images are prepared. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from flambeau.bundle.storage import AudioConfig, ImageConfig, TextConfig
from flambeau.errors import SourceError
from flambeau.items import FREE
from flambeau.settings.source import SourceOptions
from flambeau.types import TensorSpec


@dataclass(frozen=True)
class InputForm:
    """The specs of a network's inputs; for images, texts and sounds also how they are prepared.

    `classes` are the names of classes that lie beside a tokenizer. `rows`, where set, is the only number of rows the
    network takes, and `one_row` the reason when that is one.
    """

    inputs: tuple[TensorSpec, ...]
    image: ImageConfig | None = None
    text: TextConfig | None = None
    audio: AudioConfig | None = None
    classes: tuple[str, ...] | None = None
    note: str = ""
    rows: int | None = None
    one_row: str | None = None


def shape_of(asked: Sequence[int | str]) -> tuple[int, ...]:
    """The shape that `--input-shape` gives: a word in it is a free axis, of any length."""
    return tuple(FREE if isinstance(size, str) else size for size in asked)


def of_shape(shape: tuple[int, ...], name: str, options: SourceOptions) -> InputForm:
    """Images where the shape looks like one (1 or 3 channels, square), unless `--pipeline` decides; else numbers."""
    looks = len(shape) == 3 and shape[0] in (1, 3) and shape[1] == shape[2]
    if options.pipeline == "image" or (options.pipeline is None and looks):
        return as_images(shape, name, options)
    return InputForm((TensorSpec("input", "float32", shape),))


def as_images(shape: tuple[int, ...], name: str, options: SourceOptions) -> InputForm:
    """Images of that shape, (channels, side, side). Raises `SourceError` for any other shape."""
    if len(shape) != 3 or shape[0] not in (1, 3) or shape[1] != shape[2]:
        raise SourceError(
            f"{name} takes inputs of shape {list(shape)}: images are square, with 1 or 3 channels first: "
            "serve it with --pipeline tensor"
        )
    if options.crop not in (None, shape[1]):
        raise SourceError(f"--crop {options.crop}, but {name} takes images of {shape[1]} pixels: leave --crop out")
    return InputForm((TensorSpec("input", "float32", shape),), image=_prepared(shape[0], shape[1]))


def _prepared(channels: int, side: int) -> ImageConfig:
    """The default preparation of images: the ImageNet recipe at its own size; for other sizes, resized to `side`.

    Colour is normalised with ImageNet's mean and std, as in most training scripts. Grey images have no such convention
    and stay between 0 and 1.
    """
    recipe = ImageConfig()
    resize = recipe.resize if side == recipe.crop else side
    if channels == 1:
        return ImageConfig(resize=resize, crop=side, mean=(0.0,), std=(1.0,))
    return ImageConfig(resize=resize, crop=side)
