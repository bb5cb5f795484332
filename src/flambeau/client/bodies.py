"""Turns inputs into request bodies: files and pictures as bytes, everything else as JSON.

numpy and Pillow are used only if an input is of their types; otherwise they are not imported.
"""

import io
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from urllib3 import encode_multipart_formdata

from flambeau.client.answers import InputNotSent

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_QUICK = 1  # zlib's fastest level: compressing further takes longer than sending the bytes within one machine


@dataclass(frozen=True, slots=True)
class RequestBody:
    """The bytes to send, and their Content-Type."""

    content: bytes | memoryview
    content_type: str

    @property
    def is_file(self) -> bool:
        """Whether the content is a file rather than JSON."""
        return self.content_type != "application/json"


def body_of(item: Any, *, as_json: bool) -> RequestBody:
    """The body for an input. Raises `InputNotSent` if it cannot be read, or has no JSON form.

    A path, bytes, an open file, a Pillow image and a picture as a uint8 array (height, width, and 3 or 4 channels or
    none) are sent as files. `as_json` sends any value as JSON.
    """
    if not as_json:
        content = _file(item)
        if content is not None:
            return RequestBody(content, "application/octet-stream")
    try:
        text = json.dumps({"input": item}, allow_nan=False, separators=(",", ":"), default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputNotSent(f"an input of type {type(item).__name__} cannot be sent as JSON: {error}") from error
    return RequestBody(text.encode(), "application/json")


def as_image_part(body: RequestBody) -> RequestBody:
    """The body as the part `image` of a form, which is answered with all probabilities."""
    if not body.is_file:
        raise InputNotSent("probabilities are of images: leave them out, or give an image")
    return RequestBody(
        *encode_multipart_formdata({"image": ("image", bytes(body.content), "application/octet-stream")})
    )


def _file(item: Any) -> bytes | None:
    """The contents of an input that is a file or a picture, else `None`."""
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    if isinstance(item, str | os.PathLike):
        try:
            return Path(item).read_bytes()
        except (OSError, ValueError) as error:
            raise InputNotSent(
                f"the file {str(item)!r} cannot be read ({error}): a string is taken for a path unless as_json=True"
            ) from error
    if hasattr(item, "read"):
        content = item.read()
        if not isinstance(content, bytes):
            raise InputNotSent('the file is opened as text: open it with the mode "rb"')
        return content
    image = sys.modules.get("PIL.Image")
    if image is not None and isinstance(item, image.Image):
        return _png(item)
    if _is_picture(item):
        from PIL import Image

        return _png(Image.fromarray(item))
    return None


def _is_picture(item: Any) -> bool:
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(item, numpy.ndarray) or item.dtype != numpy.uint8:
        return False
    return item.ndim == 2 or (item.ndim == 3 and item.shape[2] in (3, 4))


def _png(image: Any) -> bytes:
    """A Pillow image as PNG, without loss."""
    file = io.BytesIO()
    (image if image.mode in _PNG_MODES else image.convert("RGB")).save(file, "PNG", compress_level=_QUICK)
    return file.getvalue()


def _plain(value: Any) -> Any:
    """Arrays, tensors and their numbers as values that JSON can encode."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")
