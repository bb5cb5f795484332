"""Writes log lines to standard error, which may be closed, full, or have a reader that does not read.

Logging never waits. A `LogWriter` holds a bounded number of lines, and a thread of its own writes them, in blocks;
lines that it cannot hold or write are dropped and counted, and one line in their place says how many there were. It
also takes events, which that thread turns into lines. A `LogChannel` sends
a worker's lines to the writer in its front. They know no levels and no formats.
"""

import contextlib
import os
import queue
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

_MOST_LINES, _MOST_BYTES = 16384, 4 * 1024 * 1024
_CHUNK = 65536  # bytes written at once
_PAUSE = 0.005  # seconds after a block, in which others gather: to be woken for each line costs as much as the line
_EVENT_BYTES = 256  # what an event counts for
_AGAIN_SECONDS = 2.0  # until the next attempt to report lost lines
_READY_SECONDS = 1.0  # to wait for a descriptor that somebody else made non-blocking
_LARGEST_MESSAGE = 65536  # bytes of a worker's event
_LOST = b"\0"  # begins a message with the number of lost lines; no line contains it


class LineSink(Protocol):
    """A destination of log lines. It neither waits nor raises."""

    dropped: int
    """The number of lines lost so far."""

    def put(self, data: bytes) -> None:
        """Take complete lines, with their line ends."""

    def full(self) -> bool:
        """Whether a line put now would be dropped, so that it need not be formatted."""

    def lose(self, lines: int) -> None:
        """Count lines that were lost before they reached the sink."""

    def flush(self, seconds: float) -> bool:
        """Wait for at most `seconds` until every line put so far is written or lost. Returns whether that is so."""


class LogEvent(NamedTuple):
    """An event that is not a line yet. `created` is a time of `time.time()`; `pairs` are plain values."""

    created: float
    message: str
    pairs: Mapping[str, object]


class LogWriter:
    """A sink that writes lines to a descriptor, in the order of `put`, from any thread. It does not own the descriptor.

    Example: 16,384 lines wait because nobody reads the pipe, so the next 100 are dropped. Once the reader has taken
    half of the waiting lines, new lines are accepted again; the first comes after the line that `gap(100)` makes.
    """

    def __init__(
        self,
        descriptor: int,
        gap: Callable[[int], bytes],
        rendered: Callable[[LogEvent], bytes],
        *,
        most_lines: int = _MOST_LINES,
        most_bytes: int = _MOST_BYTES,
    ) -> None:
        """`gap` makes the line that says how many were dropped, `rendered` that of an event; neither raises.

        Waiting lines are bounded in number and in bytes.
        """
        self._descriptor = descriptor
        self._gap = gap
        self._rendered = rendered
        self._most_lines, self._most_bytes = most_lines, most_bytes
        self.dropped = 0
        self._begin()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin)  # a child has neither the thread nor the waiting lines

    def _begin(self) -> None:
        self._lock = threading.RLock()  # a finaliser may log while the same thread is in `put`
        self._queue: queue.SimpleQueue[bytes | int | LogEvent | threading.Event] = (
            queue.SimpleQueue()
        )  # an int is a gap
        self._thread: threading.Thread | None = None
        self._taken_lines = self._taken_bytes = 0  # ever
        self._done_lines = self._done_bytes = 0  # of these, written or lost; only the thread counts them
        self._full = False
        self._refused = 0  # dropped lines that no gap in the queue stands for yet
        self._failed = 0  # lines that could not be written and are not reported yet; only the thread uses it
        self._cut = False  # whether the last write ended within a line; only the thread uses it

    def put(self, data: bytes) -> None:
        self._take(data, len(data))

    def put_event(self, event: LogEvent) -> None:
        """Take an event, which becomes a line when it is written."""
        with self._lock:
            if (
                not self._full
                and not self._refused
                and self._taken_lines - self._done_lines < self._most_lines
                and self._taken_bytes - self._done_bytes + _EVENT_BYTES <= self._most_bytes
                and self._thread is not None
            ):  # nearly always
                self._taken_lines += 1
                self._taken_bytes += _EVENT_BYTES
                self._queue.put(event)
                return
        self._take(event, _EVENT_BYTES)

    def _take(self, entry: bytes | LogEvent, size: int) -> None:
        with self._lock:
            if not self._has_room(size):
                self._refuse(_lines(entry) if isinstance(entry, bytes) else 1)
                return
            if self._refused:
                self._queue.put(self._refused)
                self._refused = 0
            self._taken_lines += 1
            self._taken_bytes += size
            self._queue.put(entry)
            if self._thread is None:
                self._start()

    def full(self) -> bool:
        return self._full and not self._has_room(0)

    def lose(self, lines: int) -> None:
        with self._lock:
            self._refuse(lines)
            if self._queue.empty():  # wake the thread; if it waits for a reader, it will look afterwards anyway
                self._queue.put(0)
                self._start()

    def flush(self, seconds: float) -> bool:
        done = threading.Event()
        with self._lock:
            self._queue.put(done)
            self._start()
        return done.wait(seconds)

    def _has_room(self, size: int) -> bool:
        """Whether there is room. Once full, there is none until half is free, so that one gap does not become many."""
        lines = self._taken_lines - self._done_lines
        held = self._taken_bytes - self._done_bytes + size
        if self._full:
            self._full = lines > self._most_lines // 2 or held > self._most_bytes // 2
        else:
            self._full = lines >= self._most_lines or held > self._most_bytes
        return not self._full

    def _refuse(self, lines: int) -> None:
        self.dropped += lines
        self._refused += lines

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="log-writer", daemon=True)
            with contextlib.suppress(RuntimeError):  # the interpreter is shutting down: nothing is written any more
                self._thread.start()

    def _work(self) -> None:
        while True:
            lines, asked = self._collect()
            if self._queue.empty():  # report dropped lines now: nobody may log for a long time
                with self._lock:
                    refused, self._refused = self._refused, 0
                lines.append(refused)
            self._write(lines)
            if asked is not None:
                asked.set()
            else:
                time.sleep(_PAUSE)

    def _collect(self) -> tuple[list[bytes | int | LogEvent], threading.Event | None]:
        """The waiting lines, up to a chunk, and the event to set once they are done."""
        lines: list[bytes | int | LogEvent] = []
        size = 0
        while size < _CHUNK and not (lines and self._queue.empty()):
            try:
                each = self._queue.get(timeout=_AGAIN_SECONDS if self._failed else None)
            except queue.Empty:
                break
            if isinstance(each, threading.Event):
                return lines, each
            lines.append(each)
            size += len(each) if isinstance(each, bytes) else _EVENT_BYTES
        return lines, None

    def _write(self, lines: list[bytes | int | LogEvent]) -> None:
        """Write lines and gaps. Lines that cannot be written are lost, and reported before the next written line."""
        told, self._failed = self._failed, 0
        parts: list[tuple[bytes, int, int]] = []  # bytes, the lines that a gap stands for, and what a line counts for
        for each in lines:
            if isinstance(each, int):
                told += each
                continue
            if told:
                parts.append((self._gap(told), told, 0))
                told = 0
            if isinstance(each, bytes):
                parts.append((each, 0, len(each)))
            else:
                parts.append((self._rendered(each), 0, _EVENT_BYTES))
        if told:
            parts.append((self._gap(told), told, 0))
        if not parts:
            return
        data = b"".join([part for part, _, _ in parts])
        left = len(data) - self._send(data)
        for part, gap, own in reversed(parts) if left > 0 else ():
            if left <= 0:
                break
            left -= len(part)
            lost = _lines(part) if own else 0
            self._failed += lost + gap
            with self._lock:
                self.dropped += lost
        self._done_lines += sum(own > 0 for _, _, own in parts)
        self._done_bytes += sum(own for _, _, own in parts)

    def _send(self, data: bytes) -> int:
        """Write, and return how many bytes were written before an error, if there was one."""
        written = 0
        with contextlib.suppress(OSError):
            if self._cut:
                os.write(self._descriptor, b"\n")
                self._cut = False
            while written < len(data):
                try:
                    written += os.write(self._descriptor, data[written:] if written else data)
                except BlockingIOError:
                    _wait_for(self._descriptor)
        if 0 < written < len(data):
            self._cut = data[written - 1 : written] != b"\n"
        return written


class LogChannel:
    """A sink over a socket that keeps message boundaries. It sends a line at once, or drops it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._untold = 0
        self.dropped = 0

    def put(self, data: bytes) -> None:
        try:
            if self._untold:
                self._sock.send(_LOST + str(self._untold).encode())
                self._untold = 0
            self._sock.send(data if len(data) <= _LARGEST_MESSAGE else data[: _LARGEST_MESSAGE - 1] + b"\n")
        except OSError:  # the front does not read, or is gone
            self.lose(_lines(data))

    def full(self) -> bool:
        return False

    def lose(self, lines: int) -> None:
        self.dropped += lines
        self._untold += lines

    def flush(self, seconds: float) -> bool:
        return True


def channel() -> tuple[socket.socket, socket.socket]:
    """The ends of a channel: the receiving one, and the one for a `LogChannel`."""
    if not hasattr(socket, "AF_UNIX"):  # Windows, where no worker process sends anything
        return socket.socketpair()
    try:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError:  # macOS has SEQPACKET for other families only
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)


def pass_on(receiving: socket.socket, sink: LineSink) -> None:
    """Pass a channel's messages to a sink, until an empty message comes or all sending ends are closed."""
    while message := receiving.recv(_LARGEST_MESSAGE):
        if not message.startswith(_LOST):
            sink.put(message)
        elif message[1:].isdigit():
            sink.lose(int(message[1:]))


def _wait_for(descriptor: int) -> None:
    """Return when the descriptor can be written to, or a second later."""
    ready = select.poll()
    ready.register(descriptor, select.POLLOUT)
    ready.poll(1000 * _READY_SECONDS)


def _lines(data: bytes) -> int:
    """The number of lines; a part of a line counts as one."""
    return max(1, data.count(b"\n"))
