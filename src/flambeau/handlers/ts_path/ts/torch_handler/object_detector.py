"""The detector of objects: for each picture the boxes whose score is above the threshold."""

from typing import Any, ClassVar

import torch
from torchvision import transforms

from ..utils.util import map_class_to_label
from .vision_handler import VisionHandler


class ObjectDetector(VisionHandler):
    """For networks that take pictures as they are, such as torchvision's detectors."""

    threshold: ClassVar[float] = 0.5

    image_processing = transforms.Compose([
        transforms.Lambda(lambda picture: picture.convert("RGB")), transforms.ToTensor(),
    ])  # fmt: skip

    def preprocess(self, data: list[Any]) -> Any:
        """The pictures, each of its own size."""
        from .base_handler import _content

        return [self._prepared(_content(row)).to(self.device) for row in data]

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """Boxes, labels and scores of each picture."""
        with torch.inference_mode():
            return self.model(data, *args, **kwargs)

    def postprocess(self, data: Any) -> list[Any]:
        """`[{"cat": [xmin, ymin, xmax, ymax], "score": 0.9}, ...]` for each picture."""
        answers = []
        for found in data:
            kept = found["scores"] >= self.threshold
            boxes, labels = found["boxes"][kept].tolist(), found["labels"][kept].tolist()
            named = map_class_to_label([[box] for box in boxes], self.mapping, [[label] for label in labels])
            scores = found["scores"][kept].tolist()
            answers.append([{**each, "score": score} for each, score in zip(named, scores, strict=True)])
        return answers
