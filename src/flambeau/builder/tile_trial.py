"""Whether large pictures can be cut into tiles: does a network's answer to a pixel depend on what lies far away?

It is computed over a photograph, and over two parts of it: without its right edge, and without its left one, which
shows a network that counts from an edge. Where the answers are the same up to a margin beside the cut, tiles that
overlap by twice the margin and some more make the same picture as the whole. Otherwise seams would show.
"""

import math
from collections.abc import Callable

import numpy as np

from flambeau.items import Tensors
from flambeau.pipelines.tiling import FADE

WHOLE, PART = 192, 128
"""The side of the photograph, and the width of the part, in pixels."""

_MARGINS = (16, 32)  # pixels
_STEPS = 255  # of brightness: a difference of one of them shows nowhere


def overlap(
    photograph: np.ndarray,
    compute: Callable[[Tensors], Tensors],
    names: tuple[str, str],
    *,
    scale: float,
    multiple: int,
    span: float | None,
) -> int:
    """By how many pixels tiles have to overlap; 0 if no overlap tried is enough.

    `photograph`: float32 (1, channels, WHOLE, WHOLE). `names`: of the input and the output. `scale`: the output's
    pixels for each of the input. `span`: from black to white; if it is `None`, that of the answer's own numbers.
    """
    given, answered = names
    whole = compute({given: photograph})[answered]
    first, last = (
        compute({given: np.ascontiguousarray(photograph[..., start : start + PART])})[answered]
        for start in (0, WHOLE - PART)
    )
    allowed = (float(np.ptp(whole)) if span is None else abs(span)) / _STEPS
    for margin in _MARGINS:
        columns = int((PART - margin) * scale)
        apart = (whole[..., :columns] - first[..., :columns], whole[..., -columns:] - last[..., -columns:])
        if max(np.abs(each).max() for each in apart) <= allowed:
            return math.ceil((2 * margin + FADE) / multiple) * multiple
    return 0
