"""Memory that a front and one worker map both: the payloads of the worker's batch, put there by the front.

A worker has one batch at a time, so payloads begin at the arena's first byte and the next batch takes the place of the
last. The memory belongs to one worker process: it has no name, its pages hold only what this worker was sent, and it is
gone when both are, however they end. The front writes and never reads, so nothing that a worker does to it reaches the
front. It knows no frame and no process.
"""

import errno
import mmap
import os
import sys

SIZE = 8 * 1024 * 1024
"""Bytes of an arena. It takes memory for as much of it as was ever used."""


class Arena:
    """One arena. `descriptor` is the memory's, to be passed to the worker; -1 once it is closed."""

    def __init__(self) -> None:
        """Raises `OSError` if the system gives none."""
        self.descriptor = os.memfd_create("flambeau-payloads", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, SIZE)
            _seal(self.descriptor)  # a worker that cut it off would end the front at its next write
            self._memory = mmap.mmap(self.descriptor, SIZE)
        except BaseException:
            os.close(self.descriptor)
            raise

    def write(self, place: int, data: bytes | bytearray | memoryview) -> None:
        """Copy bytes to that place."""
        self._memory[place : place + len(data)] = data

    def close(self) -> None:
        """Give up the front's part. A second call does nothing."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            self._memory.close()


def opened() -> Arena | None:
    """A new arena; `None` where payloads have to take the socket. Raises `OSError`.

    That is on a system that has no such memory, and where no file may grow to an arena's size (`ulimit -f`).
    """
    if sys.platform != "linux":
        return None
    try:
        return Arena()
    except OSError as error:
        if error.errno == errno.EFBIG:
            return None
        raise


def mapped(descriptor: int) -> memoryview:
    """The arena in the worker's process. The descriptor is closed."""
    try:
        return memoryview(mmap.mmap(descriptor, SIZE))
    finally:
        os.close(descriptor)


def _seal(descriptor: int) -> None:
    """Let nobody change the memory's length, nor undo this."""
    import fcntl

    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
