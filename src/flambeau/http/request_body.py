"""The body of a request while it comes in: never copied as a whole, and never longer than it said it would be.

A short body is a list of pieces, joined at the end. A long one is written where it will lie, into pages that the system
gives as they are written to and takes back at once: a client that announces much and sends little costs little, nothing
is moved on the loop, and memory after a flood is what it was before it.
"""

import mmap
from collections.abc import Callable

from flambeau.errors import RequestError
from flambeau.settings.service import Settings
from flambeau.system import machine

JOINED = 256 * 1024
"""Bytes: up to here a body is joined, which takes far less than a millisecond."""


class BodyBuffer:
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


# One budget for the bodies of all requests: what has come of them, from the first byte until they are answered.
#
# Every body has its own limit (`--max-body-bytes`), which says nothing about a thousand of them. Where one more piece
# does not fit, somebody is refused with 503: first an upload that has stalled, the largest first; then the largest that
# is not whole yet. So a few that hold much pay before the many that hold little, and what came whole is answered.
#
# It knows no HTTP, and belongs to one loop.


SHARE = "flambeau.share"
"""The key under which a scope carries the share of its body."""

FULL = RequestError(
    "the bodies of the requests that are being answered fill the memory for them: try again",
    code="overloaded",
    hint="the operator can give them more with --max-inflight-bytes",
)

_SHARE = 4  # of the memory that this process may use
_STALLED = 1.0  # seconds without a byte


class InflightBudget:
    """The bytes that all bodies together may hold."""

    def __init__(self, settings: Settings) -> None:
        self.most = settings.max_inflight_bytes or max(settings.max_body_bytes, machine.memory_limit() // _SHARE)
        self.used = 0
        self.uploads: set[Share] = set()
        """Those that hold something of a body that is on its way, and whose upload can be ended."""

    def make_room(self, size: int, wanted: "Share") -> bool:
        """Whether so many bytes fit, now or after others were given up. Those may close `wanted` itself: then not."""
        while self.used + size > self.most:
            if not self.uploads:
                return False
            now = wanted.clock()
            worst = max(self.uploads, key=lambda share: (now - share.since >= _STALLED, share.size, share is wanted))
            if worst is wanted:
                return False
            self.uploads.discard(worst)
            worst.end()
        return True


class Share:
    """What one body holds of the budget. `give_up` ends its upload, and closes the share; without one it stays."""

    __slots__ = ("_budget", "_closed", "_give_up", "clock", "since", "size")

    def __init__(self, budget: InflightBudget, clock: Callable[[], float], give_up: Callable[[], None] | None) -> None:
        self._budget = budget
        self._give_up = give_up
        self._closed = False
        self.clock = clock
        self.since = 0.0
        self.size = 0

    def take(self, size: int) -> bool:
        """Count so many more bytes, at the cost of others if need be: false where they do not fit."""
        if self._closed:
            return True  # what still comes is thrown away
        budget = self._budget
        if budget.used + size > budget.most and not budget.make_room(size, self):
            return False
        self.since = self.clock()
        if not self.size and self._give_up is not None:
            budget.uploads.add(self)
        self.size += size
        budget.used += size
        return True

    def whole(self) -> None:
        """The body has come: from now on it stays until it is answered."""
        self._budget.uploads.discard(self)

    def end(self) -> None:
        """End the upload, for others."""
        if self._give_up is not None:
            self._give_up()
        self.close()

    def close(self) -> None:
        """The body is let go of. A second call does nothing."""
        if not self._closed:
            self._closed = True
            self._give_up = None
            self._budget.uploads.discard(self)
            self._budget.used -= self.size
