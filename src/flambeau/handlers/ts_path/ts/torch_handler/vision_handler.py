"""The base of handlers over pictures. Subclasses set `image_processing`, a transform of torchvision."""

import base64
import io
from typing import Any

import torch
from PIL import Image

from .base_handler import BaseHandler, _content


class VisionHandler(BaseHandler):
    """Pictures as bytes, as text in base64, or as lists of numbers that need no transform."""

    image_processing: Any = None

    def preprocess(self, data: list[Any]) -> Any:
        """The pictures of all requests, transformed and stacked."""
        return torch.stack([self._prepared(_content(row)) for row in data]).to(self.device)

    def _prepared(self, content: Any) -> Any:
        if isinstance(content, str):
            content = base64.b64decode(content.rpartition(",")[2])
        if isinstance(content, bytearray | bytes | memoryview):
            picture: Any = Image.open(io.BytesIO(bytes(content)))
            if picture.mode not in ("RGB", "L"):
                picture = picture.convert("RGB")
            return self.image_processing(picture)
        return torch.as_tensor(content, dtype=torch.float32)
