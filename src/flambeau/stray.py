"""What is written to standard error past the log: by workers, by libraries in C, by Python itself on its way out.

Where the log is JSON, none of it may stand between the objects, nor look like one: standard error becomes a pipe, and
every line that comes through it an event of its own. So text of a client that a model prints cannot forge an event.
"""

import atexit
import os
import sys
import threading
from typing import TextIO

from flambeau import logs

_LONGEST_LINE = 2000  # bytes; a longer one becomes several
_LAST_WORDS_SECONDS = 1.0


def begin_log(level: str, form: str) -> None:
    """Begin the log of this process, `form` being `auto`, `text` or `json`."""
    logs.configure(level, form)
    if logs.in_json():
        logs.configure(level, "json", stream=_divert())


def _divert() -> TextIO:
    """Put a pipe in the place of standard error. Returns what was there."""
    real = os.dup(2)
    reading, writing = os.pipe()
    sys.stderr.flush()
    os.dup2(writing, 2)  # inherited by every process that is started from now on
    os.close(writing)
    reader = threading.Thread(target=_listen, args=(reading,), name="stray-output", daemon=True)
    reader.start()

    def restore() -> None:
        sys.stderr.flush()
        os.dup2(real, 2)
        reader.join(_LAST_WORDS_SECONDS)  # until the pipe is empty and nobody holds its other end

    atexit.register(restore)
    return open(os.dup(real), "w", encoding="utf-8", errors="backslashreplace")  # as long as the process


def _listen(descriptor: int) -> None:
    with open(descriptor, "rb") as lines:
        while line := lines.readline(_LONGEST_LINE):
            if text := line.decode("utf-8", "backslashreplace").rstrip():
                logs.event("output", text=text)
