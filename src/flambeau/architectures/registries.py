"""The registries of architectures: torchvision's classification models, timm's if it is installed, and Flambeau's own.

Their constructors load and fetch no weights. Each library is imported only when used.
"""

import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from flambeau import identify
from flambeau.architectures import torchvision_compat
from flambeau.bundle.storage import ImageConfig
from flambeau.errors import SourceError
from flambeau.identify import naming
from flambeau.system.machine import pip_install

if TYPE_CHECKING:
    import torch
    from torch import nn


class ModelRegistry(Protocol):
    """The names of architectures, and their constructors, which take `num_classes` (the plain network: `layers`)."""

    def names(self) -> list[str]:
        """All architectures in this registry."""
        ...

    def constructor(self, name: str) -> "Callable[..., nn.Module]":
        """The constructor of the architecture `name`."""
        ...


class TorchvisionModels:
    """torchvision's classification models, with its official weights.

    Its detectors and segmenters can be constructed, too.
    """

    def names(self) -> list[str]:
        torchvision_compat.declare_missing()
        from torchvision import models

        return list(models.list_models(module=models))

    def constructor(self, name: str) -> "Callable[..., nn.Module]":
        torchvision_compat.declare_missing()
        from torchvision import models

        if name in models.list_models(module=models.detection):
            from flambeau.architectures import detectors

            return detectors.constructor(partial(models.get_model, name))
        if name in models.list_models(module=models.segmentation):
            from flambeau.architectures import segmenters

            return segmenters.constructor(partial(models.get_model, name))

        def construct(**args: Any) -> "nn.Module":
            if name in ("googlenet", "inception_v3"):
                args = {"init_weights": False, "transform_input": True, **args}
            if name.startswith("vit_"):  # position embeddings are for one image size: vit_h_14's weights are for 518
                args = {"image_size": identify.pipeline_for("torchvision", name).crop, **args}
            network: nn.Module = models.get_model(name, weights=None, **args)
            return network

        return construct

    def pretrained(self, name: str) -> "tuple[Mapping[str, torch.Tensor], ImageConfig]":
        """torchvision's default weights for that model, fetched through torchvision, with the transform they come with.

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
        # DenseNet's files use older layer names, which torchvision's own loader renames too.
        names = naming.unwrap({key: tuple(tensor.shape) for key, tensor in state.items()})
        return {name: state[key] for name, key in names.keys.items()}, self.pipeline_of(weights)

    def pipeline_of(self, weights: Any) -> ImageConfig:
        """The transform that torchvision publishes with these weights."""
        transform = weights.transforms()
        return ImageConfig(
            resize=transform.resize_size[0],
            crop=transform.crop_size[0],
            mean=tuple(transform.mean),
            std=tuple(transform.std),
            interpolation=transform.interpolation.value,
        )


class OwnModels:
    """The EfficientNet-Lite family, and plain networks over numbers."""

    def names(self) -> list[str]:
        from flambeau.architectures import efficientnet_lite, heads

        return [*efficientnet_lite.names(), heads.PLAIN_NETWORK]

    def constructor(self, name: str) -> "Callable[..., nn.Module]":
        from flambeau.architectures import efficientnet_lite, heads

        return heads.construct if name == heads.PLAIN_NETWORK else efficientnet_lite.constructor(name)


class TimmModels:
    """timm's models; none where it is not installed (the extra `timm`)."""

    def names(self) -> list[str]:
        if importlib.util.find_spec("timm") is None:
            return []
        torchvision_compat.declare_missing()  # timm imports torchvision
        import timm

        return list(timm.list_models())

    def constructor(self, name: str) -> "Callable[..., nn.Module]":
        if importlib.util.find_spec("timm") is None:
            raise SourceError(f"{name} is an architecture of timm, which is not installed: {pip_install('timm')}")
        torchvision_compat.declare_missing()
        import timm

        return partial(timm.create_model, name, pretrained=False)


class SegmentationModels:
    """The networks of segmentation_models_pytorch, if it is installed; none by its name alone, without an encoder."""

    def names(self) -> list[str]:
        return []

    def constructor(self, name: str) -> "Callable[..., nn.Module]":
        if importlib.util.find_spec("segmentation_models_pytorch") is None:
            raise SourceError(
                f"{name} is a network of segmentation_models_pytorch, which is not installed: "
                "pip install segmentation-models-pytorch"
            )
        torchvision_compat.declare_missing()  # it imports torchvision and timm
        import segmentation_models_pytorch

        constructor: Callable[..., nn.Module] = getattr(segmentation_models_pytorch, name)
        return constructor


class TransformersModels:
    """The networks of transformers, if it is installed; none by its name alone, without a configuration."""

    def names(self) -> list[str]:
        return []

    def constructor(self, name: str) -> "Callable[..., nn.Module]":
        from flambeau.architectures import transformers_networks

        return transformers_networks.constructor(name)


TORCHVISION = TorchvisionModels()
TIMM = TimmModels()

REGISTRIES: dict[str, ModelRegistry] = {
    "torchvision": TORCHVISION, "flambeau": OwnModels(), "timm": TIMM,
    "segmentation_models_pytorch": SegmentationModels(), "transformers": TransformersModels(),
}  # fmt: skip
"""By name, in order of preference."""
