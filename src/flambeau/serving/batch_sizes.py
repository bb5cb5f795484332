"""How large batches are to be, by what a model takes over one item and over two together. It knows no queue."""

import math
from dataclasses import dataclass

from flambeau.runners.base import BatchCost

_MOST = 32  # items
_PAYS = 0.85  # two items together must take less than so much of their time one after the other
_LONGEST_BATCH = 0.1  # seconds, by the time of two: how long a batch may keep a newcomer waiting
_UNBROKEN = 0.025  # seconds of work at a stretch, beside which the hand-over to a worker (up to 1 ms) is small
_WORTH_A_SLOT = 0.0005  # seconds of work: to wake a worker costs half of it


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """How many items a batch has at most; and how many a slot is given at least, before another shares with it."""

    most: int
    least: int = 1


def measured_sizes(cost: BatchCost | None, *, most: int = 0) -> BatchSizes:
    """The sizes for a model of that cost; `most` where somebody has said it, 0 to find it here.

    What a batch saves is the cost of a call. Where that is small against the item, a long batch only makes all of its
    items wait for the last; then a slot is given what keeps it busy for 25 ms, so that it seldom waits for the front.
    """
    if cost is None:
        return BatchSizes(most or UNMEASURED)
    each = cost.two / 2
    if not math.isfinite(each):  # two together failed, or would be held for too long
        return BatchSizes(most or 1)
    if not most:
        stretch = _LONGEST_BATCH if each < _PAYS * cost.one else _UNBROKEN
        most = max(1, int(min(_MOST, stretch / each)))
    return BatchSizes(most, least=max(1, int(min(most, _WORTH_A_SLOT / each))))


UNMEASURED = 8
"""Items: what a Python model is given at most, for it asked for lists."""
