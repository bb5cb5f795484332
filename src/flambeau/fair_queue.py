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
    """Entries by the request they belong to. `request`: a number of its own for each."""

    __slots__ = ("_size", "_turns")

    def __init__(self) -> None:
        self._turns: OrderedDict[int, deque[T]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

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
        self._size += 1

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
        self._size -= 1
        return entry

    def remove(self, request: int, entry: T) -> None:
        """Take out an entry that waits here, in a time that only its own request's items add to."""
        turn = self._turns[request]
        turn.remove(entry)
        if not turn:
            del self._turns[request]
        self._size -= 1

    def clear(self) -> None:
        """Take out all."""
        self._turns.clear()
        self._size = 0
