"""Servers and commands forked from a process that has imported what they need, for the tests of what they do.

What begins from nothing imports for half a second of processor time, in the front and in each worker. Here the front is
forked from a process that has done so, and its workers from the front. All else is as it is: `flambeau`'s own `main`,
its settings, its sockets, its log, its signals and its end. How the processes themselves begin is proved by the rooms
whose `serve` starts them anew, `tests/serving`, `tests/cli` and the documents, and by `server.run_anew`.

`python -m tests.support.forked DESCRIPTOR ...` is the process to fork from; the words after the descriptor are only
room for the names of its children, which `/proc` shows.
"""

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[2]
MODULES = (
    "flambeau.__main__", "flambeau.cli.models", "flambeau.cli.package", "flambeau.cli.predict",
    "flambeau.cli.serve", "flambeau.fronts.sharing", "flambeau.fronts.supervisor",
    "flambeau.http.announcement", "flambeau.http.bounded_connection", "flambeau.http.connection",
    "flambeau.http.flask_app", "flambeau.http.server", "flambeau.http.site", "flambeau.grpc.endpoint", "uvloop",
    "flambeau.runners.processes", "flambeau.runners.worker", "flambeau.runners.replica",
    "flambeau.runners.python_replica", "flambeau.engines.onnxruntime", "onnxruntime",
)  # fmt: skip
"""What a front and a worker import sooner or later."""

AT_IMPORT = ("PYTHON", "LD_", "LC_", "LANG", "TZ", "OMP_", "ORT_", "MALLOC_", "OPENBLAS_")
"""Variables that are read before `main` begins: where they differ, only a new process has them."""

_WORKER = "flambeau.runners.worker"
_ROOM = 4000  # bytes for the name of a child


class Forked:
    """A server's process, as `subprocess.Popen` has it."""

    def __init__(self, pid: int, told: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._told = told

    def poll(self) -> int | None:
        """Its code, if it has ended."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Its code, when it has ended. Raises `subprocess.TimeoutExpired`."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("flambeau", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal; nothing, once it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """End it orderly."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it now."""
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select((self._told,), (), (), timeout)[0]:
            self.returncode = int(os.read(self._told, 100))
            os.close(self._told)
        return self.returncode


class _Forks:
    """The process to fork from, which ends with this one."""

    def __init__(self) -> None:
        self._mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", __name__, str(theirs.fileno()), "-" * _ROOM]
            self._process = subprocess.Popen(
                command, cwd=ROOT, pass_fds=[theirs.fileno()], env={**os.environ, "PYTHONUNBUFFERED": "1"}
            )
        self._environment = dict(os.environ)
        atexit.register(self._close)

    def can(self, environment: Mapping[str, str]) -> bool:
        names = {name for name in {*environment, *self._environment} if name.startswith(AT_IMPORT)}
        return all(environment.get(name) == self._environment.get(name) for name in names)

    def start(self, order: bytes, files: list[int]) -> Forked:
        told, telling = os.pipe()
        try:
            socket.send_fds(self._mine, [order], [*files, telling])
        finally:
            os.close(telling)
        pid = b""
        while not pid.endswith(b"\n"):
            if not (read := os.read(told, 1)):
                raise RuntimeError("the process to fork servers from has ended")
            pid += read
        return Forked(int(pid), told)

    def _close(self) -> None:
        self._mine.close()
        self._process.wait()


_forks = functools.cache(_Forks)


def begin() -> None:
    """Start the process to fork from, if there is none."""
    _forks()


def can(environment: Mapping[str, str]) -> bool:
    """Whether what is forked is what would begin with this environment."""
    return _forks().can(environment)


def start(
    words: Sequence[str], stdout: int, stderr: int, *, cwd: Path | None, environment: Mapping[str, str]
) -> Forked:
    """`flambeau WORDS` with this environment, which is one that `can` be forked, and these descriptors for its output.

    `cwd`: else this process's folder.
    """
    order = [list(words), dict(environment), str(cwd or Path.cwd())]
    return _forks().start(json.dumps(order).encode(), [stdout, stderr])


# In the process that is forked from


def main() -> None:
    """Import, and fork a server for each order, until nobody can send one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the tests
    sys.path.pop(0)  # the tests' own folder, of which a server knows nothing
    for name in MODULES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    orders = socket.socket(fileno=int(sys.argv[1]))
    begun: dict[int, tuple[int, int]] = {}  # by a descriptor that can be read when it has ended
    while True:
        for ready in select.select([orders.fileno(), *begun], (), ())[0]:
            if ready in begun:
                pid, telling = begun.pop(ready)
                os.close(ready)
                with contextlib.suppress(BrokenPipeError):
                    os.write(telling, b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                os.close(telling)
                continue
            order, descriptors, _, _ = socket.recv_fds(orders, 1 << 20, 3)
            if not order:
                return
            pid = os.fork()
            if not pid:
                words, environment, here = json.loads(order)
                _end(functools.partial(_serve, words, environment, here, descriptors))
            *files, telling = descriptors
            for each in files:
                os.close(each)
            os.write(telling, b"%d\n" % pid)
            begun[os.pidfd_open(pid)] = pid, telling


def _serve(words: list[str], environment: Mapping[str, str], here: str, descriptors: list[int]) -> None:
    """Be what `python -m flambeau WORDS` is."""
    from flambeau import __main__
    from flambeau.runners import worker_process

    _name([sys.executable, "-m", "flambeau", *words])
    for number, each in enumerate(descriptors[:2], start=1):
        os.dup2(each, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.closerange(3, 1024)  # whose objects are in the frames above, which nobody leaves
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(here)
    _take(environment)
    sys.path.insert(0, here)  # as `python -m` has it
    sys.stdout, sys.stderr = _stream(1, "strict"), _stream(2, "backslashreplace")
    sys.argv = [str(__main__.__file__), *words]
    worker_process.spawn_child = _fork_worker  # type: ignore[attr-defined]
    __main__.main()


class _Child:
    """A worker, as `flambeau.runners.worker_process` has its `Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)


def _fork_worker(module: str, *arguments: str, environment: Mapping[str, str], **given: Any) -> Any:
    """In the place of `spawn_child`: the worker is forked from its front, unless it has imports of its own."""
    from flambeau.system.process import NO_TELEMETRY, spawn_child

    if module != _WORKER or environment.get("PYTHONPATH") != os.environ.get("PYTHONPATH"):
        return spawn_child(module, *arguments, environment=environment, **given)
    stdout = given["stdout"]
    if pid := os.fork():
        with contextlib.suppress(OSError):  # it has done so itself
            os.setpgid(pid, pid)
        return _Child(pid)
    output = os.open(os.devnull, os.O_WRONLY) if stdout == subprocess.DEVNULL else stdout.fileno()
    words, passed = [module, *arguments], {*given["pass_fds"]}
    return _end(lambda: _work(words, {**environment, **NO_TELEMETRY}, output, passed), lambda: None)


def _work(words: list[str], environment: Mapping[str, str], output: int, passed: set[int]) -> None:
    """Be what `python -P -m flambeau.runners.worker WORDS` is."""
    from flambeau.runners import worker

    os.setpgid(0, 0)
    _name([sys.executable, "-P", "-m", *words])
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    os.dup2(output, 1)
    _keep_only({0, 1, 2, *passed})
    sys.path.pop(0)
    _take(environment)
    sys.argv = words
    worker.main()


def _keep_only(kept: set[int]) -> None:
    """Put the null device in the place of every other descriptor: objects of the front's still have their numbers."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in {*kept, nowhere}:
            with contextlib.suppress(OSError):  # that of the listing itself
                os.fstat(int(name))
                os.dup2(nowhere, int(name), inheritable=False)


def _take(environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def _stream(descriptor: int, errors: str) -> io.TextIOWrapper:
    """A standard stream as PYTHONUNBUFFERED has it."""
    raw = open(descriptor, "wb", 0, closefd=False)  # noqa: SIM115  # it stays open
    return io.TextIOWrapper(raw, "utf-8", errors, write_through=True)


def _name(words: Sequence[str]) -> None:
    """Have /proc show this command line (proc(5): arg_start, arg_end)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    room = end - start
    ctypes.memmove(start, "\0".join(words).encode()[: room - 1].ljust(room, b"\0"), room)


def _end(run: Callable[[], None], last: Callable[[], None] = atexit._run_exitfuncs) -> NoReturn:
    """Do it, end as an interpreter does, and return to nothing of what was before the fork.

    `last`: what is done at exit. In a worker nothing is: there are its front's functions, too.
    """
    code = 1
    try:
        run()
        code = 0
    except SystemExit as asked:
        code = asked.code if isinstance(asked.code, int) else int(asked.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        last()
        for each in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                each.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
