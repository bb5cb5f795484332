"""How children are started, what a process does to itself on Linux, and what it sees of another."""

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
"""What keeps libraries from reporting to their makers, in the environment of every process of ours.

ONNX Runtime does since 1.29, to Microsoft, from the moment it is loaded; Hugging Face's hub would, if anybody asked it
for a file. OpenVINO has no variable for it: `flambeau.engines.openvino`.
"""


def report_to_nobody() -> None:
    """Have libraries that are loaded from now on report to nobody, unless this process was told otherwise.

    For somebody else's process, which may want that; ours are started with `NO_TELEMETRY`, whatever was wanted.
    """
    for name, value in NO_TELEMETRY.items():
        os.environ.setdefault(name, value)


@functools.cache
def interpreter() -> str:
    """The Python that sees the packages which this process sees, to start children with.

    Mostly `sys.executable`. In servers that embed Python (uWSGI, mod_wsgi) that is the Python which the environment was
    made from, or the server itself; then it is the environment's own. Raises `SetupError` where there is none.
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
    """Start a module of ours as a process of its own, with that environment and without telemetry.

    It has a process group of its own: a terminal's Ctrl-C is its parent's to answer, which ends it without a traceback.
    `warnings`: those of Python's are shown. Raises `OSError`.
    """
    # -P: a folder that somebody downloaded may hold a torch.py, and the user may stand in it
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
    """How a process ended, by its return code, to read on from "ended with"."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _is_python(file: Path) -> bool:
    return file.name.lower().startswith(("python", "pypy")) and os.access(file, os.X_OK) and file.is_file()


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent is gone, however that ended (prctl(2), PR_SET_PDEATHSIG).

    `parent` is its process id; in a container that may well be 1.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)


def open_standard_streams() -> None:
    """Put the null device in the place of each standard stream that is closed.

    Else a socket or a file that is opened later would get its number, and with it whatever a library prints.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it takes the lowest number that is free


def limit_memory(more: int) -> None:
    """Let this process and its children map at most so many bytes beyond what it has mapped (RLIMIT_AS)."""
    try:
        import resource

        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError):  # not Linux
        return
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = mapped + more
    resource.setrlimit(resource.RLIMIT_AS, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))


def cpu_alarm(seconds: float) -> None:
    """Have SIGPROF end this process when it has computed so long, on all processors together. Its children are free."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)


def resident_bytes(pid: int) -> int | None:
    """The memory of a process that is in RAM, what it shares with others included; `None` where nobody can tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):  # it has just ended, or this system has no such file
        return None


def give_memory_back() -> None:
    """Return to the system what this process has freed, which glibc keeps otherwise."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc
        libc.malloc_trim(0)
