"""Which slots heavy requests may have: those of many items, or of many bytes.

Bytes take long to read, whatever comes of them, and a batch takes long where an item makes it fail, for then each is
tried alone. A replica that is at it has no time for others, and two clients that send nothing else would keep two
replicas. So as long as others come, heavy requests leave a slot to them, and are in no batch with them. Where there is
only one slot, the others have it for as long as the heavy ones before.
"""

from typing import Generic, TypeVar

from flambeau.fair_queue import FairQueue

MOST_BYTES = 4 * 1024 * 1024
"""Photographs are below, and pictures as numbers. A JSON document of more takes above 30 ms to be looked at."""
MOST_ITEMS = 8

T = TypeVar("T")
_COMPANY = 0.1  # seconds for which the slot of the last of the others is kept


def is_heavy(items: int, size: int) -> bool:
    """Whether a request of so many items and bytes is heavy."""
    return items > MOST_ITEMS or size > MOST_BYTES


class Heavies(Generic[T]):
    """What waits of heavy requests, and how many batches of them run. Times are of one clock, which callers read."""

    def __init__(self) -> None:
        self.queue: FairQueue[T] = FairQueue()
        self.running = 0
        self.alone_at = 0.0
        """When the others count as gone, unless they come again."""
        self._rest = 0.0

    def others_ran(self, now: float) -> None:
        """A batch of others is through."""
        self.alone_at = now + _COMPANY

    def began(self) -> None:
        """A batch of heavy requests runs."""
        self.running += 1

    def ended(self, now: float, *, took: float) -> None:
        """A batch of them is through."""
        self.running -= 1
        self._rest = now + took

    def may_go(self, now: float, *, slots: int, others_wait: bool) -> bool:
        """Whether their next batch may have a slot, if one of so many is free."""
        if slots <= 1:
            return not others_wait or now >= self._rest
        return self.running < slots - 1 or not (others_wait or now < self.alone_at)
