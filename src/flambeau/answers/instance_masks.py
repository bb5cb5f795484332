"""Masks of single objects: from a network's small map to the pixels of a picture, and to COCO's RLE and back.

A mask is kept as the part of the picture that its box covers, because most of it is empty: a picture of twelve
megapixels with a hundred objects is never a hundred pictures in memory. Knows no network and no task.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flambeau.answers import label_maps, png
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

    def within(self, picture: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The same part of an array of the picture's size, (height, width)."""
        high, wide = self.inside.shape
        return picture[self.top : self.top + high, self.left : self.left + wide]


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
    region.within(found)[...] = region.inside
    return found


def rle(region: Region, size: tuple[int, int]) -> str:
    """The mask in the whole picture in COCO's run-length encoding (`label_maps.rle`), made of the region alone."""
    height, width = size
    column, row = _turns(region.inside.T)
    places = (column + region.left) * height + row + region.top
    places, often = np.unique(
        places, return_counts=True
    )  # a run may go on from the foot of a column to the next's head
    places = places[often == 1]
    return label_maps.rle(label_maps.Spans(places[::2], places[1::2]), height * width)


def file(region: Region, size: tuple[int, int]) -> bytes:
    """The mask in the whole picture as a grey PNG file (`png.mask`), made of the region alone."""
    row, column = _turns(region.inside)
    places = (row + region.top) * size[1] + column + region.left
    return png.mask(label_maps.Spans(places[::2], places[1::2]), size)


def _turns(inside: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The rows and columns where the object begins in a row, and where it has ended, in turns."""
    high, wide = inside.shape
    edged = np.zeros((high, wide + 2), bool)
    edged[:, 1:-1] = inside
    return np.divmod(np.flatnonzero(edged[:, 1:] != edged[:, :-1]), wide + 1)


def unpacked(counts: str, size: tuple[int, int]) -> Region:
    """The mask of a picture of `size` (height, width) from COCO's run-length encoding: the part of the picture that
    the object lies in. Raises `ValueError` for text that is none of that picture."""
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
    if len(runs) < 2:
        return Region(0, 0, np.zeros((0, 0), bool))
    high = size[0]
    ends = np.cumsum(runs[: len(runs) // 2 * 2])
    first, last = ends[::2], ends[1::2] - 1  # pixels of each run of the object
    begin, end = int(first[0]) // high, int(last[-1]) // high + 1
    within = (first // high == last // high).all()  # a run that goes on in the next column may cover every row
    top, foot = (int((first % high).min()), int((last % high).max()) + 1) if within else (0, high)
    lengths = np.diff(ends.clip(begin * high, end * high), prepend=begin * high, append=end * high)
    flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return Region(begin, top, np.ascontiguousarray(flat.reshape(end - begin, high)[:, top:foot].T))


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
