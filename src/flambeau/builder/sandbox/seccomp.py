"""The system calls that a sandboxed process may still make: a seccomp filter program for Linux on x86-64 and aarch64.

It is an allow list, because every kernel brings new system calls. Anything else fails with EPERM instead of killing the
process: libraries try things that they can do without, and a live process can report its error. Two calls fail with
ENOSYS, so that the C library falls back to an older one whose arguments a filter can see. A call with another ABI's
numbers (32-bit, x32) kills the process: only an attack makes one, and its number would be looked up in the wrong list.

Allowed are reading, writing and mapping open files, memory that is never executable, opening for reading, reading the
clock, and exiting. This module only builds the program; `flambeau.builder.sandbox.lockdown` installs it.
"""

import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""`platform.machine()` to the kernel's number for the calling convention (AUDIT_ARCH_*)."""

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
ERRNO = 0x00050000
"""What a filter returns; the low bits of the last hold the error number."""

INSTRUCTION_BYTES = 8

_ALLOWED = {  # name: (x86-64, aarch64)
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "lseek": (8, 62),
    "close": (3, 57),
    "stat": (4, None),
    "lstat": (6, None),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "access": (21, None),
    "faccessat": (269, 48),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "brk": (12, 214),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "getrandom": (318, 278),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
_ABSENT = {"openat2": (437, 437), "clone3": (435, 435)}  # answered ENOSYS

_PROT_EXEC = 4
_O_WRITES = 0o3 | 0o100 | 0o1000 | 0o20000000  # O_ACCMODE, O_CREAT, O_TRUNC, __O_TMPFILE; the same on both
_F_QUIET = (1, 2, 3, 1030)  # F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC; not F_SETOWN, which sends signals


@dataclass(frozen=True)
class _If:
    """A system call that is allowed depending on one argument. The kernel too reads only the argument's low 32 bits.

    Allowed if no bit of `clear` is set (where `clear` is given), or if the argument is one of `among`.
    """

    numbers: tuple[int, int]
    argument: int
    clear: int = 0
    among: tuple[int, ...] = ()


def program(machine: str, *, pid: int) -> bytes:
    """The filter for a processor of `ARCHITECTURES`, as `struct sock_filter[]`, for the process `pid`."""
    column = list(ARCHITECTURES).index(machine)
    code = [
        _load(4),  # the calling convention
        *_unless_equal(ARCHITECTURES[machine], KILL_PROCESS),
        _load(0),  # the number of the call
        *([_jump(_AT_LEAST, 0x40000000, 0, 1), _return(KILL_PROCESS)] if machine == "x86_64" else []),  # x32
    ]
    for numbers in _ALLOWED.values():
        number = numbers[column]
        if number is not None:
            code += [_jump(_EQUAL, number, 0, 1), _return(ALLOW)]
    for numbers in _ABSENT.values():
        code += [_jump(_EQUAL, numbers[column], 0, 1), _return(ERRNO | errno.ENOSYS)]
    for condition in _conditions(pid):
        body = list(_by_argument(condition))
        code += [_jump(_EQUAL, condition.numbers[column], 0, len(body)), *body]
    return b"".join([*code, _return(ERRNO | errno.EPERM)])


def _conditions(pid: int) -> tuple[_If, ...]:
    return (
        _If((9, 222), argument=2, clear=_PROT_EXEC),  # mmap
        _If((10, 226), argument=2, clear=_PROT_EXEC),  # mprotect
        _If((257, 56), argument=2, clear=_O_WRITES),  # openat
        _If((72, 25), argument=1, among=_F_QUIET),  # fcntl
        _If((234, 131), argument=0, among=(pid,)),  # tgkill: how abort() ends the process that calls it
    )


def _by_argument(condition: _If) -> Iterator[bytes]:
    """The instructions that decide such a call: every path returns."""
    yield _load(16 + 8 * condition.argument)
    if condition.clear:
        yield _jump(_ANY_BIT, condition.clear, 1, 0)
        yield _return(ALLOW)
    for value in condition.among:
        yield _jump(_EQUAL, value, 0, 1)
        yield _return(ALLOW)
    yield _return(ERRNO | errno.EPERM)


# Instructions of classic BPF (struct sock_filter): code, jump if true, jump if false, constant.
_EQUAL, _AT_LEAST, _ANY_BIT = 0x15, 0x35, 0x45


def _load(offset: int) -> bytes:
    """Four bytes of `struct seccomp_data` into the accumulator."""
    return struct.pack("=HBBI", 0x20, 0, 0, offset)


def _jump(test: int, value: int, if_true: int, if_false: int) -> bytes:
    return struct.pack("=HBBI", test, if_true, if_false, value)


def _return(verdict: int) -> bytes:
    return struct.pack("=HBBI", 0x06, 0, 0, verdict)


def _unless_equal(value: int, verdict: int) -> tuple[bytes, bytes]:
    return _jump(_EQUAL, value, 1, 0), _return(verdict)
