"""The body of a request while it comes in: never copied as a whole, and never longer than it said it would be.

A short body is a list of pieces, joined at the end. A long one is written where it will lie, into pages that the system
gives as they are written to and takes back at once: a client that announces much and sends little costs little, nothing
is moved on the loop, and memory after a flood is what it was before it.
"""

import mmap

from flambeau.errors import RequestError

JOINED = 256 * 1024
"""Bytes: up to here a body is joined, which takes far less than a millisecond."""


class Body:
    """What has come of a body. `most`: what it may come to, as its length was announced or as the limit is."""

    __slots__ = ("_pages", "_pieces", "most", "size")

    def __init__(self, most: int) -> None:
        self.most = most
        self.size = 0
        self._pieces: list[bytes] = []
        self._pages: mmap.mmap | None = None

    def add(self, piece: bytes) -> bool:
        """Take the next piece: false, and nothing is taken, where that is more than there may be.

        Raises `RequestError` with code `overloaded` where the system has no memory.
        """
        end = self.size + len(piece)
        if end > self.most:
            return False
        if self._pages is None and end > JOINED:
            self._pages = _pages(self.most)
            self._pages.write(b"".join(self._pieces))
            self._pieces = []
        if self._pages is None:
            self._pieces.append(piece)
        else:
            self._pages.write(piece)
        self.size = end
        return True

    def whole(self) -> bytes | memoryview:
        """All of it."""
        if self._pages is not None:
            return memoryview(self._pages)[: self.size]
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)


def _pages(size: int) -> mmap.mmap:
    try:
        if hasattr(mmap, "MAP_PRIVATE"):
            return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return mmap.mmap(-1, size)
    except OSError:
        raise RequestError("there is no memory for this body", code="overloaded") from None
