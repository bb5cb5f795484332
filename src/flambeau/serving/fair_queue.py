"""A round-robin queue over requests: one item of the first, one of the second, and so on, then round again.

A request with one item waits for at most one item of each request ahead of it, however many items those have. A request
with many items gets one of them done in every round, however many requests come after it.

Example: request A has three items, then B comes with one and C with two. They are taken in the order A1 B1 C1 A2 C2 A3.
If D comes with one item once B1 has been taken, the order goes on with C1 A2 D1 C2 A3.

The queue knows nothing about its entries. `add` and `take` cost the same however much waits.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Entries by request. `request` is a number unique to each request; `size` is the number of waiting entries."""

    __slots__ = ("_turns", "size")

    def __init__(self) -> None:
        self._turns: OrderedDict[int, deque[T]] = OrderedDict()
        self.size = 0

    def __iter__(self) -> Iterator[T]:
        """All waiting entries, one request after the other."""
        for turn in self._turns.values():
            yield from turn

    def add(self, request: int, entry: T) -> None:
        """Append an entry behind the others of its request. A new request takes its turn after all waiting ones."""
        turn = self._turns.get(request)
        if turn is None:
            self._turns[request] = deque((entry,))
        else:
            turn.append(entry)
        self.size += 1

    def first(self) -> T:
        """The entry that `take` would return."""
        return next(iter(self._turns.values()))[0]

    def firsts(self) -> Iterator[T]:
        """The first entry of each request."""
        return (turn[0] for turn in self._turns.values())

    def take(self) -> T:
        """Remove and return the next entry. Its request takes its next turn after all others have had theirs."""
        request, turn = self._turns.popitem(last=False)
        entry = turn.popleft()
        if turn:
            self._turns[request] = turn
        self.size -= 1
        return entry

    def remove(self, request: int, entry: T) -> None:
        """Remove a waiting entry. The cost grows only with the items of its own request."""
        turn = self._turns[request]
        turn.remove(entry)
        if not turn:
            del self._turns[request]
        self.size -= 1

    def clear(self) -> None:
        """Remove everything."""
        self._turns.clear()
        self.size = 0


# Heavy requests: those with many items or many bytes. Reading many bytes takes long, and so does a batch in which one
# item fails, because each item is then run alone. Two clients that send nothing else would occupy two replicas.


MOST_BYTES = 4 * 1024 * 1024
"""Photographs are smaller, and so are pictures as numbers. A larger JSON document takes over 30 ms to scan."""
MOST_ITEMS = 8

_COMPANY = 0.1  # seconds for which a slot stays reserved after the last batch of light requests


def is_heavy(items: int, size: int) -> bool:
    """Whether a request with this many items and bytes is heavy."""
    return items > MOST_ITEMS or size > MOST_BYTES


class Heavies(Generic[T]):
    """The queue of heavy requests, and the count of their running batches.

    While light requests come, heavy ones leave one slot to them and never share a batch with them. If there is only one
    slot, each heavy batch is followed by a pause of the same length for the light ones. All times passed in must be of
    one clock.
    """

    def __init__(self) -> None:
        self.queue: FairQueue[T] = FairQueue()
        self.running = 0
        self.alone_at = 0.0
        """From when on light requests count as absent, unless more come."""
        self._rest = 0.0

    def others_ran(self, now: float) -> None:
        """Record the end of a batch of light requests."""
        self.alone_at = now + _COMPANY

    def began(self) -> None:
        """Record the start of a heavy batch."""
        self.running += 1

    def ended(self, now: float, *, took: float) -> None:
        """Record the end of a heavy batch that took `took` seconds."""
        self.running -= 1
        self._rest = now + took

    def may_go(self, now: float, *, slots: int, others_wait: bool) -> bool:
        """Whether the next heavy batch may take a free slot, out of `slots` in all."""
        if slots <= 1:
            return not others_wait or now >= self._rest
        return self.running < slots - 1 or not (others_wait or now < self.alone_at)
