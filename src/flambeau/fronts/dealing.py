"""Which front gets the next connection: the one with the fewest. It counts them, and touches none."""

from collections import Counter
from collections.abc import Iterable


class Hand:
    """The connections of one front, as the supervisor counts them."""

    def __init__(self) -> None:
        self.open = 0
        self.last = 0  # when it got one, as a number that grows
        self.addresses: Counter[str] = Counter()

    def closed(self, address: str) -> None:
        """One of that address is closed."""
        self.open = max(0, self.open - 1)
        self.addresses[address] -= 1
        if self.addresses[address] <= 0 or not self.open:
            del self.addresses[address]


class Dealer:
    """Deals connections in turns among the fronts that have the fewest."""

    def __init__(self) -> None:
        self._dealt = 0

    def choose(self, hands: Iterable[Hand]) -> Hand | None:
        """The one to get the next connection; of several that have as few, the one that has waited longest."""
        return min(hands, key=lambda hand: (hand.open, hand.last), default=None)

    def deal(self, hand: Hand, address: str) -> None:
        """Count a connection in."""
        self._dealt += 1
        hand.last = self._dealt
        hand.open += 1
        hand.addresses[address] += 1


def elsewhere(hands: Iterable[Hand], own: Hand, address: str) -> int:
    """How many connections of an address are at the other fronts."""
    return sum(hand.addresses[address] for hand in hands if hand is not own)
