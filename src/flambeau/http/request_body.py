"""The body of a request as it arrives: a long one is never copied as a whole, and none is longer than announced.

A short body is a list of pieces, joined at the end. A long one is written straight to its place, in pages that the
system hands out as they are written to and takes back at once. So a client that announces much and sends little costs
little, the loop does not copy the body again, and memory after a flood is what it was before, but for a few buffers.
"""

import contextlib
import mmap
from collections import deque
from collections.abc import Callable

from flambeau.errors import RequestError
from flambeau.settings.service import Settings
from flambeau.system import machine

JOINED = 256 * 1024
"""Bytes: a body up to this size is joined from its pieces, which takes far less than a millisecond."""

DISCARD_AT_MOST = 8
"""Times the body limit: what a client whose request was refused may still send, so that it reads why."""

_PLACED = 4 * 1024 * 1024  # bytes: a body up to this size has its pages from the start, if it is not to be joined
_KEPT_SIZE, _KEPT_COUNT = 1024 * 1024, 16  # bytes of a buffer that is kept for the next body, and how many are


_kept: deque[bytearray] = deque()
"""Buffers for bodies of up to a mebibyte, kept when their requests are answered: new pages for a tensor cost three
times what its bytes do."""


def _kept_buffer(size: int) -> memoryview | None:
    """Room for a body of that size, whose contents mean nothing; `None` if it is too long, or if all are in use.

    A buffer is free when nobody has a view of it any more, which Python counts. So nobody gives one back, and no body
    can be overwritten as long as somebody could read it. Raises `MemoryError`.
    """
    if size > _KEPT_SIZE:
        return None
    for _ in range(len(_kept)):
        try:
            buffer = _kept.popleft()  # so that no other thread has it now
        except IndexError:
            break
        try:
            buffer.append(buffer.pop())  # refused while there is a view; else it stays where it is
            return memoryview(buffer)[:size]
        except BufferError:
            continue
        finally:
            _kept.append(buffer)
    if len(_kept) >= _KEPT_COUNT:
        return None
    fresh = bytearray(_KEPT_SIZE)
    room = memoryview(fresh)[:size]
    _kept.append(fresh)
    return room


class BodyBuffer:
    """The part of a body that has arrived. `most`: the bytes it may have, as announced or by the limit."""

    __slots__ = ("_pages", "_pieces", "most", "size")

    def __init__(self, most: int) -> None:
        self.most = most
        self.size = 0
        self._pieces: list[bytes | memoryview] = []
        self._pages: memoryview | None = None
        if JOINED < most <= _PLACED:
            with contextlib.suppress(RequestError, MemoryError):  # it is told when they are needed
                self._pages = _kept_buffer(most) or _pages(most)

    def add(self, piece: bytes | memoryview) -> bool:
        """Add the next piece. False if the body would be longer than `most`: then nothing is added.

        Raises `RequestError` with code `overloaded` if the system has no memory.
        """
        end = self.size + len(piece)
        if end > self.most:
            return False
        if self._pages is None and end > JOINED:
            self._pages = _pages(self.most)
            self._pages[: self.size] = b"".join(self._pieces)
            self._pieces = []
        if self._pages is None:
            self._pieces.append(piece)
        else:
            self._pages[self.size : end] = piece
        self.size = end
        return True

    def room(self) -> memoryview | None:
        """Where the rest of the body may be written, if it has its pages; call `came` with what was."""
        return None if self._pages is None else self._pages[self.size :]

    def came(self, size: int) -> None:
        """So many bytes were written into `room`."""
        self.size += size

    def whole(self) -> bytes | memoryview:
        """The whole body; a view if it is long."""
        if self._pages is not None:
            return self._pages[: self.size]
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)


def _pages(size: int) -> memoryview:
    try:
        if hasattr(mmap, "MAP_PRIVATE"):
            return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        return memoryview(mmap.mmap(-1, size))
    except OSError:
        raise RequestError("there is no memory for this body", code="overloaded") from None


# The budget for the bodies of all requests.


def full() -> RequestError:
    """The error where the budget is used up.

    It is made anew each time: one that is raised keeps the frames that it came through, and so the body it was about.
    """
    return RequestError(
        "the bodies of other requests fill the memory for request bodies: try again",
        code="overloaded",
        hint="the operator can raise the limit with --max-inflight-bytes",
    )


_SHARE = 4  # the budget is the memory that this process may use, divided by this
_STALLED = 1.0  # seconds without a byte


class InflightBudget:
    """The bytes that the bodies of all requests may hold together, from their first byte until they are answered.

    Every body has its own limit (`--max-body-bytes`), but a thousand bodies within it are still too much. If one more
    piece does not fit, an upload is refused with 503: first those that have stalled, the largest first; then the
    largest that is not complete. So a few large uploads are refused before many small ones, and a complete body is
    always answered. Example: of 110 MB, an incomplete upload holds 60 and two complete bodies 20 each. A piece of
    15 MB of a new request then ends the upload of 60 MB.

    A budget belongs to one loop.
    """

    def __init__(self, settings: Settings) -> None:
        self.most = settings.max_inflight_bytes or max(settings.max_body_bytes, machine.memory_limit() // _SHARE)
        self.used = 0
        self.uploads: set[Share] = set()
        """The shares that hold part of a body that is still arriving, and whose upload can be ended."""

    def make_room(self, size: int, wanted: "Share") -> bool:
        """Whether `size` bytes fit, if need be after other uploads were ended. False if `wanted` is the one to end."""
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
    """One body's part of the budget. `give_up` ends its upload and closes the share; without it, no upload is ended."""

    __slots__ = ("_budget", "_closed", "_give_up", "clock", "since", "size")

    def __init__(self, budget: InflightBudget, clock: Callable[[], float], give_up: Callable[[], None] | None) -> None:
        self._budget = budget
        self._give_up = give_up
        self._closed = False
        self.clock = clock
        self.since = 0.0
        self.size = 0

    def take(self, size: int) -> bool:
        """Count `size` more bytes, if need be by ending other uploads. False if they do not fit."""
        if self._closed:
            return True  # the rest of the body is discarded
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
        """The body is complete: from now on it is held until the request is answered."""
        self._budget.uploads.discard(self)

    def end(self) -> None:
        """End the upload, to make room."""
        if self._give_up is not None:
            self._give_up()
        self.close()

    def close(self) -> None:
        """Release the body's bytes. A second call does nothing."""
        if not self._closed:
            self._closed = True
            self._give_up = None
            self._budget.uploads.discard(self)
            self._budget.used -= self.size
