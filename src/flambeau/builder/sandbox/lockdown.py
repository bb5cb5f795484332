"""The sandbox that a process enters before it looks at a foreign file (T-01, T-02, T-04; the way to T-32).

Three layers, each of which holds without the others, and each of which stands where the system has it:

* limits of the process (POSIX): memory, length of a file, open files, processor time, no core file, and no processes
  for users other than root
* system calls (Linux, x86-64 and aarch64): no network, no processes, nothing written but what is open already, no code
  that was not there before; see `flambeau.builder.sandbox.seccomp`
* files (Linux 5.13 and newer, Landlock): none can be opened but those that are named. Seccomp cannot do this, for it
  sees a pointer where a path is; without it a taken over process reads the user's keys and its parent's memory

There is no way back. What holds is told by the `Sandbox` that `enter` returns, so that nobody is promised more than
there is. On other systems the child is still a process of its own with a clock running.
"""

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from flambeau.builder.sandbox import seccomp

_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP = {"x86_64": 317, "aarch64": 277}  # seccomp(2), for glibc has no wrapper
_SET_MODE_FILTER, _FILTER_FLAG_TSYNC = 1, 1

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # landlock_*(2): the same numbers on every processor
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_READ_FILE = 1 << 2
_RIGHTS_BY_VERSION = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # how many rights on files a version of Landlock knows


@dataclass(frozen=True)
class Limits:
    """What a process may use from now on. `memory` is in bytes beyond what it has mapped already."""

    memory: int
    file_bytes: int
    cpu_seconds: int
    open_files: int = 32


@dataclass(frozen=True)
class Sandbox:
    """What holds. `memory` is the bytes of address space that the process can take beyond what it had."""

    memory: int | None
    limits: bool
    system_calls: bool
    files: bool

    def __str__(self) -> str:
        layers = []
        if self.system_calls:
            layers.append("no network, no new files, no processes")
        if self.files:
            layers.append("no other files")
        if self.memory is not None:
            layers.append(f"at most {self.memory / 1e9:.1f} GB")
        if self.limits:
            layers.append("limited time")
        return ", ".join(layers) or "a process of its own and nothing more: this system has no sandbox that we know"


def enter(limits: Limits, *, readable: Sequence[int] = ()) -> Sandbox:
    """Lock this process in, for good. The files behind the descriptors `readable` can still be opened for reading.

    Whatever it needs later must be imported, opened and tried before. To be called while there is one thread: the
    system calls are taken from all, the files from the calling one only. Raises `OSError` when a layer that the system
    has does not stand.
    """
    mapped = _mapped()
    limited = _limit(limits, mapped=mapped)
    files = system_calls = False
    if sys.platform == "linux":
        _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        files = _restrict_files(readable)
        system_calls = _restrict_system_calls()  # the last, for it takes the calls that the others need
    memory = limits.memory if limited and mapped is not None else None
    return Sandbox(memory=memory, limits=limited, system_calls=system_calls, files=files)


def _mapped() -> int | None:
    """The bytes of address space that this process has."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no such file on this system
        return None


def _limit(limits: Limits, *, mapped: int | None) -> bool:
    try:
        import resource
    except ImportError:  # Windows
        return False
    wanted = {
        resource.RLIMIT_CORE: 0,  # what is read is private
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CPU: limits.cpu_seconds,
    }
    if mapped is not None:
        wanted[resource.RLIMIT_AS] = mapped + limits.memory
    for limit, value in wanted.items():
        most = resource.getrlimit(limit)[1]
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(limit, (value, value))
    return True


def _restrict_files(readable: Sequence[int]) -> bool:
    """Landlock: every right on every file is taken, but that to read `readable`. False where there is no Landlock."""
    try:
        version = _call("syscall", _CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    except OSError:
        return False
    handled = (1 << _RIGHTS_BY_VERSION[min(version, max(_RIGHTS_BY_VERSION))]) - 1
    rules = _call("syscall", _CREATE_RULESET, struct.pack("=Q", handled), 8, 0)
    try:
        for descriptor in readable:
            _call("syscall", _ADD_RULE, rules, _RULE_PATH_BENEATH, struct.pack("=Qi", _READ_FILE, descriptor), 0)
        _call("syscall", _RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)
    return True


def _restrict_system_calls() -> bool:
    """Seccomp. False on a processor whose numbers we do not have, and where a kernel or a container has none."""
    machine = platform.machine()
    if machine not in seccomp.ARCHITECTURES or sys.maxsize < 2**32:
        return False
    code = ctypes.create_string_buffer(seccomp.program(machine, pid=os.getpid()))
    instructions = (len(code) - 1) // seccomp.INSTRUCTION_BYTES
    sock_fprog = struct.pack("@HP", instructions, ctypes.addressof(code))
    try:
        failed = _call("syscall", _SECCOMP[machine], _SET_MODE_FILTER, _FILTER_FLAG_TSYNC, sock_fprog)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EACCES):
            return False
        raise
    if failed:
        raise OSError(errno.ESRCH, f"the sandbox cannot be entered: thread {failed} cannot be locked in")
    return True


def _call(name: str, *arguments: int | bytes | None) -> int:
    """A function of the C library that answers -1 and sets errno. Whole numbers are passed as long."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    result: int = function(*(ctypes.c_long(each) if isinstance(each, int) else each for each in arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"the sandbox cannot be entered: {name}: {os.strerror(code)}")
    return result
