"""torchvision's semantic segmenters, as networks that take images as a tensor and return scores as a tensor.

Their own interface returns a dictionary, with the scores of a head for training beside those of the answer.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

PREFIX = "segmenter."
"""Where the segmenter's own tensors lie."""


class Segmenter(nn.Module):
    """Images, float32 (rows, 3, height, width), normalised, to the scores of every class: (rows, classes, height,
    width)."""

    def __init__(self, segmenter: nn.Module) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.segmenter(images)["out"]
        return scores


def constructor(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """The constructor of a segmenter whose own constructor is `build`. No weights are fetched."""

    def construct(**args: Any) -> nn.Module:
        return Segmenter(build(weights=None, weights_backbone=None, **args))

    return construct
