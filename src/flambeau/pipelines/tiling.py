"""Large images in tiles that overlap, and tiles put together again, each fading into the next.

So a network takes no more memory for a large image than for a tile. What it answers beside a cut is not used: tiles
fade over the middle of the overlap. No seam shows where an answer to a pixel does not depend on what lies further away
than the rest of the overlap on each side. The build finds out whether that is so.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

SIDE = 512
"""Of a tile, in pixels: a multiple of all that networks ask of a side."""


FADE = 16
"""Over how many pixels of the input one tile fades into the next."""


@dataclass(frozen=True)
class Grid:
    """The tiles of an image: `down` rows of `across` tiles, which overlap by `overlap` pixels."""

    down: int
    across: int
    overlap: int

    @classmethod
    def over(cls, height: int, width: int, overlap: int) -> "Grid":
        """The fewest tiles that cover an image of that size."""
        step = SIDE - overlap
        down, across = (1 + max(0, math.ceil((side - SIDE) / step)) for side in (height, width))
        return cls(down, across, overlap)

    @property
    def size(self) -> tuple[int, int]:
        """The height and width that the tiles cover together."""
        step = SIDE - self.overlap
        return SIDE + (self.down - 1) * step, SIDE + (self.across - 1) * step

    def cut(self, planes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The tiles (tiles, channels, SIDE, SIDE) of planes (1, channels, height, width), whose edges are repeated."""
        more = [(0, whole - side) for whole, side in zip(self.size, planes.shape[2:], strict=True)]
        whole = np.pad(planes[0], [(0, 0), *more], "edge")
        step = SIDE - self.overlap
        found = np.empty((self.down * self.across, len(whole), SIDE, SIDE), np.float32)
        for number, tile in enumerate(found):
            row, column = divmod(number, self.across)
            tile[...] = whole[:, row * step : row * step + SIDE, column * step : column * step + SIDE]
        return found

    def join(self, tiles: npt.NDArray[Any], scale: tuple[int, int]) -> npt.NDArray[np.float32]:
        """The planes (1, channels, height, width) that tiles make, with `scale[0]` pixels for each `scale[1]` cut."""
        up, down = scale
        side, overlap, fade = (length * up // down for length in (SIDE, self.overlap, FADE))
        step = side - overlap
        height, width = (length * up // down for length in self.size)
        found = np.zeros((1, tiles.shape[1], height, width), np.float32)
        for number, tile in enumerate(tiles):
            row, column = divmod(number, self.across)
            weights = _weights(side, overlap, fade, place=row, count=self.down)[:, None] * _weights(
                side, overlap, fade, place=column, count=self.across
            )
            top, left = row * step, column * step
            found[0, :, top : top + side, left : left + side] += tile * weights
        return found


def _weights(side: int, overlap: int, fade: int, *, place: int, count: int) -> npt.NDArray[np.float32]:
    """The weights of a tile along one axis: 0 beside a cut, then rising to 1 over `fade` pixels, and so back again."""
    fade = min(fade, overlap)
    unused = (overlap - fade) // 2
    rising = np.ones(overlap, np.float32)
    rising[:unused] = 0
    rising[unused : unused + fade] = (np.arange(fade) + 0.5) / max(fade, 1)
    weights = np.ones(side, np.float32)
    if place > 0:
        weights[:overlap] = rising
    if place < count - 1:
        weights[side - overlap :] = 1 - rising
    return weights
