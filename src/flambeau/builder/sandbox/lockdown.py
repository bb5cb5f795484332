"""The sandbox that a process enters before it reads an untrusted file (T-01, T-02, T-04; the way to T-32).

Three independent layers, each applied where the system supports it:

* process limits (POSIX): memory, file size, open files, processor time, no core file, and no new processes for users
  other than root
* system calls (Linux, x86-64 and aarch64): no network, no processes, writing only to files that are open already, no
  new executable memory; see `flambeau.builder.sandbox.seccomp`
* files (Linux 5.13 and newer, Landlock): only the named ones can be opened. Seccomp cannot enforce this, because it
  sees the pointer to a path and not the path; without it, a compromised process could read the user's keys and its
  parent's memory

Entering is final. `enter` returns a `Sandbox` that names the layers in force, so that nobody is promised more than the
system gives. On other systems the child is still a separate process with a time limit.
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
_RIGHTS_BY_VERSION = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # Landlock version -> number of rights on files


@dataclass(frozen=True)
class Limits:
    """What a process may use from now on. `memory` is in bytes beyond what it has already mapped."""

    memory: int
    file_bytes: int
    cpu_seconds: int
    open_files: int = 32


@dataclass(frozen=True)
class Sandbox:
    """The layers in force. `memory` is the address space, in bytes, that the process can take beyond what it had."""

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

    Import, open and try out everything that is needed later beforehand. Call it while the process has one thread: the
    system call filter applies to all threads, the file restriction only to the calling one. Raises `OSError` when a
    layer that the system supports cannot be applied.
    """
    mapped = _mapped()
    limited = _limit(limits, mapped=mapped)
    files = system_calls = False
    if sys.platform == "linux":
        _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        files = _restrict_files(readable)
        system_calls = _restrict_system_calls()  # last, because it forbids the calls that the others need
    memory = limits.memory if limited and mapped is not None else None
    return Sandbox(memory=memory, limits=limited, system_calls=system_calls, files=files)


def _mapped() -> int | None:
    """The bytes of address space that this process has mapped; `None` where the system does not say."""
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
    """Landlock: drop every right on every file except reading `readable`. False where there is no Landlock."""
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
    """Seccomp. False on a processor whose call numbers are not listed, and where the kernel or container lacks it."""
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
    """Call a C library function that returns -1 and sets errno on failure. Integers are passed as long."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    result: int = function(*(ctypes.c_long(each) if isinstance(each, int) else each for each in arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"the sandbox cannot be entered: {name}: {os.strerror(code)}")
    return result
