"""torchvision's classification models, by name."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from flambeau import identify
from flambeau.architectures import torchvision_compat
from flambeau.bundle.storage import ImageConfig
from flambeau.errors import SourceError
from flambeau.identify import naming

if TYPE_CHECKING:
    import torch
    from torch import nn


def names() -> list[str]:
    """Every classification model of the installed torchvision."""
    torchvision_compat.declare_missing()
    from torchvision import models

    return list(models.list_models(module=models))


def constructor(name: str) -> "Callable[..., nn.Module]":
    """The constructor of that name, which takes `num_classes`. It is given no weights."""
    torchvision_compat.declare_missing()
    from torchvision import models

    def construct(**args: Any) -> "nn.Module":
        if name in ("googlenet", "inception_v3"):
            args = {"init_weights": False, "transform_input": True, **args}
        if name.startswith("vit_"):  # their positions are counted for one size: vit_h_14's weights are for 518
            args = {"image_size": pipeline_for(name).crop, **args}
        network: nn.Module = models.get_model(name, weights=None, **args)
        return network

    return construct


def pipeline_for(name: str) -> ImageConfig:
    """How images are prepared for that model."""
    return identify.pipeline_for("torchvision", name)


def pretrained(name: str) -> "tuple[Mapping[str, torch.Tensor], ImageConfig]":
    """torchvision's default weights for that model, fetched by torchvision's own API, with their own transform.

    Raises `SourceError` naming `--weights` when they cannot be fetched.
    """
    torchvision_compat.declare_missing()
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    try:
        state = weights.get_state_dict(progress=True, check_hash=True)
    except Exception as error:
        raise SourceError(
            f"the pretrained weights of {name} could not be fetched from {weights.url} ({error}): "
            f"fetch the file by other means and name it with --weights"
        ) from error
    # DenseNet's files are older than its names, which torchvision's own loader changes as well.
    names = naming.tidy({key: tuple(tensor.shape) for key, tensor in state.items()})
    return {name: state[key] for name, key in names.keys.items()}, pipeline_of(weights)


def pipeline_of(weights: Any) -> ImageConfig:
    """The transform that torchvision publishes with an entry of its weights."""
    transform = weights.transforms()
    return ImageConfig(
        resize=transform.resize_size[0],
        crop=transform.crop_size[0],
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        interpolation=transform.interpolation.value,
    )
