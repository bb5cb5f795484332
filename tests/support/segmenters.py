"""torchvision's segmenters with seeded weights that tell pixels apart, as trained ones do.

An untrained network says the same of every pixel, so that almost any fault of an export would go unnoticed. So its
norms get the statistics of a photograph, and the layers that make scores are scaled until every class has pixels.
"""

from typing import Any

import torch
from torch import nn

from flambeau.architectures import torchvision_compat
from tests.support.photographs import photograph

_SPREAD = 3.0
"""The standard deviation of each class's scores over a photograph."""

_SCORING = ("classifier.4", "classifier.low_classifier", "classifier.high_classifier")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def untrained(name: str, classes: int, *, seed: int = 0, **args: Any) -> nn.Module:
    """The segmenter as torchvision makes it."""
    torchvision_compat.declare_missing()
    from torchvision.models import get_model

    torch.manual_seed(seed)
    network: nn.Module = get_model(name, weights=None, weights_backbone=None, num_classes=classes, **args)
    return network


def normalised(picture: Any) -> torch.Tensor:
    """A picture as torchvision's weights take it, (1, 3, height, width)."""
    torchvision_compat.declare_missing()
    from torchvision.transforms.functional import normalize, to_tensor

    pixels: torch.Tensor = normalize(to_tensor(picture.convert("RGB")), list(_MEAN), list(_STD))[None]
    return pixels


def segmenter(name: str, classes: int, *, seed: int = 0, **args: Any) -> nn.Module:
    """The segmenter in evaluation mode."""
    return spread(untrained(name, classes, seed=seed, **args))


def spread(network: nn.Module, scoring: tuple[str, ...] = _SCORING) -> nn.Module:
    """The network in evaluation mode, with scores that spread. `scoring` names the layers whose sum they are."""
    network.eval()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
            norm.train()
    pixels = normalised(photograph("coffee").resize((192, 128)))
    layers = [module for path, module in network.named_modules() if path in scoring]
    with torch.no_grad():
        network(torch.cat([pixels, pixels.flip(3)]))
        network.eval()
        found = network(pixels)
        scores = found["out"] if isinstance(found, dict) else found
        scale, middle = _SPREAD / scores.std(dim=(0, 2, 3)), scores.mean(dim=(0, 2, 3))
        for place, layer in enumerate(layers):
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            layer.weight.mul_(scale[:, None, None, None])
            layer.bias.mul_(scale)
            if place == 0:
                layer.bias.sub_(middle * scale)
    return network


def saved(network: nn.Module, file: Any) -> Any:
    """The file of its weights."""
    torch.save(network.state_dict(), file)
    return file


def classes_of(network: nn.Module, picture: Any, shorter: int | None = 520) -> torch.Tensor:
    """The class of each pixel as torchvision's own recipe makes it: resized, computed, enlarged, and compared."""
    torchvision_compat.declare_missing()
    from torchvision.transforms.functional import resize

    pixels = normalised(resize(picture.convert("RGB"), [shorter]) if shorter else picture)
    with torch.inference_mode():
        found = network(pixels)
        scores = found["out"] if isinstance(found, dict) else found
        size = (picture.height, picture.width)
        return nn.functional.interpolate(scores, size, mode="bilinear", align_corners=False)[0].argmax(0)
