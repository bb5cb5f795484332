"""Masks of single objects: from a network's small map to the pixels of a picture, and to COCO's RLE and back.

A mask is kept as the part of the picture that its box covers, because most of it is empty: a picture of twelve
megapixels with a hundred objects is never a hundred pictures in memory. Knows no network and no task.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flambeau.answers import label_maps
from flambeau.answers.boxes import MASKS, Pairs
from flambeau.answers.interpolation import between
from flambeau.items import Tensors

INSIDE = 0.5
"""A pixel belongs to the object if its probability is above this."""

SAME_MASK = 0.99
"""The least overlap (intersection over union) of two small masks that count as the same."""

_NEAR = 1e-3  # probabilities this close are the same, on whichever side of one half they lie
_ROWS = 256  # of a mask that are made at a time


@dataclass(frozen=True, slots=True)
class Region:
    """The part of a picture that a mask may cover: its upper left corner, and which of its pixels belong to the object,
    bool (height, width)."""

    left: int
    top: int
    inside: npt.NDArray[np.bool_]

    @property
    def pixels(self) -> int:
        """How many pixels belong to the object."""
        return int(np.count_nonzero(self.inside))


def pasted(small: npt.NDArray[Any], box: tuple[float, float, float, float], size: tuple[int, int]) -> Region:
    """The mask of an object in a picture of `size` (height, width), as `torchvision` pastes it.

    `small`: the probabilities in the object's `box` (xmin, ymin, xmax, ymax), float (rows, columns). They get a border
    of zeros, the box grows with it and is cut to whole pixels, and the numbers between are interpolated linearly
    (torchvision.models.detection.roi_heads.paste_masks_in_image).
    """
    height, width = size
    planes = np.pad(small.astype(np.float32, copy=False), 1)
    limits = np.array([width, height, width, height], np.float32)
    within = np.nan_to_num(np.array(box, np.float32), nan=0.0, posinf=0.0, neginf=0.0).clip(0, limits)
    left, top, right, bottom = _grown(within, planes.shape[1] / small.shape[1])
    high, wide = max(bottom - top + 1, 1), max(right - left + 1, 1)
    first, last = max(top, 0), min(bottom + 1, height)
    begin, end = max(left, 0), min(right + 1, width)
    inside = np.zeros((max(last - first, 0), max(end - begin, 0)), bool)
    above, below, down = (each[first - top : last - top] for each in between(high, planes.shape[0], planes.shape[0]))
    before, after, across = (
        each[begin - left : end - left] for each in between(wide, planes.shape[1], planes.shape[1])
    )
    for start in range(0, len(inside), _ROWS):
        part = slice(start, start + _ROWS)
        rows = planes[above[part]] * (1 - down[part])[:, None] + planes[below[part]] * down[part][:, None]
        inside[part] = rows[:, before] * (1 - across) + rows[:, after] * across > INSIDE
    return Region(begin, first, inside)


def _grown(box: npt.NDArray[np.float32], scale: float) -> tuple[int, int, int, int]:
    """The box, larger by `scale` around its centre, in whole pixels. In float32 as torchvision computes it, for a
    number just below a whole one is cut to another pixel."""
    half_wide, half_high = (box[2] - box[0]) * np.float32(0.5), (box[3] - box[1]) * np.float32(0.5)
    across, down = (box[2] + box[0]) * np.float32(0.5), (box[3] + box[1]) * np.float32(0.5)
    half_wide, half_high = half_wide * np.float32(scale), half_high * np.float32(scale)
    return int(across - half_wide), int(down - half_high), int(across + half_wide), int(down + half_high)


def whole(region: Region, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The mask in the whole picture, bool (height, width)."""
    found = np.zeros(size, bool)
    high, wide = region.inside.shape
    found[region.top : region.top + high, region.left : region.left + wide] = region.inside
    return found


def rle(region: Region, size: tuple[int, int]) -> str:
    """The mask in the whole picture in COCO's run-length encoding (`label_maps.rle`), made of the region alone."""
    height, width = size
    high, wide = region.inside.shape
    edged = np.zeros((wide, high + 2), np.int8)
    edged[:, 1:-1] = region.inside.T
    column, row = np.nonzero(np.diff(edged, axis=1))
    turns = (column + region.left) * height + row + region.top
    places, often = np.unique(turns, return_counts=True)  # a run may go on from the foot of a column to the next's head
    return label_maps.coded(np.concatenate([[0], places[often == 1], [height * width]]))


def unpacked(counts: str, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The mask of a picture of `size` (height, width) from COCO's run-length encoding. Raises `ValueError` for text
    that is none of that picture."""
    runs: list[int] = []
    number = shift = 0
    for letter in counts.encode("ascii"):
        digit = letter - 48
        if not 0 <= digit < 64 or shift > 35:
            raise ValueError("the mask is no run-length encoding")
        number |= (digit & 0x1F) << shift
        shift += 5
        if not digit & 0x20:
            number = number - (1 << shift) if digit & 0x10 else number
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    if shift or min(runs, default=0) < 0 or sum(runs) != size[0] * size[1]:
        raise ValueError(f"the mask is not of {size[1]} × {size[0]} pixels")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size, order="F")


def apart(expected: Tensors, found: Tensors, pairs: Pairs) -> bool:
    """Whether any small masks of the same objects differ: one row of each network's outputs, see `boxes.Apart`."""
    return any(not _alike(expected[MASKS][one], found[MASKS][other]) for one, other in pairs)


def _alike(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    if not np.isfinite(other).all():
        return False
    near = np.abs(one.astype(np.float64) - other) <= _NEAR
    first, second = one > INSIDE, other > INSIDE
    shared = np.count_nonzero((first & second) | ((first | second) & near))
    return bool(shared >= SAME_MASK * np.count_nonzero(first | second))
