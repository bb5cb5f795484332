"""`python -m benchmarks.places_weights NETWORK CLASSES FILE`: seeded weights of a detector or segmenter of torchvision.

An untrained network answers everything alike. So its norms get the statistics of a photograph, and the numbers that
become a detector's scores are made to differ more.
"""

import sys
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from benchmarks.apps.model import torchvision

_PHOTOGRAPH = Path(__file__).parents[1] / "src/flambeau/ui/static/samples/coffee.jpg"
_SPREAD = 2.0  # the standard deviation of those numbers: most scores are between 0.02 and 0.98


def write(name: str, classes: int, file: Path) -> None:
    """Save the network's state."""
    transforms = torchvision().transforms.functional
    from torchvision.models import get_model

    torch.manual_seed(7)
    network = get_model(name, weights=None, weights_backbone=None, num_classes=classes).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all
            module.train()
    pixels = transforms.to_tensor(Image.open(_PHOTOGRAPH).convert("RGB").resize((320, 320)))
    detects = "ssd" in name
    found: dict[nn.Module, torch.Tensor] = {}
    layers = [each[-1] for each in network.head.classification_head.module_list] if detects else []
    hooks = [layer.register_forward_hook(lambda *each: found.update({each[0]: each[2].std()})) for layer in layers]
    with torch.no_grad():
        network([pixels, pixels.flip(2)] if detects else torch.stack([pixels, pixels.flip(2)]))
        for layer in layers:
            layer.weight.mul_(_SPREAD / torch.stack(list(found.values())).mean())
    for hook in hooks:
        hook.remove()
    torch.save(network.state_dict(), file)


if __name__ == "__main__":
    write(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
