"""Real photographs, and the files that they come in."""

import io

from PIL import Image


def photograph(name: str) -> Image.Image:
    """One of scikit-image's photographs: chelsea (a cat), coffee, rocket, astronaut."""
    from skimage import data

    return Image.fromarray(getattr(data, name)()).convert("RGB")


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
