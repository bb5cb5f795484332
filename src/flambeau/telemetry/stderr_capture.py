"""The log of a service, and the capture of whatever workers, models and C libraries print past it.

Standard output and standard error become a pipe that a thread always empties, so that printing never waits for a reader
of the log. In a JSON log, every captured line becomes an event of its own: text from a client that a model prints
cannot forge an event. In a text log, lines are passed on unchanged. The events of workers come by a channel.
"""

import atexit
import contextlib
import functools
import io
import os
import select
import socket
import sys
import threading
from typing import TYPE_CHECKING

from flambeau.telemetry import logs
from flambeau.telemetry.log_writer import LogWriter, channel, pass_on

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_LONGEST_LINE = 2000  # bytes; a longer one becomes several
_CHUNK = 65536
_PIPE_BYTES = 1024 * 1024  # room for what others print while our thread does not run
_REST_OF_A_LINE_SECONDS = 0.05
_LAST_WORDS_SECONDS = 1.0  # to read the last output and events of other processes
_LAST_LINES_SECONDS = 2.0  # for the log's reader to take the last lines


def forgive(*, output: bool = False) -> None:
    """From now on, printing never fails because standard error cannot be written to or was closed at the start.

    `output`: the same for standard output, in processes where it is only a log. Printing may still have to wait; in a
    service it does not, see `begin_log`.
    """
    sys.stderr = _text(_Forgiving(2))
    if output or sys.stdout is None:
        sys.stdout = _text(_Forgiving(1))


def _text(raw: io.RawIOBase) -> io.TextIOWrapper:
    encoding = getattr(sys.stderr, "encoding", "utf-8")
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=True)


def begin_log(level: str, form: str) -> int:
    """Begin the log of this process in the form `auto`, `text` or `json`. Neither logging nor printing ever waits.

    Returns a descriptor of the former standard output; -1 if that was closed.
    """
    as_json = logs.is_json(form, sys.stderr)
    _flush()
    output, real = (-1 if each is None else os.dup(each.fileno()) for each in (sys.__stdout__, sys.__stderr__))
    gap, rendered = (functools.partial(each, as_json=as_json) for each in (logs.gap_line, logs.rendered))
    writer = LogWriter(real, gap, rendered)
    receiving, sending = channel()
    logs.send_to(writer, level, as_json=as_json, descriptor=sending.fileno())
    pipe = _divert()
    threads = [
        threading.Thread(target=_tell if as_json else _copy, args=(pipe, writer), name="stray-output", daemon=True),
        threading.Thread(target=pass_on, args=(receiving, writer), name="workers-events", daemon=True),
    ]
    for each in threads:
        each.start()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a model's output is read as it comes
    if not as_json:  # keep what this process prints in order with its events
        sys.stderr = _text(_Direct(writer, real >= 0 and os.isatty(real)))
    atexit.register(_restore, real, writer, sending, threads)
    return output


def _flush() -> None:
    for each in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            each.flush()


def _divert() -> int:
    """Replace standard output and standard error by a pipe. Returns its reading end."""
    reading, writing = os.pipe()
    with contextlib.suppress(ImportError, AttributeError, OSError):  # another system, or above this user's limit
        import fcntl

        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    for each in (1, 2):  # every process started from now on inherits them
        os.dup2(writing, each)
    os.close(writing)
    return reading


def _restore(real: int, writer: LogWriter, sending: socket.socket, threads: list[threading.Thread]) -> None:
    """Write what is left, and give up on a reader that does not take it."""
    _flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for each in (1, 2):
        os.dup2(nowhere, each)
    with contextlib.suppress(OSError):
        sending.send(b"")  # the last message
    for thread in threads:  # until the pipe is empty and nobody holds its other end
        thread.join(_LAST_WORDS_SECONDS)
    if writer.flush(_LAST_LINES_SECONDS) and real >= 0:
        os.dup2(real, 2)
    forgive()


def _tell(pipe: int, writer: LogWriter) -> None:
    """Turn the pipe's lines into events."""
    with open(pipe, "rb") as lines:
        while line := lines.readline(_LONGEST_LINE):
            if writer.full():
                writer.lose(1)
            elif text := line.decode("utf-8", "backslashreplace").rstrip():
                logs.event("output", text=text)


def _copy(pipe: int, writer: LogWriter) -> None:
    """Pass on the pipe's contents, in whole lines if the rest of a line comes soon."""
    rest = b""
    while True:
        if rest and not select.select((pipe,), (), (), _REST_OF_A_LINE_SECONDS)[0]:
            writer.put(rest)
            rest = b""
        if not (data := os.read(pipe, _CHUNK)):
            break
        lines, end, rest = (rest + data).rpartition(b"\n")
        if end:
            writer.put(lines + end)
        if len(rest) >= _CHUNK:
            writer.put(rest)
            rest = b""
    if rest:
        writer.put(rest)


class _Forgiving(io.RawIOBase):
    """A standard stream that drops what cannot be written: it may be full, closed or without a reader."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def write(self, data: "ReadableBuffer", /) -> int:
        copied = bytes(data)
        with contextlib.suppress(OSError):
            return os.write(self._descriptor, copied)
        return len(copied)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)


class _Direct(_Forgiving):
    """Standard error of this process itself, straight to the log writer."""

    def __init__(self, writer: LogWriter, terminal: bool) -> None:
        super().__init__(2)
        self._writer = writer
        self._terminal = terminal

    def write(self, data: "ReadableBuffer", /) -> int:
        copied = bytes(data)
        self._writer.put(copied)
        return len(copied)

    def isatty(self) -> bool:
        return self._terminal
