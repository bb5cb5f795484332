"""Which part of a resized image need be computed at all, when only its centre is kept, and the numbers stay the same.

Pillow takes the edges of a part as 32-bit floats, so a part in the middle of the source has other numbers, unless its
edges are whole pixels of the source as well as of the result. So a part begins and ends where they are: 500 pixels that
become 340 are 25 for every 17, and the middle 224 lie in the 238 from 51 to 289, which are made of the 350 from 75 to
425. That is a third less to compute. Where sizes have no such places in reach, all is computed.

Pillow also resizes rows first or columns first, as it finds cheaper, and rounds in between. Its choice is its own and
differs between versions, so each geometry is tried on noise before it is used: a part that differs in one number is
not used. A trial takes as long as it saves in some ten resizes, so only a geometry that keeps coming is tried: where
every photograph has a size of its own, none is.
"""

import functools
import random
from fractions import Fraction
from typing import NamedTuple

from PIL import Image

_PAYS = 0.9  # a part must be less than this of the whole
_MOST_PIXELS = 1 << 22  # of an image before and after: a trial takes as long as two or three resizes of it
_OFTEN = 8  # times that a geometry comes before it is tried
_NOISE = 65521  # bytes; a prime, so that rows do not repeat


class KeptPart(NamedTuple):
    """A part of the source, the size that it is resized to, and where it lies in the whole result."""

    box: tuple[int, int, int, int]
    size: tuple[int, int]
    left: int
    top: int


def part_kept(
    size: tuple[int, int], target: tuple[int, int], *, crop: int, resampling: Image.Resampling
) -> KeptPart | None:
    """The part of an RGB image of `size`, resized to `target`, in which the centre of `crop` × `crop` lies.

    `None`: all of it, or this geometry has not come often enough to be tried.
    """
    return _geometry(size, target, crop, resampling).part()


class _Geometry:
    """Sizes that came, how often, and what is known about them. It counts for one process."""

    def __init__(self, size: tuple[int, int], target: tuple[int, int], crop: int, resampling: Image.Resampling) -> None:
        self._sizes, self._resampling = (size, target), resampling
        self._part = _smaller(size, target, crop)
        self._left = _OFTEN  # times that it still has to come

    def part(self) -> KeptPart | None:
        if self._part is None or self._left < 0:
            return self._part
        self._left -= 1
        if self._left >= 0:
            return None
        if not _is_exact(*self._sizes, self._part, self._resampling):
            self._part = None
        return self._part


@functools.lru_cache(maxsize=256)
def _geometry(size: tuple[int, int], target: tuple[int, int], crop: int, resampling: Image.Resampling) -> _Geometry:
    return _Geometry(size, target, crop, resampling)


def _smaller(size: tuple[int, int], target: tuple[int, int], crop: int) -> KeptPart | None:
    """A part that begins and ends at whole pixels, if one is so much smaller that it pays."""
    if min(target) < crop or max(size[0] * size[1], target[0] * target[1]) > _MOST_PIXELS:
        return None
    (left, right), (top, bottom) = (_edges(size[axis], target[axis], crop) for axis in (0, 1))
    kept = (right - left, bottom - top)
    if kept[0] * kept[1] >= _PAYS * target[0] * target[1]:
        return None
    (x, width), (y, height) = ((Fraction(size[axis], target[axis]), size[axis]) for axis in (0, 1))
    box = (int(left * x), int(top * y), min(int(right * x), width), min(int(bottom * y), height))
    return KeptPart(box, kept, left, top)


def _edges(size: int, target: int, crop: int) -> tuple[int, int]:
    """The places nearest to the crop's edges that are whole pixels before and after.

    A crop that begins at half a pixel may be moved to either side.
    """
    step = Fraction(size, target).denominator
    start, end = (target - crop) // 2, (target + crop + 1) // 2
    return start // step * step, min(target, -(-end // step) * step)


def _is_exact(size: tuple[int, int], target: tuple[int, int], part: KeptPart, resampling: Image.Resampling) -> bool:
    count = 3 * size[0] * size[1]
    noise = random.Random(0).randbytes(_NOISE)  # noqa: S311 (no secret)
    image = Image.frombytes("RGB", size, (noise * (count // _NOISE + 1))[:count])
    whole = image.resize(target, resampling)
    right, bottom = part.left + part.size[0], part.top + part.size[1]
    found = image.resize(part.size, resampling, box=part.box)
    return whole.crop((part.left, part.top, right, bottom)).tobytes() == found.tobytes()
