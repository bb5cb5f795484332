"""torchvision's object detectors, as networks that take one image as a tensor and return boxes as tensors.

Their own interface is a list of images to a list of dictionaries, and in training mode losses. Everything from resizing
to the suppression of overlapping boxes is theirs, with torchvision's own defaults unless arguments say otherwise.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from flambeau.answers.boxes import BOXES, LABELS, SCORES

PREFIX = "detector."
"""Where the detector's own tensors lie."""

NORM_EPSILON = "norm_epsilon"
"""The argument for the epsilon of all norms, which torchvision sets to 0 for a few of its official weights."""


class Detector(nn.Module):
    """One image, float32 (1, 3, height, width) on the scale [0, 1], to the objects in it, the best first.

    Boxes (1, n, 4) are xmin, ymin, xmax, ymax in pixels of that image, scores (1, n) float32, labels (1, n) int64.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    @property
    def limits(self) -> tuple[float, int]:
        """The score below which nothing is reported, and how many boxes are reported at most."""
        counted: Any = getattr(self.detector, "roi_heads", self.detector)
        return float(counted.score_thresh), int(counted.detections_per_img)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        [found] = self.detector([images[0]])
        return {name: found[name][None] for name in (BOXES, SCORES, LABELS)}


def constructor(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """The constructor of a detector whose own constructor is `build`. No weights are fetched."""

    def construct(**args: Any) -> nn.Module:
        epsilon = args.pop(NORM_EPSILON, None)
        network = build(weights=None, weights_backbone=None, **args)
        if epsilon is not None:
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eps = epsilon
        return Detector(network)

    return construct
