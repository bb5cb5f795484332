"""Waits for the end of a process, and then kills its own process group: `python -I -S group_end.py DESCRIPTOR`.

The descriptor is a pidfd. It imports little, because one such process waits beside each worker that runs others' code.
"""

import contextlib
import os
import select
import signal
import sys


def main() -> None:
    """Wait, and end with the group."""
    process = int(sys.argv[1])
    for name in os.listdir("/proc/self/fd"):  # a socket held open here would hide its end from the other side
        if int(name) != process:
            with contextlib.suppress(OSError):  # that of the listing is closed already
                os.close(int(name))
    ending = select.poll()
    ending.register(process, select.POLLIN)
    ending.poll()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
