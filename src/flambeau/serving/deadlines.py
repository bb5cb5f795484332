"""Deadlines of many entries with few timers: most entries are answered long before theirs, and need none.

An entry waits in the bucket of the quarter of a second in which its deadline lies. When that begins, what is left in
the bucket gets timers of its own, so that a deadline is kept as exactly as the loop can. It knows no queue.
"""

import asyncio
from collections.abc import Callable

from flambeau.serving.entries import Entry

_WIDTH = 0.25  # seconds


class Deadlines:
    """Calls `expire` with every entry whose deadline passes before it is removed. On the loop."""

    def __init__(self, expire: Callable[[Entry], None]) -> None:
        self._expire = expire
        self._buckets: dict[int, set[Entry]] = {}  # by the beginning of their time, in widths
        self._near: dict[Entry, asyncio.TimerHandle] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._next = 0  # the bucket that the timer waits for

    def add(self, entry: Entry) -> None:
        """Watch an entry's deadline."""
        number = int(entry.deadline / _WIDTH)
        bucket = self._buckets.get(number)
        if bucket is not None:
            bucket.add(entry)
            return
        loop = asyncio.get_running_loop()
        if number * _WIDTH <= loop.time():
            self._near[entry] = loop.call_at(entry.deadline, self._passed, entry)
            return
        self._buckets[number] = {entry}
        if self._timer is None or number < self._next:
            self._wait_for(number)

    def remove(self, entry: Entry) -> None:
        """Watch it no longer. One that is not watched is ignored."""
        bucket = self._buckets.get(int(entry.deadline / _WIDTH))
        if bucket is not None and entry in bucket:
            bucket.remove(entry)
        elif (timer := self._near.pop(entry, None)) is not None:
            timer.cancel()

    def _wait_for(self, number: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = number
        self._timer = asyncio.get_running_loop().call_at(number * _WIDTH, self._begin)

    def _begin(self) -> None:
        """The time of the next bucket begins."""
        self._timer = None
        loop = asyncio.get_running_loop()
        for entry in self._buckets.pop(self._next, ()):
            self._near[entry] = loop.call_at(entry.deadline, self._passed, entry)
        if self._buckets:
            self._wait_for(min(self._buckets))

    def _passed(self, entry: Entry) -> None:
        self._near.pop(entry, None)
        self._expire(entry)
