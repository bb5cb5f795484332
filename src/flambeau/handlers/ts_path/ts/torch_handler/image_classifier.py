"""The classifier of pictures: the best classes, each with its probability."""

from typing import Any, ClassVar

import torch
from torchvision import transforms

from ..utils.util import map_class_to_label
from .vision_handler import VisionHandler


class ImageClassifier(VisionHandler):
    """`topk` classes, best first."""

    topk: ClassVar[int] = 5

    image_processing = transforms.Compose([
        transforms.Lambda(lambda picture: picture.convert("RGB")),
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    ])  # fmt: skip

    def set_max_result_classes(self, topk: int) -> None:
        """How many classes to answer with."""
        type(self).topk = topk

    def get_max_result_classes(self) -> int:
        """How many classes are answered with."""
        return self.topk

    def postprocess(self, data: Any) -> list[Any]:
        """A softmax, then the best classes of each row, by name."""
        shares = torch.softmax(data, dim=1)
        best, classes = torch.topk(shares, min(self.topk, shares.shape[1]), dim=1)
        return map_class_to_label(best.tolist(), self.mapping, classes.tolist())
