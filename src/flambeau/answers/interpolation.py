"""Linear interpolation of maps of numbers, as `torch.nn.functional.interpolate(mode="bilinear")` does it."""

from typing import Any

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.intp]


def between(size: int, extent: float, count: int) -> tuple[Places, Places, npt.NDArray[np.float32]]:
    """For each of `size` places: the two of `count` samples that it lies between, and how far it is past the first.

    The places cover the first `extent` of the samples.
    """
    places = ((np.arange(size) + 0.5) * (extent / size) - 0.5).clip(0, count - 1)
    first = np.floor(places).astype(np.intp)
    return first, np.minimum(first + 1, count - 1), (places - first).astype(np.float32)


def resampled(
    planes: npt.NDArray[Any], size: tuple[int, int], *, extent: tuple[float, float]
) -> npt.NDArray[np.float32]:
    """Planes (channels, rows, columns) in another `size` (height, width), of which they cover `extent` from the upper
    left corner. float32 (channels, *size)."""
    above, below, down = between(size[0], extent[0], planes.shape[1])
    left, right, across = between(size[1], extent[1], planes.shape[2])
    found = np.empty((len(planes), *size), np.float32)
    for plane, made in zip(planes, found, strict=True):
        rows = plane[above] * (1 - down)[:, None] + plane[below] * down[:, None]
        made[...] = rows[:, left] * (1 - across) + rows[:, right] * across
    return found
