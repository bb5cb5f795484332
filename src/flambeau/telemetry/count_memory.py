"""Where one process counts so that its counts outlive it: numbers in a memory that another process maps as well.

A front that is killed (kill -9) says nothing any more; its supervisor reads here what it had counted, to the last
answer. There are two parts: the numbers, and a directory that says what each of them counts. One process writes. What
does not fit is counted in that process's own memory, and is lost with it: there is room for some five hundred versions
of models. It knows no metric by name.
"""

import mmap
import os
import threading
from collections.abc import Iterator, Sequence

import msgspec

from flambeau.system import memory_file
from flambeau.telemetry.counting import Cells, CountedMetric

_NUMBERS, _DIRECTORY = 4 << 20, 12 << 20  # bytes of the two parts
_SIZE = 8  # bytes of a number
_DECODER = msgspec.msgpack.Decoder(tuple[CountedMetric, tuple[str, ...]])


def create() -> int:
    """A descriptor of such a memory, in which nothing is counted yet."""
    return memory_file.create("flambeau-counts", _NUMBERS + _DIRECTORY)


class CountMemory:
    """The memory as the process that counts maps it, or the one that reads afterwards."""

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, _NUMBERS + _DIRECTORY)
        whole = memoryview(self._map)
        self._integers, self._floats = whole[:_NUMBERS].cast("q"), whole[:_NUMBERS].cast("d")
        self._directory = whole[_NUMBERS:]
        self._free = 1  # the first number is how many bytes of the directory are written
        self._lock = threading.Lock()

    def take(self, family: CountedMetric, labels: tuple[str, ...]) -> tuple[Cells[int], Cells[float]]:
        """Room for the numbers of one series: whole ones, and one with a fraction. All are 0. For any thread."""
        entry = msgspec.msgpack.encode((family, labels))
        with self._lock:
            at, used = self._free, self._integers[0]
            end = used + 4 + len(entry)
            if at + family.width + 1 > _NUMBERS // _SIZE or end > len(self._directory):
                return [0] * family.width, [0.0]
            self._directory[used:end] = len(entry).to_bytes(4) + entry
            self._integers[0] = end  # from now on the entry counts: whoever reads finds it whole or not at all
            self._free = at + family.width + 1
        return self._integers[at : at + family.width], self._floats[at + family.width : at + family.width + 1]

    def series(self) -> Iterator[tuple[CountedMetric, tuple[str, ...], Sequence[int], float]]:
        """All that was counted: of each series the whole numbers, and the one with a fraction."""
        read, at = 0, 1
        while read < self._integers[0]:
            size = int.from_bytes(self._directory[read : read + 4])
            family, labels = _DECODER.decode(self._directory[read + 4 : read + 4 + size])
            end = at + family.width
            yield family, labels, self._integers[at:end].tolist(), self._floats[end]
            read, at = read + 4 + size, end + 1


def read(descriptor: int) -> list[tuple[CountedMetric, tuple[str, ...], Sequence[int], float]]:
    """What was counted in a memory, by a process that may have ended. The descriptor is closed."""
    found = [*CountMemory(descriptor).series()]
    os.close(descriptor)
    return found
