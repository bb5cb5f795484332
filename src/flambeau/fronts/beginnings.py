"""How the process of a front begins: forked where that is safe, else spawned.

When a service starts, its first fronts are forked from the supervisor, which has imported what they need: they share
that memory, and need not import it again. It has no loop then, and no threads but those of its log, whose parts of a
front are made anew. A front that is started later is spawned, because by then the supervisor has threads for others.
What a front does is in `flambeau.fronts.front`; nothing here knows it.
"""

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from flambeau.system.process import give_memory_back, spawn_child
from flambeau.telemetry import logs, stderr_capture
from flambeau.telemetry.log_writer import channel

Live = Callable[[socket.socket, socket.socket], None]
"""The life of a front, with its ends of the two sockets."""


class Child(Protocol):
    """A child process, as `subprocess.Popen` has it."""

    pid: int

    def wait(self) -> int:
        """Return its code when it has ended; by one thread."""
        ...

    def send_signal(self, sig: int) -> None:
        """Send it a signal; once it is reaped, do nothing."""
        ...


class Beginning(NamedTuple):
    """A process that waits for its order, and the supervisor's ends of its sockets."""

    process: Child
    control: socket.socket
    arrivals: socket.socket


def can_fork() -> bool:
    """Whether `forked` works here."""
    return sys.platform == "linux"


def spawned(descriptors: Iterable[int]) -> Beginning:
    """Start a front's process as a fresh interpreter, which gets these descriptors. Raises `OSError`."""
    control, theirs = socket.socketpair()
    arrivals, their_arrivals = channel()
    with theirs, their_arrivals:
        # On the loop's own thread, not in a pool: the front learns of the end of the thread that spawned it.
        process = spawn_child(
            "flambeau.fronts.front",
            str(theirs.fileno()),
            str(their_arrivals.fileno()),
            environment=os.environ,
            stdout=None if sys.stdout is not None else subprocess.DEVNULL,
            pass_fds=[theirs.fileno(), their_arrivals.fileno(), *descriptors],
            warnings=True,
        )
    return Beginning(process, control, arrivals)


def forked(descriptors: Iterable[int], live: Live) -> Beginning:
    """Fork a front's process, which has these descriptors and no others. Call it before there is a loop.

    Raises `OSError`.
    """
    control, theirs = socket.socketpair()
    arrivals, their_arrivals = channel()
    gc.collect()
    give_memory_back()
    gc.freeze()  # a collection would write to all that is shared
    with theirs, their_arrivals:
        try:
            with warnings.catch_warnings():  # Python 3.12 warns of the log's threads, and might raise after the fork
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
        except OSError:
            control.close()
            arrivals.close()
            raise
        if not pid:
            _live_as_child(live, theirs, their_arrivals, {*descriptors})
    return Beginning(_Forked(pid), control, arrivals)


def _live_as_child(live: Live, control: socket.socket, arrivals: socket.socket, descriptors: set[int]) -> None:
    """Become what a spawned front is at its start, and live. Never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        _keep_only({1, 2, control.fileno(), arrivals.fileno(), *descriptors})
        stderr_capture.forgive(output=True)
        logs.configure(form="json" if logs.in_json() else "text")  # until it has its order: the old one leads nowhere
        live(control, arrivals)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)


def _keep_only(kept: set[int]) -> None:
    """Put the null device in the place of every other descriptor: the listening socket, the ends of other fronts.

    They are not closed, because objects of the supervisor's still have their numbers, which would become those of other
    files.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept and int(name) != nowhere:
            with contextlib.suppress(OSError):  # that of the listing itself
                os.fstat(int(name))
                os.dup2(nowhere, int(name), inheritable=int(name) == 0)


class _Forked:
    """A forked child. It is not reaped before `wait` says so: until then its number is nobody else's."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._reaped = False
        self._lock = threading.Lock()

    def wait(self) -> int:
        status = 0
        # Who started us may ignore SIGCHLD. Then the kernel reaps children, and says only that there is none any more.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            with contextlib.suppress(ChildProcessError):
                _, status = os.waitpid(self.pid, 0)
            self._reaped = True
        return os.waitstatus_to_exitcode(status)

    def send_signal(self, sig: int) -> None:
        with self._lock:
            if not self._reaped:
                with contextlib.suppress(ProcessLookupError):  # the kernel has reaped it
                    os.kill(self.pid, sig)
