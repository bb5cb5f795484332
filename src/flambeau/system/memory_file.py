"""Memory that several processes map, and that outlives each of them: a file without a name."""

import errno
import os
import tempfile

from flambeau.errors import SetupError


def create(name: str, size: int) -> int:
    """A descriptor of `size` bytes, all zero. Pages are taken as they are written to. `name` is for debugging.

    Raises `SetupError` where no file may grow so large.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create(name)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.ftruncate(descriptor, size)
    except OSError as error:
        os.close(descriptor)
        if error.errno != errno.EFBIG:
            raise
        raise SetupError(
            f"the limit on the size of files is below the {size:,} bytes of memory that processes share: raise it "
            "(ulimit -f, LimitFSIZE= of systemd)"
        ) from error
    return descriptor
