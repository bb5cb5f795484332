"""Starting child processes, limits that a process sets for itself, and what it can see of another."""

import ctypes
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flambeau.errors import SetupError

_PR_SET_PDEATHSIG = 1

NO_TELEMETRY = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""Variables that turn off the telemetry of libraries, set in every process of ours.

Since 1.29, ONNX Runtime reports to Microsoft from the moment it is loaded; Hugging Face's hub would report if it were
asked for a file. OpenVINO has no such variable: see `flambeau.engines.openvino`.
"""


def report_to_nobody() -> None:
    """Turn off the telemetry of libraries that are loaded from now on, unless the environment already decides.

    This is for somebody else's process, which may want telemetry; our own always start with `NO_TELEMETRY`.
    """
    for name, value in NO_TELEMETRY.items():
        os.environ.setdefault(name, value)


@functools.cache
def interpreter() -> str:
    """The Python to start children with: one that sees the same packages as this process.

    Usually `sys.executable`. In servers that embed Python (uWSGI, mod_wsgi) that is the server itself, or the Python
    that the environment was made from; then it is the environment's own Python. Raises `SetupError` if there is none.
    """
    given = Path(sys.executable or "")
    if _is_python(given) and (sys.prefix == sys.base_prefix or given.is_relative_to(sys.prefix)):
        return sys.executable
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    names = ("Scripts/python.exe", "python.exe") if os.name == "nt" else ("bin/python", f"bin/{version}", "bin/python3")
    beside = [Path(prefix, name) for prefix in (sys.prefix, sys.base_prefix) for name in names]
    for found in (*beside, Path(getattr(sys, "_base_executable", None) or ""), given):
        if _is_python(found):
            return str(found)
    raise SetupError(
        f"this process runs inside of {sys.executable or 'another program'}, and there is no Python in {sys.prefix} to "
        "start workers with: name an environment that has one (uWSGI: --virtualenv, mod_wsgi: python-home)"
    )


def spawn_child(
    module: str,
    *arguments: str,
    environment: Mapping[str, str],
    stdin: int = subprocess.DEVNULL,
    stdout: Any = subprocess.PIPE,
    stderr: int | None = None,
    pass_fds: Sequence[int] = (),
    warnings: bool = False,
) -> "subprocess.Popen[bytes]":
    """Start a module of ours as a child process, with this environment and without telemetry.

    The child has a process group of its own: the parent handles Ctrl-C in a terminal, and ends the child without a
    traceback. `warnings`: show Python's warnings. Raises `OSError`.
    """
    # -P: the current folder may be a download that holds a torch.py
    options = ("-P",) if warnings else ("-P", "-W", "ignore")
    return subprocess.Popen(
        [interpreter(), *options, "-m", module, *arguments],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env={**environment, **NO_TELEMETRY},
        pass_fds=pass_fds,
        process_group=0,
    )


def ending(code: int) -> str:
    """How a process ended, by its return code, in words that follow "ended with"."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _is_python(file: Path) -> bool:
    return file.name.lower().startswith(("python", "pypy")) and os.access(file, os.X_OK) and file.is_file()


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent is gone, however it ended (prctl(2), PR_SET_PDEATHSIG).

    `parent` is the parent's process id; in a container that may well be 1.
    """
    _at_end_of_parent(parent, signal.SIGKILL)


def wake_with_parent(parent: int) -> None:
    """The same, but only wake this process up: it may be stopped, and would not notice that its parent is gone."""
    if hasattr(signal, "SIGCONT"):
        _at_end_of_parent(parent, signal.SIGCONT)


def _at_end_of_parent(parent: int, number: signal.Signals) -> None:
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # the parent was gone before the call
        os.kill(os.getpid(), number)


def end_group_with_me() -> None:
    """When this process has ended, however it ended, have all that is left of its process group killed.

    A small process waits for that in the group. It is no child of this one, whose own code may wait for all of its
    children. Call it before there are threads. Linux only.
    """
    if not hasattr(os, "pidfd_open"):
        return
    me = os.pidfd_open(os.getpid())
    first = os.fork()
    if first:
        os.waitpid(first, 0)
        os.close(me)
        return
    try:
        if os.fork() == 0:
            os.set_inheritable(me, True)
            program = str(Path(__file__).with_name("group_end.py"))
            os.execv(interpreter(), [interpreter(), "-I", "-S", program, str(me)])  # noqa: S606
    finally:
        os._exit(0)


def open_standard_streams() -> None:
    """Open the null device for each standard stream that is closed.

    Otherwise a socket or file opened later would get its number, and with it whatever a library prints.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest free number


def limit_memory(more: int) -> None:
    """Let this process, and each child, map at most `more` bytes beyond what this process maps now (RLIMIT_AS)."""
    try:
        import resource

        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError):  # not Linux
        return
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = mapped + more
    resource.setrlimit(resource.RLIMIT_AS, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))


def cpu_alarm(seconds: float) -> None:
    """Have SIGPROF end this process after `seconds` of processor time, over all its threads. Children do not count."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)


def resident_bytes(pid: int) -> int | None:
    """The resident bytes of a process, shared memory included; `None` if the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):  # it has just ended, or this system has no such file
        return None


def identity(pid: int) -> str | None:
    """What tells a process from every other that has its number later: when it was started, and in which boot.

    `None` if there is no such process, or the system does not say.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # what follows the program's name, which may hold anything; the start, in ticks, is the 22nd field of all
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in ("Z", "X") else f"{boot}/{fields[18]}"
    except (OSError, IndexError):
        return None


def proportional_bytes(pid: int) -> int:
    """The memory of a process, of shared pages its share: those of several add up to what they take together.

    Where the system does not say, the resident bytes.
    """
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return resident_bytes(pid) or 0


def give_memory_back() -> None:
    """Return freed memory to the system; glibc would keep it."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc
        libc.malloc_trim(0)
