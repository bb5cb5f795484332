"""torchvision's detectors with seeded weights that tell boxes apart, as trained ones do.

The scores of an untrained network are nearly the same everywhere, so that almost any fault of an export would go
unnoticed, and ties would look like faults. So its norms get the statistics of a photograph, and the layers that make
scores are made stronger.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flambeau.architectures import torchvision_compat
from tests.support.photographs import photograph

_SPREAD = 2.0
"""The standard deviation of the numbers that become scores: most are between 0.02 and 0.98."""

_SCORING = re.compile(
    r".*(box_predictor\.cls_score|rpn\.head\.cls_logits|classification_head\.(cls_logits|module_list\.\d+(\.1)?))"
)


def untrained(name: str, classes: int, *, seed: int = 0, **args: Any) -> nn.Module:
    """The detector as torchvision makes it."""
    torchvision_compat.declare_missing()
    from torchvision.models import get_model

    torch.manual_seed(seed)
    network: nn.Module = get_model(name, weights=None, weights_backbone=None, num_classes=classes, **args)
    return network


def detector(name: str, classes: int, *, seed: int = 0, spread: float = _SPREAD, **args: Any) -> nn.Module:
    """The detector in evaluation mode. `spread`: the standard deviation of the numbers that become scores."""
    return told_apart(untrained(name, classes, seed=seed, **args), spread=spread)


def told_apart(network: nn.Module, *, spread: float = _SPREAD) -> nn.Module:
    """The network in evaluation mode, with the statistics of a photograph and scores that differ."""
    from torchvision.transforms.functional import to_tensor

    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    network.eval()
    for norm in norms:
        norm.momentum = None
        norm.train()
    pixels = to_tensor(photograph("coffee").resize((480, 320)))
    spreads: dict[nn.Conv2d | nn.Linear, list[torch.Tensor]] = {}
    layers = [
        module
        for path, module in network.named_modules()
        if _SCORING.fullmatch(path) and isinstance(module, nn.Conv2d | nn.Linear)
    ]
    hooks = [
        layer.register_forward_hook(lambda *each: spreads.setdefault(each[0], []).append(each[2].std()))
        for layer in layers
    ]
    with torch.no_grad():
        network([pixels, pixels.flip(2)])
        for layer, found in spreads.items():
            layer.weight.mul_(spread / torch.stack(found).mean())
    for hook in hooks:
        hook.remove()
    return network.eval()


def saved(network: nn.Module, file: Path) -> Path:
    """The file of its weights."""
    torch.save(network.state_dict(), file)
    return file


def found(network: nn.Module, picture: Any) -> dict[str, Any]:
    """What torchvision's own interface makes of a picture: numpy arrays of one row. Masks are pasted already, (1, n, 1,
    height, width)."""
    from torchvision.transforms.functional import to_tensor

    with torch.inference_mode():
        [result] = network([to_tensor(picture.convert("RGB"))])
    return {name: value[None].numpy() for name, value in result.items()}
