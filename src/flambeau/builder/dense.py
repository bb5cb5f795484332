"""Networks that answer for every pixel in a build: segmenters of torchvision, and users' own.

They take pictures of any size, so they are probed one by one over pictures of unlike sizes, padded as a replica pads
them. The weights do not say whether maps are classes or a picture, so for own networks the user does (`--task`).
"""

import contextlib
import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from importlib import resources
from typing import Any

import msgspec
import numpy as np
import torch
from PIL import Image
from torch import nn

from flambeau import architectures
from flambeau.architectures import single_output
from flambeau.architectures.segmenters import PREFIX, Segmenter
from flambeau.builder import dense_task, eager, probing, signature_words, tile_trial
from flambeau.builder.filled import OF_ANY_NETWORK, Filled, Tell
from flambeau.builder.labels import VOC
from flambeau.builder.official_names import compare_name, official_weights
from flambeau.builder.probing import Probed
from flambeau.builder.weights import Weights
from flambeau.bundle.storage import Architecture, DenseConfig
from flambeau.errors import SourceError
from flambeau.identify.finding import Fit
from flambeau.items import FREE
from flambeau.pipelines import dense
from flambeau.settings.source import SourceOptions
from flambeau.sources.request import BuildRequest, refuse_idle
from flambeau.tasks import TASKS
from flambeau.types import TensorSpec

ONE_ROW = "pictures of unlike sizes keep sizes of their own"
"""Why such a network is given one picture at a time."""

_SEGMENTS = "semantic-segmentation"
_OPTIONS = ("arch", "arch_args", "weights", "weights_key", "num_classes", "labels", "threshold", "task", "samples",
            "resize", "mean", "std")  # fmt: skip
_OF_OWN = (*OF_ANY_NETWORK, "task", "resize", "mean", "std")
_PHOTOGRAPHS = (("chelsea.jpg", (161, 127)), ("coffee.jpg", (95, 144)))
_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
_LEAST_TRIED = 64  # pixels
_SCALES = (Fraction(1, 32), Fraction(8))
_HALF = 0.5  # the probability above which a pixel is of the class of a network's only channel


def wanted(options: SourceOptions) -> bool:
    """Whether the user named a task that answers for every pixel."""
    return options.task is not None and TASKS[options.task].dense


def filled(
    network: nn.Module,
    tensors: "Mapping[str, torch.Tensor]",
    fit: Fit,
    order: BuildRequest,
    weights: Weights,
    *,
    tell: Tell,
) -> Filled:
    """torchvision's segmenter with its weights. Raises `SourceError` for weights that do not fit, or idle options."""
    options, name = order.options, fit.architecture.name
    refuse_idle(options, f"{name}, a segmenter", used=_OPTIONS)
    if options.task not in (None, _SEGMENTS):
        raise SourceError(f"--task {options.task}, but {name} is a segmenter: leave it out")
    assert isinstance(network, Segmenter)  # its registry makes no other
    assert isinstance(fit.pipeline, DenseConfig)  # the caller checked
    architectures.load_weights(network, {PREFIX + key: tensor for key, tensor in tensors.items()}, name=name)
    compare_name(str(order.file or ""), weights.sha256, tell=tell)
    official = official_weights(name, weights.sha256)
    if official:
        tell(f"these are the official weights {official}, of the 21 classes of PASCAL VOC")
    pipeline = _customised(msgspec.structs.replace(fit.pipeline, classes=fit.classes), options)
    return Filled(
        network=network,
        name=name,
        architecture=fit.architecture,
        pipeline=pipeline,
        inputs=(TensorSpec("image", "float32", (3, FREE, FREE)),),
        labels=options.labels or (VOC if official else None),
        classes=weights.classes,
        rows=1,
        exports="torchscript",
        outputs=("logits",),
        official=bool(official),
        one_row=ONE_ROW,
    )


def own(
    network: nn.Module,
    order: BuildRequest,
    *,
    name: str,
    architecture: Architecture | None,
    tell: Tell,
    classes: tuple[str, ...] | None = None,
) -> Filled:
    """A user's own network, whose task the user named. Raises `SourceError` where its maps are no answer to images."""
    options = order.options
    used = (*_OF_OWN, *(("activation", "labels", "threshold") if options.task == _SEGMENTS else ("levels",)))
    refuse_idle(options, f"{name} with --task {options.task}", used=used)
    if len(needed := signature_words.arguments(network, name)) > 1:
        raise SourceError(
            f"{name} takes {len(needed)} inputs ({', '.join(needed)}), and --task {options.task} gives it one image: "
            "wrap it in a flambeau.PythonModel"
        )
    channels = _channels(network, name)
    multiple, scale, answered = _sizes(network, channels, name, options.output_name)
    recipe = _recipe(options, channels)
    pipeline = msgspec.structs.replace(
        _customised(recipe, options),
        multiple=multiple,
        scale=(scale.numerator, scale.denominator),
        classes=max(answered, 2) if options.task == _SEGMENTS else 0,
    )
    if answered == 1 and options.threshold is None and options.task == _SEGMENTS:
        pipeline = msgspec.structs.replace(pipeline, threshold=_HALF)
    if multiple > 1:
        tell(f"{name} computes sides that are multiples of {multiple}: pictures are padded, and the answer is cropped")
    tell(f"preparation: {pipeline}: --resize, --mean and --std change that")
    return Filled(
        network=network,
        name=name,
        architecture=architecture,
        pipeline=pipeline,
        inputs=(TensorSpec("image", "float32", (channels, FREE, FREE)),),
        labels=options.labels,
        classes=classes,
        rows=1,
        exports="torchscript",
        outputs=("logits" if options.task == _SEGMENTS else "picture",),
        one_row=ONE_ROW,
        levels=options.levels if options.task != _SEGMENTS else None,
    )


def ask(network: Callable[..., Any], shape: tuple[int, int, int], name: str) -> str:
    """The question to the user, if the network turns images of that shape into maps; else nothing."""
    found = _output(network, shape)
    if found is None or found.dim() != 4 or len(found) != 1 or found.shape[2] * 32 < shape[1]:
        return ""
    planes = found.shape[1]
    what = "one number" if planes == 1 else f"{planes} numbers"
    return (
        f"{name} answers an image with {what} for each pixel, which may be classes or a picture: say --task "
        f"{_SEGMENTS} if they are the scores of classes, or --task image-to-image if they are a picture or a map"
    )


def _recipe(options: SourceOptions, channels: int) -> DenseConfig:
    plain = channels == 1 or options.task != _SEGMENTS
    return DenseConfig(mean=(0.0,) * channels, std=(1.0,) * channels) if plain else DenseConfig()


def _customised(pipeline: DenseConfig, options: SourceOptions) -> DenseConfig:
    """The pipeline with the user's options applied. Raises `SourceError` for numbers that do not fit its channels."""
    asked = {key: getattr(options, key) for key in ("resize", "mean", "std", "threshold")}
    for key in ("mean", "std"):
        if asked[key] is not None and len(asked[key]) != len(pipeline.mean):
            raise SourceError(
                f"--{key} has {len(asked[key])} numbers, but the network takes {len(pipeline.mean)} channels"
            )
    return msgspec.structs.replace(pipeline, **{key: value for key, value in asked.items() if value is not None})


def _channels(network: nn.Module, name: str) -> int:
    """How many channels the first convolution takes: 1 or 3. Raises `SourceError` for any other number."""
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.dim() == 4 and parameter.shape[1] in (1, 3):
                return int(parameter.shape[1])
            told = f"{getattr(module, 'original_name', type(module).__name__)} {list(parameter.shape)}"
            raise SourceError(f"{name} begins with {told}, and images have 1 or 3 channels: wrap it in a PythonModel")
    raise SourceError(f"{name} has no weights, so the channels of its images are not known: wrap it in a PythonModel")


def _sizes(network: nn.Module, channels: int, name: str, asked: str | None) -> tuple[int, Fraction, int]:
    """The least number of which sides have to be multiples, the output's pixels for one of the input, and its planes.

    Raises `SourceError` if there is no such number.
    """
    for multiple in _MULTIPLES:
        first = max(1, _LEAST_TRIED // multiple) | 1
        tried = [(first * multiple, (first + 2) * multiple), ((first + 4) * multiple, (first + 2) * multiple)]
        found = [_output(network, (channels, *sides), asked) for sides in tried]
        ratios, planes = set(), set()
        for sides, output in zip(tried, found, strict=True):
            if output is None or output.dim() != 4 or len(output) != 1:
                break
            ratios |= {Fraction(output.shape[2 + axis], side) for axis, side in enumerate(sides)}
            planes.add(output.shape[1])
        else:
            if len(ratios) == len(planes) == 1 and _SCALES[0] <= min(ratios) <= _SCALES[1]:
                return multiple, ratios.pop(), planes.pop()
    shown = _output(network, (channels, 256, 256), asked)
    told = "cannot compute them" if shown is None else f"answers one of 256 × 256 with {list(shown.shape)}"
    raise SourceError(
        f"{name} does not answer for every pixel of images of unlike sizes, and {told}: wrap it in a "
        "flambeau.PythonModel, which can give it images of the size that it needs"
    )


def _output(network: Callable[..., Any], shape: tuple[int, ...], asked: str | None = None) -> torch.Tensor | None:
    """The map called `asked` that the network returns for an image of zeros, or the first; `None` if there is none."""
    with torch.inference_mode(), contextlib.suppress(Exception):  # raising is an answer
        found = single_output.parts(network(torch.zeros(1, *shape)))
        return found.get(asked or "", next((each for each in found.values() if each.dim() == 4), None))
    return None


def probe(filled: Filled, asked: str | None, *, tell: Tell) -> Probed:
    """Run the network over pictures of unlike sizes, each alone. `asked` is the value of `--output-name`.

    Raises `SourceError` for one that cannot compute them, whose answers change from run to run, or are not finite.
    """
    spec = filled.inputs[0]
    pictures = [{spec.name: each} for each in _pictures(filled)]
    seen = eager.look(filled, pictures[0], asked, tell=tell)
    if len(seen.shapes[0]) != 4:
        raise SourceError(
            f"{filled.name} answers a picture with {list(seen.shapes[0])}, and a map of its pixels is needed"
        )
    planes = seen.shapes[0][1]
    name = filled.outputs[0] if seen.bare else seen.outputs[0]
    filled = replace(filled, outputs=(name,), shapes=((planes, FREE, FREE),), plain=seen.bare)
    answers = [probing.compute(filled, picture) for picture in pictures]
    again = probing.compute(filled, pictures[0])
    if not np.array_equal(answers[0][name], again[name], equal_nan=True) and not np.allclose(
        answers[0][name], again[name], rtol=0, atol=1e-5 * float(np.abs(again[name]).max())
    ):
        raise SourceError(
            f"{filled.name} is random: it answers one picture with numbers that differ from run to run: call dropout "
            "as F.dropout(x, training=self.training), and add no noise when it serves"
        )
    for each in answers:
        if each[name].dtype != np.float32 or not np.isfinite(each[name]).all():
            told = "numbers that are not finite" if each[name].dtype == np.float32 else str(each[name].dtype)
            raise SourceError(f"{filled.name} answers a photograph with {told}: check its weights and its last layer")
    assert isinstance(filled.pipeline, DenseConfig)  # the caller checked
    if not filled.pipeline.classes:
        filled = _as_picture(filled, seen.ending.text, [each[name] for each in answers], tell)
    outputs = (TensorSpec(name, "float32", (planes, FREE, FREE)),)
    longer = tuple(zip(pictures[1:], answers[1:], strict=True))
    return Probed(filled, outputs, pictures[0], answers[0], seen.ending, one_row=ONE_ROW, longer=longer)


def _as_picture(filled: Filled, ending: str, answers: list[np.ndarray], tell: Tell) -> Filled:
    """The network with its numbers for black and white, and with what becomes of large pictures."""
    config = filled.pipeline
    assert isinstance(config, DenseConfig)  # the caller checked
    levels, how = dense_task.picture(filled, answers, ending)
    tell(
        f"each picture's least number is black and its largest white ({how})"
        if levels is None
        else f"{levels[0]:g} is black and {levels[1]:g} is white ({how}): --levels says otherwise"
    )
    overlap = tile_trial.overlap(
        _photograph(filled, "chelsea.jpg", (tile_trial.WHOLE, tile_trial.WHOLE)),
        lambda inputs: probing.compute(filled, inputs),
        (filled.inputs[0].name, filled.outputs[0]),
        scale=config.scale[0] / config.scale[1],
        multiple=config.multiple,
        span=None if levels is None else levels[1] - levels[0],
    )
    most = f"{config.most_pixels / 1e6:.1f} megapixels"
    tell(
        f"pictures of more than {most} are cut into tiles that overlap by {overlap} pixels"
        if overlap
        else f"pictures of more than {most} are refused: its answer to a pixel depends on pixels far from it, so that "
        "tiles would show seams"
    )
    pipeline = msgspec.structs.replace(config, levels=levels, large="tile" if overlap else "refuse", overlap=overlap)
    return replace(filled, pipeline=pipeline)


def _pictures(filled: Filled) -> list[np.ndarray]:
    """Two photographs of unlike sizes as the network takes them."""
    return [_photograph(filled, *each) for each in _PHOTOGRAPHS]


def _photograph(filled: Filled, name: str, size: tuple[int, int]) -> np.ndarray:
    """One of the page's photographs, resized, as the network takes it."""
    assert isinstance(filled.pipeline, DenseConfig)  # the caller checked
    config = msgspec.structs.replace(filled.pipeline, resize=None)
    file = resources.files("flambeau").joinpath("ui", "static", "samples", name)
    with Image.open(io.BytesIO(file.read_bytes())) as image:
        return dense.prepared(image.convert("RGB").resize(size), config)
