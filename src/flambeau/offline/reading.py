"""Finds entries in a thread, and reads files into memory: slow input, kept away from the loop.

The thread finds entries and measures their files ahead of the loop, within bounds. A list on standard input may come
slowly: entries are passed on at once, and a list that never ends does not keep the process from ending.
"""

import asyncio
import contextlib
import os
import stat
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from flambeau.errors import RequestError
from flambeau.offline.entries import LARGEST, InputEntry, bad_input
from flambeau.types import Payload

_BYTES_OF_A_CHUNK = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some entries, and the bytes that their contents will take in memory."""

    entries: list[InputEntry]
    size: int


class EntrySource:
    """The entries of an iterable, found by a daemon thread. The public methods run on the loop."""

    def __init__(self, entries: Iterable[InputEntry], *, ahead: int) -> None:
        """At most `ahead` entries wait, with not many more bytes than one chunk may have."""
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._ahead = ahead
        self._changed = threading.Condition()  # guards the attributes below
        self._waiting: deque[tuple[InputEntry, int]] = deque()
        self._bytes = 0
        self._ended = False
        self._failure: BaseException | None = None
        threading.Thread(target=self._look, args=(entries,), name="look", daemon=True).start()

    async def take(self, most: int) -> Chunk:
        """The next entries, as soon as there is one: at most `most`, fewer if they are large; none at the end.

        Raises whatever the iteration raised.
        """
        chunk = None
        while chunk is None:
            await self._arrived.wait()
            chunk = self._grab(most)
        if not chunk.entries and self._failure is not None:
            raise self._failure
        return chunk

    def _grab(self, most: int) -> Chunk | None:
        """The entries that are there now, or `None` if there are none yet."""
        taken: list[InputEntry] = []
        size = 0
        with self._changed:
            while self._waiting and len(taken) < most and size < _BYTES_OF_A_CHUNK:
                entry, more = self._waiting.popleft()
                taken.append(entry)
                size += more
            self._bytes -= size
            if not self._waiting and not self._ended:
                self._arrived.clear()
            self._changed.notify()
            return Chunk(taken, size) if taken or self._ended else None

    def _look(self, entries: Iterable[InputEntry]) -> None:
        try:
            for entry in entries:
                measured, size = _measure(entry)
                with self._changed:
                    while len(self._waiting) >= self._ahead or self._bytes >= _BYTES_OF_A_CHUNK:
                        self._changed.wait()
                    self._waiting.append((measured, size))
                    self._bytes += size
                    first = len(self._waiting) == 1
                if first:
                    self._tell()
        except BaseException as error:
            self._failure = error
        with self._changed:
            self._ended = True
        self._tell()

    def _tell(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants entries any more
            self._loop.call_soon_threadsafe(self._arrived.set)


def _measure(entry: InputEntry) -> tuple[InputEntry, int]:
    """The entry with its size in bytes; with an error and 0 if it will not be read."""
    if isinstance(entry.content, RequestError):
        return entry, 0
    if isinstance(entry.content, Payload):
        return entry, entry.content.size
    try:
        found = entry.content.stat()
    except (OSError, ValueError) as error:
        return InputEntry(entry.name, _unreadable(error)), 0
    if not stat.S_ISREG(found.st_mode):  # reading a pipe or a device could wait for ever
        return InputEntry(entry.name, bad_input("this is not a regular file")), 0
    if found.st_size > LARGEST:
        too_large = bad_input(f"the file has {found.st_size} bytes: the most is {LARGEST}", "body_too_large")
        return InputEntry(entry.name, too_large), 0
    return entry, found.st_size


def read(entries: list[InputEntry]) -> list[Payload | RequestError]:
    """The contents of each entry, or its error. Blocks."""
    return [_contents(entry) for entry in entries]


def _contents(entry: InputEntry) -> Payload | RequestError:
    if isinstance(entry.content, Payload | RequestError):
        return entry.content
    try:
        with entry.content.open("rb", buffering=0) as file:
            data = file.readall()
    except OSError as error:
        return _unreadable(error)
    return Payload("file", data) if data else bad_input("the file is empty", "empty_body")


def _unreadable(error: Exception) -> RequestError:
    if isinstance(error, FileNotFoundError):
        return bad_input("there is no such file", "missing_file")
    reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    return bad_input(f"the file cannot be read: {reason}", "missing_file")
