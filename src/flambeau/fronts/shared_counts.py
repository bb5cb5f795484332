"""Counts that all fronts of a service share: bytes in flight, and the rates of clients.

They lie in one memory that every front maps. Each number has one writer, the front whose it is, and the others only add
it up: so nobody waits for a lock, least of all for one that a dead or stopped front holds. Two fronts that admit
something in the same microsecond may both see room for it: a limit can be exceeded by as much as each front admits at
once, one request or one piece of a body.
"""

import hashlib
import math
import mmap
import os
import time

from flambeau.http.access import Rate
from flambeau.http.request_body import InflightBudget
from flambeau.settings.service import Settings
from flambeau.system import memory_file

_KEYS = 8192
"""Keys of clients that a front holds for each limit. A power of two."""

_PROBES = 16  # places in which a key may lie
_ROW = 4  # numbers of a key: its hash, its window, and what was counted in this window and in the one before
_TABLE = (_KEYS + 1) * _ROW  # the last row is that of all keys for which there was no place
_OTHERS = 1  # the hash of that row
_SIZE = 8  # bytes of a number
_TABLES = 2
_SECRET = 16  # bytes, at the end


def _numbers(fronts: int) -> int:
    return fronts * (1 + _TABLES * _TABLE)


class SharedCounts:
    """The memory, as one process maps it."""

    def __init__(self, descriptor: int, *, fronts: int, number: int) -> None:
        """`number`: the front whose counts this process writes, from 1; 0 for the supervisor, which writes none."""
        self._map = mmap.mmap(descriptor, _numbers(fronts) * _SIZE + _SECRET)
        self.numbers = memoryview(self._map)[: _numbers(fronts) * _SIZE].cast("q")
        self.secret = bytes(self._map[-_SECRET:])
        self.fronts = fronts
        self.own = number - 1

    def table(self, which: int) -> list[int]:
        """Where the rows of each front begin, for one of the limits on rates."""
        return [self.fronts + (which * self.fronts + front) * _TABLE for front in range(self.fronts)]

    def forget(self, number: int) -> None:
        """The front is gone, and the bodies that it held with it."""
        self.numbers[number - 1] = 0


def create(fronts: int) -> int:
    """A descriptor of such a memory, all zero but for its secret. Its pages are taken as they are written to."""
    size = _numbers(fronts) * _SIZE + _SECRET
    descriptor = memory_file.create("flambeau-fronts", size)
    os.pwrite(descriptor, os.urandom(_SECRET), size - _SECRET)
    return descriptor


class SharedBudget(InflightBudget):
    """The bytes of all bodies at all fronts. When they reach the limit, a front ends only uploads of its own."""

    def __init__(self, settings: Settings, counts: SharedCounts, *, most: int) -> None:
        """`most`: the limit for the whole service, in bytes."""
        self._counts = counts
        self._most = most
        super().__init__(settings)
        self._most = most

    @property
    def most(self) -> int:
        """What this front may hold now: the limit, less what the others hold."""
        counts = self._counts
        return self._most - sum(counts.numbers[: counts.fronts]) + counts.numbers[counts.own]

    @most.setter
    def most(self, value: int) -> None:
        self._most = value

    @property
    def used(self) -> int:
        """What this front holds."""
        return self._counts.numbers[self._counts.own]

    @used.setter
    def used(self, value: int) -> None:
        self._counts.numbers[self._counts.own] = value


class SharedRate:
    """A limit on the rate of each key over all fronts, by a sliding window: this one, and a part of the one before.

    Example: 100 a minute, of which 80 were used in the last full minute. A quarter into this one, three quarters of
    them still count: there is room for 40.
    """

    def __init__(self, counts: SharedCounts, which: int, *, most: int, period: float) -> None:
        """`which` of the limits on rates it is: each has its own rows. `period` is in seconds."""
        self.most = most
        self._period = period
        self._numbers, self._secret = counts.numbers, counts.secret
        self._tables = counts.table(which)
        self._own = self._tables[counts.own]

    def take(self, key: str, items: int = 1) -> int:
        """As `Rate.take`: 0 if they may go on, else the seconds until the key may try again."""
        now = time.time()
        window, passed = divmod(now, self._period)
        hashed = _OTHERS + 1 + int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7, key=self._secret).digest())
        row = self._row(hashed, int(window))
        if row is None:
            hashed, row = _OTHERS, self._own + _KEYS * _ROW
        before = current = 0
        for table in self._tables:
            place = table + _KEYS * _ROW if hashed == _OTHERS else self._find(table, hashed)
            if place is not None:
                counted = self._counted(place, int(window))
                before, current = before + counted[0], current + counted[1]
        left = 1 - passed / self._period
        if before * left + current + items > self.most:
            return self._wait(before, current, items, left)
        own_before, own = self._counted(row, int(window))
        numbers = self._numbers
        numbers[row + 3] = own_before
        numbers[row + 2] = own + items
        numbers[row + 1] = int(window)
        numbers[row] = hashed
        return 0

    def note(self, key: str) -> int:
        """As `Attempts.note`: count one, and return 0 while there are few."""
        return self.take(key)

    def _counted(self, row: int, window: int) -> tuple[int, int]:
        """What a row counts in the window before, and in this one."""
        numbers = self._numbers
        behind = window - numbers[row + 1]
        if behind == 0:
            return numbers[row + 3], numbers[row + 2]
        return (numbers[row + 2], 0) if behind == 1 else (0, 0)

    def _find(self, table: int, hashed: int) -> int | None:
        numbers = self._numbers
        for step in range(_PROBES):
            row = table + (hashed + step) % _KEYS * _ROW
            found = numbers[row]
            if found == hashed:
                return row
            if found == 0:
                return None
        return None

    def _row(self, hashed: int, window: int) -> int | None:
        """This front's row for a key: its own, or one that nobody needs any more; `None` if there is none."""
        numbers, free = self._numbers, None
        for step in range(_PROBES):
            row = self._own + (hashed + step) % _KEYS * _ROW
            found = numbers[row]
            if found == hashed:
                return row
            if free is None and (found == 0 or numbers[row + 1] < window - 1):
                free = row
            if found == 0:
                break
        return free

    def _wait(self, before: int, current: int, items: int, left: float) -> int:
        """The seconds until so many items fit."""
        room = max(0, self.most - items)
        if current <= room:
            seconds = (left - (room - current) / before) * self._period
        else:
            seconds = (left + 1 - room / current) * self._period
        return max(1, math.ceil(seconds))


def shared_rate(text: str, counts: SharedCounts) -> SharedRate:
    """The limit of --rate-limit. Raises `ConfigError`."""
    rate = Rate(text)
    return SharedRate(counts, 0, most=rate.most, period=rate.period)
