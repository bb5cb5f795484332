"""torchvision's detectors, as networks that take one image as a tensor and return boxes as tensors.

Their own interface is a list of images to a list of dictionaries, and in training mode losses. Everything from resizing
to the suppression of overlapping boxes is theirs, with torchvision's own defaults unless arguments say otherwise. Only
the size that an image is resized to is computed here, because torchvision's own is another in an exported graph; and
masks are left as the small maps that the network makes, which the task pastes into the picture one by one.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from flambeau.answers.boxes import BOXES, KEYPOINT_SCORES, KEYPOINTS, LABELS, MASKS, SCORES

PREFIX = "detector."
"""Where the detector's own tensors lie."""

NORM_EPSILON = "norm_epsilon"
"""The argument for the epsilon of all norms, which torchvision sets to 0 for a few of its official weights."""


class Detector(nn.Module):
    """One image, float32 (1, 3, height, width) on the scale [0, 1], to the objects in it, the best first.

    Boxes (1, n, 4) are xmin, ymin, xmax, ymax in pixels of that image, scores (1, n) float32, labels (1, n) int64.
    Where it has them: masks (1, n, 28, 28), the probability that a place of the box belongs to the object; keypoints
    (1, n, points, 2), x and y in pixels of that image, and keypoints_scores (1, n, points), logits.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        detector.transform = _Transform.of(detector.transform)
        self.detector = detector

    @property
    def limits(self) -> tuple[float, int]:
        """The score below which nothing is reported, and how many boxes are reported at most."""
        counted: Any = getattr(self.detector, "roi_heads", self.detector)
        return float(counted.score_thresh), int(counted.detections_per_img)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        [found] = self.detector([images[0]])
        answered = {name: found[name][None] for name in (BOXES, SCORES, LABELS)}
        if MASKS in found:
            answered[MASKS] = found[MASKS][:, 0][None]
        if KEYPOINTS in found:
            answered[KEYPOINTS] = found[KEYPOINTS][:, :, :2][None]  # the third number is always 1
            answered[KEYPOINT_SCORES] = found[KEYPOINT_SCORES][None]
        return answered


class _Transform(GeneralizedRCNNTransform):  # type: ignore[misc]  # of an untyped library
    """torchvision's, with the size of the resized image computed in float64 in a graph as in Python, and without the
    pasting of masks.

    torchvision's own graph multiplies by a reciprocal in float32. For an image of 200 × 280 pixels and a detector of
    320, that makes 319 × 447 instead of 320 × 448, and so shifts every box.
    """

    @classmethod
    def of(cls, own: Any) -> "_Transform":
        """The same transform; `own` is torchvision's."""
        return cls(own.min_size, own.max_size, own.image_mean, own.image_std, own.size_divisible, own.fixed_size)

    def resize(self, image: torch.Tensor, target: Any = None) -> tuple[torch.Tensor, Any]:
        """The image (3, height, width), its shorter side `min_size` long, but its longer at most `max_size`."""
        if self.fixed_size is not None:
            size: Any = (self.fixed_size[1], self.fixed_size[0])
        elif torch.onnx.is_in_onnx_export():
            # Tensors of one axis throughout: the exporter turns numbers without an axis into float32.
            sides = torch._shape_as_tensor(image)[-2:].double()
            least, most = (torch.tensor([side], dtype=torch.float64) for side in (self.min_size[-1], self.max_size))
            scale = torch.minimum(least / sides.amin(0, keepdim=True), most / sides.amax(0, keepdim=True))
            size = torch.floor(sides * scale).long()
            size = (size[0], size[1])
        else:
            ratio = min(self.min_size[-1] / min(image.shape[-2:]), self.max_size / max(image.shape[-2:]))
            size = tuple(math.floor(side * ratio) for side in image.shape[-2:])
        resized = nn.functional.interpolate(image[None], size=size, mode="bilinear", align_corners=False)
        return resized[0], target

    def postprocess(self, result: Any, image_shapes: Any, original_image_sizes: Any) -> Any:
        """Boxes and keypoints in pixels of the image as it was given; masks stay as they are, (n, 1, 28, 28)."""
        masks = [each.pop(MASKS, None) for each in result]
        placed = super().postprocess(result, image_shapes, original_image_sizes)
        return [each if mask is None else {**each, MASKS: mask} for each, mask in zip(placed, masks, strict=True)]


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
