"""torchvision's detectors with seeded weights that tell boxes apart, as trained ones do.

The scores of an untrained network are nearly the same everywhere, so that almost any fault of an export would go
unnoticed, and ties would look like faults. So its norms get the statistics of a photograph, and the layers that make
scores are made stronger.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from flambeau.architectures import torchvision_compat
from tests.support.photographs import photograph

STRENGTH = {"fasterrcnn": 100.0, "retinanet": 30.0, "fcos": 30.0, "ssd300": 0.3, "ssdlite320": 1.5}
"""By how much the layers that make scores are made stronger, by family."""

_SCORING = ("box_predictor.cls_score", "rpn.head.cls_logits", "classification_head.cls_logits")


def untrained(name: str, classes: int, *, seed: int = 0, **args: Any) -> nn.Module:
    """The detector as torchvision makes it."""
    torchvision_compat.declare_missing()
    from torchvision.models import get_model

    torch.manual_seed(seed)
    network: nn.Module = get_model(name, weights=None, weights_backbone=None, num_classes=classes, **args)
    return network


def detector(name: str, classes: int, *, seed: int = 0, **args: Any) -> nn.Module:
    """The detector in evaluation mode."""
    network = untrained(name, classes, seed=seed, **args)
    from torchvision.transforms.functional import to_tensor

    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    network.eval()
    for norm in norms:
        norm.momentum = None
        norm.train()
    pixels = to_tensor(photograph("coffee").resize((480, 320)))
    with torch.no_grad():
        network([pixels, pixels.flip(2)])
        strength = STRENGTH[name.partition("_")[0]]
        for path, module in network.named_modules():
            if path.endswith(_SCORING) or ("classification_head.module_list" in path and hasattr(module, "weight")):
                module.weight.mul_(strength)  # type: ignore[operator]
    return network.eval()


def saved(network: nn.Module, file: Path) -> Path:
    """The file of its weights."""
    torch.save(network.state_dict(), file)
    return file


def found(network: nn.Module, picture: Any) -> dict[str, Any]:
    """What torchvision's own interface makes of a picture: numpy arrays of one row."""
    from torchvision.transforms.functional import to_tensor

    with torch.inference_mode():
        [result] = network([to_tensor(picture.convert("RGB"))])
    return {name: value[None].numpy() for name, value in result.items()}
