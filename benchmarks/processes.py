"""The processes of a server: started in a session of their own, found again however they were started, counted, ended.

Each carries a mark in its environment, which children inherit; descendants of a marked process belong to it, too, for
some servers overwrite the memory where the environment stands. Linux only.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_MARK = "BENCHMARK_MARK"
_PATIENCE = 4.0  # seconds between asking a server to end, asking all its processes, and killing them
_POLL = 0.05


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has, not even a connection that ended a minute ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Server:
    """A running server with all that it started."""

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str], folder: Path, log: Path) -> None:
        self._mark = f"{_MARK}={os.getpid()}-{time.monotonic_ns()}"
        marked = dict(environment) | dict([self._mark.split("=", 1)])
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command, env=marked, cwd=folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip

    @property
    def ended(self) -> bool:
        """Whether the process that was started has ended."""
        return self._process.poll() is not None

    def processes(self) -> set[int]:
        """Those alive now."""
        parents = _parents()
        marked = {pid for pid in parents if self._mark.encode() in _read(pid, "environ").split(b"\0")}
        found: set[int] = set()
        new = marked | {self._process.pid} & parents.keys()
        while new:
            found |= new
            new = {pid for pid, parent in parents.items() if parent in new} - found
        return found

    def memory(self) -> int:
        """Bytes: the proportional set size of all processes. Memory that they share counts once."""
        return sum(_proportional(pid) for pid in self.processes())

    def cpu(self) -> dict[int, float]:
        """The seconds of a core that each process has used, itself and its kernel's side."""
        found = {}
        for pid in self.processes():
            if fields := _read(pid, "stat").rpartition(b")")[2].split():
                found[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return found

    def stop(self) -> None:
        """End it: first the process that was started is asked, then all are, then all are killed."""
        everything = self._identities()
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        if self._gone(_PATIENCE):
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            everything |= self._identities()
            for pid, born in everything:
                with contextlib.suppress(ProcessLookupError):
                    if _born(pid) == born:  # else the number is somebody else's by now
                        os.kill(pid, number)
            if self._gone(_PATIENCE):
                return

    def _identities(self) -> set[tuple[int, bytes]]:
        return {(pid, _born(pid)) for pid in self.processes()}

    def _gone(self, within: float) -> bool:
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            if not self.processes():
                self._process.wait()  # so that no zombie stays
                return True
            time.sleep(_POLL)
        return False


def _parents() -> dict[int, int]:
    """The parent of every process that is not a zombie."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := _read(int(entry), "stat")):
            state, parent = stat.rpartition(b")")[2].split()[:2]
            if state not in (b"Z", b"X"):
                found[int(entry)] = int(parent)
    return found


def _born(pid: int) -> bytes:
    """When a process began, in the kernel's ticks; empty when it has ended."""
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return fields[19] if fields else b""


def _proportional(pid: int) -> int:
    for line in _read(pid, "smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it has ended, or is somebody else's
        return b""
