"""Batch sizes from two measurements: the time of one item, and the time of two together. It knows no queue."""

import math
from dataclasses import dataclass

from flambeau.runners.base import BatchCost

_MOST = 32  # items
_PAYS = 0.85  # batching pays if two items together take less than this share of their time one after the other
_LONGEST_BATCH = 0.1  # seconds, estimated from the time of two: how long a batch may keep a new request waiting
_UNBROKEN = 0.025  # seconds of work without a break; handing over to a worker (up to 1 ms) is small beside it
_WORTH_A_SLOT = 0.0005  # seconds of work; waking a worker costs half of this


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """Items per batch: `most`, and the `least` that a slot gets before another slot shares the work."""

    most: int
    least: int = 1


def measured_sizes(cost: BatchCost | None, *, most: int = 0) -> BatchSizes:
    """The batch sizes for a model of this cost. `most` is the user's maximum, or 0 to derive it from the cost.

    A batch saves the cost of a call. If that is small against the item, a long batch only makes all of its items wait
    for the last; then a slot gets 25 ms of work, so that it seldom waits for the front, and two items of up to 25 ms:
    photographs of 12 to 14 ms that came one by one were a tenth fewer, because the workers waited.

    Example: one item takes 10 ms. If two together take 12 ms (6 ms each, less than 85 % of 10), batching pays, and a
    batch has at most 100 / 6 = 16 items. If two take 20 ms it does not, and a batch has at most 25 / 10 = 2.
    """
    if cost is None:
        return BatchSizes(most or UNMEASURED)
    each = cost.two / 2
    if not math.isfinite(each):  # two together failed, were not tried, or would take too long
        return BatchSizes(most or 1)
    if not most:
        stretch = _LONGEST_BATCH if each < _PAYS * cost.one else _UNBROKEN
        # by the shorter of both: two were measured less often, and more likely in a slow moment of the machine
        most = max(2 if min(cost.one, each) <= _UNBROKEN else 1, int(min(_MOST, stretch / each)))
    return BatchSizes(most, least=max(1, int(min(most, _WORTH_A_SLOT / each))))


UNMEASURED = 8
"""Most items in a batch of a Python model: it takes lists, so it gets batches without a measurement."""
