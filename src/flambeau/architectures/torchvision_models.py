"""torchvision's classification models, by name."""

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from flambeau.architectures import torchvision_ops
from flambeau.bundle import ImagePipeline
from flambeau.errors import SourceError

if TYPE_CHECKING:
    import torch
    from torch import nn

RECIPE_CROP = 224


def names() -> list[str]:
    """Every classification model of the installed torchvision."""
    torchvision_ops.declare_missing()
    from torchvision import models

    return list(models.list_models(module=models))


def constructor(name: str) -> "Callable[..., nn.Module]":
    """The constructor of that name, which takes `num_classes`. It is given no weights."""
    torchvision_ops.declare_missing()
    from torchvision import models

    def construct(**args: Any) -> "nn.Module":
        if name in ("googlenet", "inception_v3"):
            args = {"init_weights": False, "transform_input": True, **args}
        if name.startswith("vit_"):  # their positions are counted for one size: vit_h_14's weights are for 518
            args = {"image_size": pipeline_for(name).crop, **args}
        network: nn.Module = models.get_model(name, weights=None, **args)
        return network

    return construct


def pipeline_for(name: str) -> ImagePipeline:
    """How images are prepared for that model.

    The recipe (Resize 255, CenterCrop 224) serves all models of that size. A model trained at another size takes the
    sizes from torchvision's weights metadata, for at 224 it would be wrong rather than slightly different.
    """
    published = _published(name)
    if published.crop == RECIPE_CROP:
        return ImagePipeline()
    return published


def pretrained(name: str) -> "tuple[Mapping[str, torch.Tensor], ImagePipeline]":
    """torchvision's default weights for that model, fetched by torchvision's own API, with their own transform.

    Raises `SourceError` naming `--weights` when they cannot be fetched.
    """
    torchvision_ops.declare_missing()
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    try:
        state = weights.get_state_dict(progress=True, check_hash=True)
    except Exception as error:
        raise SourceError(
            f"the pretrained weights of {name} could not be fetched from {weights.url} ({error}): "
            f"fetch the file by other means and name it with --weights"
        ) from error
    return state, _pipeline_of(weights)


def modernise(name: str, weights: "Mapping[str, torch.Tensor]") -> "Mapping[str, torch.Tensor]":
    """Rename the keys of DenseNet files from before torchvision 0.3, as its own loader does: `norm.1` to `norm1`."""
    if not name.startswith("densenet"):
        return weights
    old = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")
    return {old.sub(r"\1\2.", key): tensor for key, tensor in weights.items()}


def _published(name: str) -> ImagePipeline:
    torchvision_ops.declare_missing()
    from torchvision import models

    weights = models.get_model_weights(name)
    return _pipeline_of(getattr(weights, "IMAGENET1K_V1", weights.DEFAULT))


def _pipeline_of(weights: Any) -> ImagePipeline:
    transform = weights.transforms()
    return ImagePipeline(
        resize=transform.resize_size[0],
        crop=transform.crop_size[0],
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        interpolation=transform.interpolation.value,
    )
