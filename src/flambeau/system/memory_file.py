"""Memory that several processes map, and that outlives each of them: a file without a name."""

import os
import tempfile


def create(name: str, size: int) -> int:
    """A descriptor of `size` bytes, all zero. Pages are taken as they are written to. `name` is for debugging."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create(name)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
