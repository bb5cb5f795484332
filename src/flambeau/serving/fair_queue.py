"""A queue that serves requests in turn: an item of the first, an item of the second, and so on round again.

Who sends one item waits for at most one item of every request ahead, however many each of them brought; and who sent
many has one item more done in every round, however many come after.

Example: request A brings three items, then B one and C two. They are taken in the order A1 B1 C1 A2 C2 A3. If D comes
with one item when B1 has been taken, it goes on with C1 A2 D1 C2 A3.

It knows nothing of what waits in it. Each step takes the same time, however much waits.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Entries by the request they belong to. `request`: a number of its own for each. `size` is how many wait."""

    __slots__ = ("_turns", "size")

    def __init__(self) -> None:
        self._turns: OrderedDict[int, deque[T]] = OrderedDict()
        self.size = 0

    def __iter__(self) -> Iterator[T]:
        """All that waits, a request after the other."""
        for turn in self._turns.values():
            yield from turn

    def add(self, request: int, entry: T) -> None:
        """Behind what waits of its request; a request that does not wait yet has its turn after all that do."""
        turn = self._turns.get(request)
        if turn is None:
            self._turns[request] = deque((entry,))
        else:
            turn.append(entry)
        self.size += 1

    def first(self) -> T:
        """What `take` would give."""
        return next(iter(self._turns.values()))[0]

    def firsts(self) -> Iterator[T]:
        """The first of each request."""
        return (turn[0] for turn in self._turns.values())

    def take(self) -> T:
        """Take out the next, after which its request has its turn again when all others have had theirs."""
        request, turn = self._turns.popitem(last=False)
        entry = turn.popleft()
        if turn:
            self._turns[request] = turn
        self.size -= 1
        return entry

    def remove(self, request: int, entry: T) -> None:
        """Take out an entry that waits here, in a time that only its own request's items add to."""
        turn = self._turns[request]
        turn.remove(entry)
        if not turn:
            del self._turns[request]
        self.size -= 1

    def clear(self) -> None:
        """Take out all."""
        self._turns.clear()
        self.size = 0


# Which slots heavy requests may have: those of many items, or of many bytes.
#
# Bytes take long to read, whatever comes of them, and a batch takes long where an item makes it fail, for then each is
# tried alone. A replica that is at it has no time for others, and two clients that send nothing else would keep two
# replicas. So as long as others come, heavy requests leave a slot to them, and are in no batch with them. Where there
# is only one slot, the others have it for as long as the heavy ones before.


MOST_BYTES = 4 * 1024 * 1024
"""Photographs are below, and pictures as numbers. A JSON document of more takes above 30 ms to be looked at."""
MOST_ITEMS = 8

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
