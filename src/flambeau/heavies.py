"""Which slots heavy items may have: those that take long to read, whatever comes of them, because of their size.

A replica that reads one has no time for others until it is through, and two clients that send nothing else would keep
two replicas. So as long as others come, heavy items leave a slot to them, and are not put into their batches. Where
there is only one slot, the others have it for as long as the heavy ones before.
"""

from typing import Generic, TypeVar

from flambeau.fair_queue import FairQueue

HEAVY = 4 * 1024 * 1024
"""Bytes: photographs are below, and pictures as numbers. A JSON document of more takes above 30 ms to be looked at."""

T = TypeVar("T")
_COMPANY = 0.2  # seconds for which the slot of the last of the others is kept


class Heavies(Generic[T]):
    """The heavy items that wait, and how many batches of them run. Times are of one clock, which callers read."""

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
        """A batch of heavy items runs."""
        self.running += 1

    def ended(self, now: float, *, took: float) -> None:
        """A batch of them is through."""
        self.running -= 1
        self._rest = now + took

    def may_go(self, now: float, *, slots: int, others_wait: bool) -> bool:
        """Whether the next of them may have a slot, if one of so many is free."""
        if slots <= 1:
            return not others_wait or now >= self._rest
        return self.running < slots - 1 or not (others_wait or now < self.alone_at)
