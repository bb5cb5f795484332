"""Label maps: the class of every pixel. From scores to a map of another size, from a map to masks and COCO's RLE.

A class keeps its colour whatever else is in a picture. Knows no network and no task.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flambeau.answers.interpolation import between

Map = npt.NDArray[Any]
"""The number of each pixel's class: uint8 (height, width), or uint16 for more than 256 classes."""

_ROWS = 256  # of a map that are made at a time
_PIXELS = 32_768  # whose scores are compared at a time


def colours(count: int) -> npt.NDArray[np.uint8]:
    """A colour for each class, (count, 3): the colour map of the PASCAL VOC challenge, in which 0 is black.

    The bits of a class's number become, three at a time, the upper bits of red, green and blue.
    """
    numbers = np.arange(count)
    found = np.zeros((count, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            found[:, channel] |= ((numbers >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return found


def largest(scores: npt.NDArray[Any]) -> Map:
    """The class with the largest score at each place, by scores of shape (classes, rows, columns); of equal ones the
    first. numpy's own argmax over the first axis takes twice as long."""
    dtype = np.uint8 if len(scores) <= 256 else np.uint16
    best, top = np.zeros(scores.shape[1:], dtype), scores[0].copy()
    for index, plane in enumerate(scores[1:], 1):
        best[plane > top] = index
        np.maximum(top, plane, out=top)
    return best


def enlarged(
    scores: npt.NDArray[Any],
    size: tuple[int, int],
    *,
    extent: tuple[float, float] | None = None,
    best: Map | None = None,
) -> Map:
    """The class of each pixel of an image of `size` (height, width), by scores of shape (classes, rows, columns).

    Scores are interpolated linearly, as `torch.nn.functional.interpolate(mode="bilinear")` does it, and the largest
    wins; of equal ones the first. `extent`: how many rows and columns of the scores the image covers, from the upper
    left corner; all, unless told. `best`: the `largest` of them, if it is known already.

    Where the four scores around a pixel have the same largest class, so has whatever lies between them. Scores are
    interpolated for the other pixels only.
    """
    _, rows, columns = scores.shape
    best = largest(scores) if best is None else best
    dtype = best.dtype
    covered = extent or (float(rows), float(columns))
    above, below, down = between(size[0], covered[0], rows)
    left, right, across = between(size[1], covered[1], columns)
    lower, after = np.minimum(np.arange(rows) + 1, rows - 1), np.minimum(np.arange(columns) + 1, columns - 1)
    sure = (best == best[lower]) & (best == best[:, after]) & (best == best[lower][:, after])
    found = np.empty(size, dtype)
    for start in range(0, size[0], _ROWS):
        part = slice(start, start + _ROWS)
        found[part] = best[above[part]][:, left]
        ys, xs = np.nonzero(~sure[above[part]][:, left])
        for first in range(0, len(ys), _PIXELS):
            y, x = ys[first : first + _PIXELS] + start, xs[first : first + _PIXELS]
            wide, high = across[x], down[y]
            upper = scores[:, above[y], left[x]] * (1 - wide) + scores[:, above[y], right[x]] * wide
            under = scores[:, below[y], left[x]] * (1 - wide) + scores[:, below[y], right[x]] * wide
            found[y, x] = (upper * (1 - high) + under * high).argmax(axis=0)
    return found


@dataclass(frozen=True, slots=True)
class Spans:
    """Where a mask's pixels begin and end: numbers of pixels, row by row or column by column, int64 (spans)."""

    begins: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pieces:
    """The spans of all classes of a map of `size` pixels, found in one pass."""

    classes: Map
    spans: Spans
    size: int

    @classmethod
    def along_rows(cls, labels: Map) -> "Pieces":
        """Each ends where its row does, as `png.mask` takes them."""
        flat = labels.ravel()
        turns = np.empty(len(flat), bool)
        np.not_equal(flat[1:], flat[:-1], out=turns[1:])
        turns[:: labels.shape[1]] = True
        return cls._of(flat, turns)

    @classmethod
    def along_columns(cls, labels: Map) -> "Pieces":
        """They go on from the foot of a column to the head of the next, as `rle` takes them."""
        flat = labels.T.ravel()
        turns = np.empty(len(flat), bool)
        turns[0] = True
        np.not_equal(flat[1:], flat[:-1], out=turns[1:])
        return cls._of(flat, turns)

    @classmethod
    def _of(cls, flat: Map, turns: npt.NDArray[np.bool_]) -> "Pieces":
        begins = np.flatnonzero(turns)
        return cls(flat[begins], Spans(begins, np.append(begins[1:], len(flat))), len(flat))

    def of(self, index: int) -> Spans:
        """The spans of a class."""
        own = self.classes == index
        return Spans(self.spans.begins[own], self.spans.ends[own])


def rle(spans: Spans, size: int) -> str:
    """COCO's compressed run-length encoding of a mask of `size` pixels, as `pycocotools.mask.decode` takes it beside
    its height and width.

    Runs of 0 and 1 are counted column by column, from a run of 0. From the fourth on, the length of each is written as
    the difference from the one two before. A number is written five bits at a time, the lowest first; the sixth bit
    says that more follow, and 48 is added to make text of it.
    """
    edges = np.empty(2 * len(spans.begins) + 2, np.int64)
    edges[0], edges[1:-1:2], edges[2:-1:2], edges[-1] = 0, spans.begins, spans.ends, size
    counts: npt.NDArray[np.int64] = np.diff(edges)
    if len(counts) > 1 and not counts[-1]:
        counts = counts[:-1]  # of a run that ends where the picture does
    counts[3:] -= counts[1:-2].copy() if len(counts) > 3 else 0
    return _written(counts)


def _written(numbers: npt.NDArray[np.int64]) -> str:
    digits = np.zeros((len(numbers), 8), np.uint8)
    used = np.zeros((len(numbers), 8), bool)
    left, open_ = numbers.copy(), np.ones(len(numbers), bool)
    for place in range(8):
        low = left & 0x1F
        left = left >> 5
        more = np.where(low & 0x10, left != -1, left != 0)
        digits[:, place] = low + np.where(more, 0x20, 0) + 48
        used[:, place] = open_
        open_ = open_ & more
    return digits[used].tobytes().decode("ascii")
