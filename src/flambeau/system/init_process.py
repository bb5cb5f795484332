"""What process 1 of a container owes to the rest: to forward signals, and to reap orphans.

The kernel gives process 1 every process whose parent has died, and gives it no default action for signals. A server
that is process 1 itself would keep such orphans as zombies, and could not wait for them without taking the exit codes
of its own workers. So process 1 forks once, before anything is loaded: the child goes on as the command, and the parent
does nothing but this. It is what tini and catatonit do. It knows nothing of servers.
"""

import contextlib
import os
import signal
import sys

_FIRST = 1
_KEPT = ("SIGCHLD", "SIGTTIN", "SIGTTOU")
"""Signals that are about process 1 itself."""


def step_down() -> None:
    """If this is process 1, go on as its child, and let process 1 look after that child. Otherwise do nothing.

    Process 1 ends when the command does, with its exit code, or with 128 and the number of the signal that ended
    it; the kernel then ends whatever is left. Call it before there are threads.
    """
    if os.getpid() != _FIRST or not hasattr(signal, "sigwait"):
        return
    everything = signal.valid_signals()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, everything)  # none may come between the fork and the loop
    command = os.fork()
    if command == 0:
        _lead_terminal()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    kept = {getattr(signal, name) for name in _KEPT}
    while True:
        number = signal.sigwait(everything)
        if number not in kept:
            with contextlib.suppress(ProcessLookupError):
                os.kill(command, number)
        elif number == signal.SIGCHLD and (code := _reap(command)) is not None:
            os._exit(code)


def _lead_terminal() -> None:
    """Make the command the terminal's foreground, if there is one: Ctrl-C then reaches it once, and not twice."""
    os.setpgid(0, 0)
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no terminal, or a closed standard input
        os.tcsetpgrp(sys.stdin.fileno(), os.getpgrp())  # SIGTTOU is blocked


def _reap(command: int) -> int | None:
    """Take the exit codes of all children that have ended. The command's, if it is among them."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == command:
                code = os.waitstatus_to_exitcode(status)
                found = code if code >= 0 else 128 - code
    return found
