"""T-01, T-32: what a process can still do behind the door. Real processes, real canaries; and the filter for every
processor, run by an interpreter of its own, since only one processor is here.
"""

import errno
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flambeau.builder.sandbox import seccomp
from flambeau.builder.sandbox.lockdown import Sandbox

linux = pytest.mark.skipif(sys.platform != "linux", reason="the walls are Linux'")
MEGABYTE = 1 << 20

ENTER = """
import ctypes, errno, json, mmap, os, pickle, platform, resource, signal, socket, subprocess, sys, threading, time
from pathlib import Path
import encodings.idna  # of what is tried later, so that it is the socket that is refused and not the import
from flambeau.builder.sandbox import lockdown

LIBC = ctypes.CDLL(None, use_errno=True)
FOLDER, PORT, PARENT = Path(sys.argv[1]), int(sys.argv[2]), os.getppid()

def call(number, *arguments):
    result = LIBC.syscall(*(ctypes.c_long(each) if isinstance(each, int) else each for each in (number, *arguments)))
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result

def enter(**limits):
    given = dict(memory=200 << 20, file_bytes=1 << 20, cpu_seconds=20, open_files=32) | limits
    return lockdown.enter(lockdown.Limits(**given), readable=(readable.fileno(),))

readable = open(FOLDER / "readable", "rb")
"""

PROBES = """
class Evil:
    def __init__(self, function, *arguments):
        self.made_by = function, arguments
    def __reduce__(self):
        return self.made_by

canary, victim = str(FOLDER / "canary"), str(FOLDER / "victim")
connected = socket.socketpair()  # a socket from before does not help either, but for the bytes it was opened to carry
output = open(FOLDER / "output", "wb", buffering=0)
shell = f"touch {canary}"
bombs = {
    f"unpickled {name}": pickle.dumps(Evil(*what), protocol=protocol)
    for protocol in (0, 2, 5)
    for name, what in {
        f"os.system {protocol}": (os.system, shell),
        f"subprocess {protocol}": (subprocess.check_call, ["/bin/sh", "-c", shell]),
        f"exec {protocol}": (exec, f"open({canary!r}, 'w').write('!')"),
        f"connect {protocol}": (socket.create_connection, ("127.0.0.1", PORT)),
        f"rename {protocol}": (os.rename, victim, canary),
    }.items()
}
page = bytearray(64)

def thread():
    threading.Thread(target=print).start()

def system(payload):
    found = pickle.loads(payload)
    if isinstance(found, int) and found != 0:
        raise OSError(errno.EPERM, "os.system failed")  # it gives -1 or 127 shifted, and raises nothing

def many_files():
    kept = []
    try:
        for _ in range(100):
            kept.append(os.open(f"/proc/self/fd/{readable.fileno()}", os.O_RDONLY))
    finally:
        for descriptor in kept:
            os.close(descriptor)

def executable_memory():
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)

probes = {
    "tcp": lambda: socket.create_connection(("127.0.0.1", PORT), timeout=1),
    "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "unix": lambda: socket.socket(socket.AF_UNIX),
    "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "socketpair": socket.socketpair,
    "bind a socket from before": lambda: connected[0].bind(str(FOLDER / "bound")),
    "send by a socket from before": lambda: connected[0].sendmsg([b"!"], [], 0, None),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "fork": os.fork,
    "spawn": lambda: subprocess.run(["/bin/true"]),
    "posix_spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "thread": thread,
    "create": lambda: open(canary, "x"),
    "create and write": lambda: open(canary, "w"),
    "write": lambda: open(victim, "r+b"),
    "append": lambda: open(victim, "ab"),
    "open to truncate": lambda: os.open(victim, os.O_RDONLY | os.O_TRUNC),
    "nameless file": lambda: os.open(FOLDER, os.O_TMPFILE | os.O_RDWR),
    "memfd": lambda: os.memfd_create("x"),
    "truncate": lambda: os.truncate(victim, 0),
    "unlink": lambda: os.unlink(victim),
    "rename": lambda: os.rename(victim, canary),
    "link": lambda: os.link(victim, canary),
    "symlink": lambda: os.symlink(victim, canary),
    "mkdir": lambda: os.mkdir(canary),
    "rmdir": lambda: os.rmdir(FOLDER / "empty"),
    "chmod": lambda: os.chmod(victim, 0o777),
    "chmod what is open": lambda: os.fchmod(readable.fileno(), 0o777),
    "chown": lambda: os.chown(victim, 1, 1),
    "utime": lambda: os.utime(victim),
    "fifo": lambda: os.mkfifo(canary),
    "xattr": lambda: os.setxattr(victim, "user.x", b"x"),
    "chdir": lambda: os.chdir("/"),
    "read another file": lambda: open(victim, "rb"),
    "read the parent's memory": lambda: open(f"/proc/{PARENT}/mem", "rb"),
    "read the parent's environment": lambda: open(f"/proc/{PARENT}/environ", "rb"),
    "list a folder": lambda: os.listdir(FOLDER),
    "kill the parent": lambda: os.kill(PARENT, signal.SIGTERM),
    "ask for the parent": lambda: os.kill(PARENT, 0),
    "kill all": lambda: os.kill(-1, signal.SIGTERM),
    "another thread's signal": lambda: call(NR["tgkill"], PARENT, PARENT, int(signal.SIGTERM)),
    "signals by fcntl": lambda: __import__("fcntl").fcntl(readable, 8, PARENT),
    "ptrace": lambda: call(NR["ptrace"], 16, PARENT, 0, 0),
    "process_vm_readv": lambda: call(NR["process_vm_readv"], PARENT, 0, 0, 0, 0, 0),
    "pidfd": lambda: os.pidfd_open(PARENT),
    "unshare": lambda: call(NR["unshare"], 0x10000000),
    "setns": lambda: call(NR["setns"], 0, 0),
    "mount": lambda: call(NR["mount"], b"none", b"/mnt", b"tmpfs", 0, 0),
    "bpf": lambda: call(NR["bpf"], 0, 0, 0),
    "perf_event_open": lambda: call(NR["perf_event_open"], 0, 0, 0, 0, 0),
    "keyctl": lambda: call(NR["keyctl"], 0, 0, 0, 0, 0),
    "io_uring": lambda: call(NR["io_uring_setup"], 1, bytes(120)),
    "userfaultfd": lambda: call(NR["userfaultfd"], 0),
    "seccomp once more": lambda: call(NR["seccomp"], 0, 0, 0),
    "stay when the parent dies": lambda: call(NR["prctl"], 1, 0, 0, 0, 0),
    "raise the limits": lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)),
    "setuid": lambda: os.setuid(1),
    "terminal input": lambda: __import__("fcntl").ioctl(0, 0x5412, b"!"),
    "executable memory": executable_memory,
    "openat2": lambda: call(437, -100, b"/", bytes(24), 24),
    "clone3": lambda: call(435, bytes(88), 88),
    "memory": lambda: bytearray(300 << 20),
    "a long file": lambda: [output.write(bytes(1 << 20)) for _ in range(3)],
    "many files": many_files,
    **{name: lambda payload=payload: system(payload) for name, payload in bombs.items()},
}
NR = json.loads(sys.argv[3])
held = enter()
failed = {}
for name, probe in probes.items():
    try:
        probe()
        failed[name] = "it worked"
    except OSError as error:
        failed[name] = errno.errorcode.get(error.errno, str(error))
    except Exception as error:
        failed[name] = f"{type(error).__name__}: {error}"

# what is needed still works
assert Path(f"/proc/self/fd/{readable.fileno()}").read_bytes() == b"read me"
assert len(bytearray(100 << 20)) == 100 << 20
print(json.dumps({"held": str(held), "failed": failed}))
"""

NUMBERS = {
    "x86_64": {
        "tgkill": 234, "ptrace": 101, "process_vm_readv": 310, "unshare": 272, "setns": 308, "mount": 165, "bpf": 321,
        "perf_event_open": 298, "keyctl": 250, "io_uring_setup": 425, "userfaultfd": 323, "seccomp": 317, "prctl": 157,
        "socket": 41, "connect": 42, "sendto": 44, "execve": 59, "execveat": 322, "clone": 56, "kill": 62, "ioctl": 16,
        "unlinkat": 263, "renameat2": 316, "memfd_create": 319, "prlimit64": 302, "mount_setattr": 442, "tkill": 200,
    },
    "aarch64": {
        "tgkill": 131, "ptrace": 117, "process_vm_readv": 270, "unshare": 97, "setns": 268, "mount": 40, "bpf": 280,
        "perf_event_open": 241, "keyctl": 219, "io_uring_setup": 425, "userfaultfd": 282, "seccomp": 277, "prctl": 167,
        "socket": 198, "connect": 203, "sendto": 206, "execve": 221, "execveat": 281, "clone": 220, "kill": 129,
        "ioctl": 29, "unlinkat": 35, "renameat2": 276, "memfd_create": 279, "prlimit64": 261, "mount_setattr": 442,
        "tkill": 130,
    },
}  # fmt: skip


@dataclass
class Outside:
    """What lies around the room: files that must stay as they are, and a server that nobody may reach."""

    folder: Path
    server: socket.socket

    def run(self, script: str, *more: str) -> "subprocess.CompletedProcess[str]":
        """Run a script that begins in front of the door."""
        return subprocess.run(
            [sys.executable, "-c", ENTER + script, self.folder, str(self.server.getsockname()[1]), *more],
            capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def untouched(self) -> bool:
        """Nothing has changed, and nobody has called."""
        try:
            self.server.accept()
        except BlockingIOError:
            pass
        else:
            return False
        names = sorted(path.name for path in self.folder.iterdir())
        return (
            names == ["empty", "output", "readable", "victim"]
            and (self.folder / "victim").read_bytes() == b"victim"
            and (self.folder / "victim").stat().st_mode & 0o777 == 0o600
            and (self.folder / "readable").stat().st_mode & 0o777 == 0o600
            and (self.folder / "output").stat().st_size <= MEGABYTE
        )


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    (tmp_path / "empty").mkdir()
    for name, contents in {"readable": b"read me", "victim": b"victim", "output": b""}.items():
        (tmp_path / name).write_bytes(contents)
        (tmp_path / name).chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield Outside(tmp_path, server)


@linux
def test_nothing_can_be_done_behind_the_door_but_reading_and_computing_t01_t32(outside: Outside) -> None:
    """Even an unpickler that runs whatever the file names, as no torch of ours does, runs it in an empty room."""
    machine = os.uname().machine
    ended = outside.run(PROBES, json.dumps(NUMBERS[machine]))
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    failed: dict[str, str] = said["failed"]
    expected = {
        "openat2": "ENOSYS", "clone3": "ENOSYS", "many files": "EMFILE", "a long file": "EFBIG",
        "memory": "MemoryError: ", "thread": "RuntimeError: can't start new thread",
        "read another file": "EACCES", "read the parent's memory": "EACCES",
        "read the parent's environment": "EACCES", "list a folder": "EACCES",
        "raise the limits": "ValueError: not allowed to raise maximum limit",
    }  # fmt: skip
    assert len(failed) > 70
    assert {name: how for name, how in failed.items() if how != expected.get(name, "EPERM")} == {}
    assert said["held"] == "no network, no new files, no processes, no other files, at most 0.2 GB, limited time"
    assert outside.untouched()


@linux
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x32 is x86-64's")
def test_a_call_by_another_list_of_numbers_kills(outside: Outside) -> None:
    """The x32 numbers reach the same kernel functions by another list."""
    ended = outside.run("enter(); print('in', flush=True); call(0x40000000 | 39); print('alive')")
    assert (ended.stdout, ended.returncode) == ("in\n", -signal.SIGSYS)


@linux
def test_endless_computing_ends(outside: Outside) -> None:
    ended = outside.run("enter(cpu_seconds=1)\nwhile True: pass")
    assert ended.returncode in (-signal.SIGXCPU, -signal.SIGKILL)


@linux
def test_on_an_unknown_processor_the_other_walls_stand(outside: Outside) -> None:
    """And the description promises no more than they hold."""
    script = """
platform.machine = lambda: "riscv64"
held = enter()
try:
    open(FOLDER / "victim", "rb")
except PermissionError:
    print(held)
"""
    ended = outside.run(script)
    assert ended.stdout == "no other files, at most 0.2 GB, limited time\n", ended.stderr
    assert outside.untouched()


@linux
def test_abort_ends_the_process_by_its_own_signal(outside: Outside) -> None:
    """C++ libraries give up with it, and the parent tells the user what it was."""
    assert outside.run("enter()\nos.abort()").returncode == -signal.SIGABRT


def test_where_there_is_no_wall_none_is_claimed() -> None:
    nothing = Sandbox(memory=None, limits=False, system_calls=False, files=False)
    assert str(nothing) == "a process of its own and nothing more: this system has no sandbox that we know"


@pytest.mark.parametrize("machine", seccomp.ARCHITECTURES)
class TestFilter:
    """The program for each processor, interpreted."""

    def test_forbidden_calls_fail_and_needed_ones_do_not(self, machine: str) -> None:
        verdicts = {name: ask(machine, number) for name, number in NUMBERS[machine].items()}
        assert set(verdicts.values()) == {seccomp.ERRNO | errno.EPERM}
        read, write, futex, close = (0, 1, 202, 3) if machine == "x86_64" else (63, 64, 98, 57)
        assert {ask(machine, number) for number in (read, write, futex, close)} == {seccomp.ALLOW}

    def test_what_nobody_thought_of_fails(self, machine: str) -> None:
        """The list is of what is allowed, and it is short."""
        verdicts = [ask(machine, number) for number in range(1000)]
        assert verdicts.count(seccomp.ALLOW) in range(30, 50)
        assert [number for number in range(1000) if verdicts[number] == seccomp.ERRNO | errno.ENOSYS] == [435, 437]
        assert set(verdicts) == {seccomp.ALLOW, seccomp.ERRNO | errno.EPERM, seccomp.ERRNO | errno.ENOSYS}

    def test_arguments_decide(self, machine: str) -> None:
        mmap, mprotect, openat, fcntl, tgkill = {
            "x86_64": (9, 10, 257, 72, 234), "aarch64": (222, 226, 56, 25, 131),
        }[machine]  # fmt: skip
        allowed = [
            (mmap, 0, 4096, 3), (mprotect, 0, 4096, 1), (openat, 0, 0, 0), (openat, 0, 0, os.O_CLOEXEC),
            (fcntl, 3, 1), (fcntl, 3, 1030), (tgkill, 77, 78, 6),
        ]  # fmt: skip
        refused = [
            (mmap, 0, 4096, 7), (mprotect, 0, 4096, 4), (fcntl, 3, 4), (fcntl, 3, 8), (tgkill, 76, 77, 9),
            *((openat, 0, 0, flags) for flags in (1, 2, 3, 0o100, 0o1000, 0o2001, 0o20200002, 0o20000000)),
        ]  # fmt: skip
        assert {ask(machine, *call) for call in allowed} == {seccomp.ALLOW}
        assert {ask(machine, *call) for call in refused} == {seccomp.ERRNO | errno.EPERM}

    def test_other_numberings_kill(self, machine: str) -> None:
        assert ask(machine, 4, architecture=0x40000003) == seccomp.KILL_PROCESS  # i386
        assert ask(machine, 4, architecture=0x40000028) == seccomp.KILL_PROCESS  # 32-bit Arm
        x32 = ask(machine, 0x40000000)
        assert x32 == (seccomp.KILL_PROCESS if machine == "x86_64" else seccomp.ERRNO | errno.EPERM)


def ask(machine: str, number: int, *arguments: int, architecture: int | None = None) -> int:
    """What the filter answers: classic BPF as the kernel runs it over `struct seccomp_data`."""
    six = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("=iIQ6Q", number, architecture or seccomp.ARCHITECTURES[machine], 0, *six)
    program: list[Any] = list(struct.iter_unpack("=HBBI", seccomp.program(machine, pid=77)))
    accumulator, position = 0, 0
    while True:
        code, if_true, if_false, value = program[position]
        position += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == 0x06:
            return int(value)
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
            position += if_true if holds else if_false
