"""Networks that answer for every pixel in a build: segmenters of torchvision, and users' own.

They take pictures of any size, so they are probed one by one over pictures of unlike sizes, padded as a replica pads
them. The weights do not say whether maps are classes or a picture, so for own networks the user does (`--task`).
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import torch
from torch import nn

from flambeau import architectures
from flambeau.architectures import single_output
from flambeau.architectures.segmenters import PREFIX, Segmenter
from flambeau.builder import dense_recipe, signature_words
from flambeau.builder.dense_recipe import ONE_ROW, SEGMENTS
from flambeau.builder.filled import OF_ANY_NETWORK, Filled, Tell
from flambeau.builder.labels import VOC
from flambeau.builder.official_names import official_weights
from flambeau.builder.weights import Weights
from flambeau.bundle.storage import Architecture, DenseConfig
from flambeau.errors import SourceError
from flambeau.identify import segmentation_models
from flambeau.identify.finding import Fit
from flambeau.items import FREE
from flambeau.sources.request import BuildRequest, refuse_idle
from flambeau.tasks import TASKS
from flambeau.types import TensorSpec

_OPTIONS = ("arch", "arch_args", "weights", "weights_key", "num_classes", "labels", "threshold", "task", "samples",
            "resize", "mean", "std")  # fmt: skip
_OF_OWN = (*OF_ANY_NETWORK, "task", "resize", "mean", "std")


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
    if options.task not in (None, SEGMENTS):
        raise SourceError(f"--task {options.task}, but {name} is a segmenter: leave it out")
    assert isinstance(network, Segmenter)  # its registry makes no other
    assert isinstance(fit.pipeline, DenseConfig)  # the caller checked
    architectures.load_weights(network, {PREFIX + key: tensor for key, tensor in tensors.items()}, name=name)
    official = official_weights(name, str(order.file or ""), weights.sha256, tell=tell)
    if official:
        tell(f"these are the official weights {official}, of the 21 classes of PASCAL VOC")
    pipeline = dense_recipe.customised(msgspec.structs.replace(fit.pipeline, classes=fit.classes), options)
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


def of_library(
    network: nn.Module,
    tensors: "Mapping[str, torch.Tensor]",
    fit: Fit,
    order: BuildRequest,
    weights: Weights,
    *,
    tell: Tell,
) -> Filled:
    """A network of segmentation_models_pytorch with its weights. Raises `SourceError`.

    Its class is the library's, and in everything else it is like a user's own.
    """
    name, task = fit.architecture.name, order.options.task or fit.task
    if not TASKS[task].dense:
        raise SourceError(f"--task {task}, but {name} answers for every pixel: leave it out")
    if fit.normalises and (order.options.mean is None or order.options.std is None):
        channels = int(fit.architecture.args["in_channels"])
        numbers = (weights.tensors[key].flatten().double().tolist() for key in fit.normalises)
        raise SourceError(segmentation_models.question(fit, *(each * (channels // len(each)) for each in numbers)))
    architectures.load_weights(network, tensors, name=name)
    asked = msgspec.structs.replace(order, options=msgspec.structs.replace(order.options, task=task))
    return own(network, asked, name=name, architecture=fit.architecture, tell=tell, classes=weights.classes)


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
    used = (*_OF_OWN, *(("activation", "labels", "threshold") if options.task == SEGMENTS else ("levels",)))
    refuse_idle(options, f"{name} with --task {options.task}", used=used)
    if len(needed := signature_words.arguments(network, name)) > 1:
        raise SourceError(
            f"{name} takes {len(needed)} inputs ({', '.join(needed)}), and --task {options.task} gives it one image: "
            "wrap it in a flambeau.PythonModel"
        )
    channels = _channels(network, name)

    def answered(sides: tuple[int, int]) -> tuple[int, ...] | None:
        found = _output(network, (channels, *sides), options.output_name)
        return None if found is None else tuple(found.shape)

    pipeline = dense_recipe.pipeline_of(options, channels, dense_recipe.sizes(answered, name), name, tell=tell)
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
        outputs=("logits" if options.task == SEGMENTS else "picture",),
        one_row=ONE_ROW,
        levels=options.levels if options.task != SEGMENTS else None,
    )


def ask(network: Callable[..., Any], shape: tuple[int, int, int], name: str) -> str:
    """The question to the user, if the network turns images of that shape into maps; else nothing."""
    found = _output(network, shape)
    return "" if found is None else dense_recipe.question(tuple(found.shape), shape[1], name)


def _channels(network: nn.Module, name: str) -> int:
    """How many channels the first convolution takes: 1 or 3. Raises `SourceError` for any other number."""
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.dim() == 4 and parameter.shape[1] in (1, 3):
                return int(parameter.shape[1])
            told = f"{getattr(module, 'original_name', type(module).__name__)} {list(parameter.shape)}"
            raise SourceError(f"{name} begins with {told}, and images have 1 or 3 channels: wrap it in a PythonModel")
    raise SourceError(f"{name} has no weights, so the channels of its images are not known: wrap it in a PythonModel")


def _output(network: Callable[..., Any], shape: tuple[int, ...], asked: str | None = None) -> torch.Tensor | None:
    """The map called `asked` that the network returns for an image of zeros, or the first; `None` if there is none."""
    with torch.inference_mode(), contextlib.suppress(Exception):  # raising is an answer
        found = single_output.parts(network(torch.zeros(1, *shape)))
        return found.get(asked or "", next((each for each in found.values() if each.dim() == 4), None))
    return None
