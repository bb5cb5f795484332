"""What was read from bytes that come again and again, by these bytes: it need not be read a second time.

Clients send the same heads and the same descriptions of their tensors with every request. It does not know what they
mean: whoever keeps something decides whether the same bytes always mean the same.
"""

from typing import Generic, TypeVar

T = TypeVar("T")


class KnownBytes(Generic[T]):
    """What was kept, in two generations: when the younger is full, the elder goes, so that what is used stays."""

    def __init__(self, most: int) -> None:
        """`most`: in each of the two."""
        self._most = most
        self._young: dict[bytes, T] = {}
        self._old: dict[bytes, T] = {}

    def get(self, raw: bytes) -> T | None:
        """What was kept for exactly these bytes, or `None`."""
        found = self._young.get(raw)
        if found is None and (found := self._old.get(raw)) is not None:
            self.keep(raw, found)
        return found

    def keep(self, raw: bytes, read: T) -> None:
        """Keep what was read from these bytes."""
        if len(self._young) >= self._most:
            self._old, self._young = self._young, {}
        self._young[raw] = read

    def clear(self) -> None:
        """Keep nothing any more."""
        self._young, self._old = {}, {}
