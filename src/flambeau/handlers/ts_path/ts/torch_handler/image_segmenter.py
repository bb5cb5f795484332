"""The segmenter of pictures: for each pixel its class, and that class's probability."""

from typing import Any

import torch
from torchvision import transforms

from .vision_handler import VisionHandler


class ImageSegmenter(VisionHandler):
    """For networks that answer with a table, and in it `out`, as torchvision's segmenters do."""

    image_processing = transforms.Compose([
        transforms.Lambda(lambda picture: picture.convert("RGB")),
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    ])  # fmt: skip

    def postprocess(self, data: Any) -> list[Any]:
        """For each picture rows of pixels, each `[class, probability]`."""
        scores = data["out"] if isinstance(data, dict) else data
        shares, classes = torch.max(torch.softmax(scores, dim=1), dim=1)
        return torch.stack([classes.to(shares.dtype), shares], dim=-1).tolist()
