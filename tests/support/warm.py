"""Commands and builds whose process is forked from one that has imported torch: most of their time goes there.

They are `flambeau`'s own `main` and that of `flambeau.builder`, for tests of what a build makes of a model and what is
said of it. How the real processes are started, fed, stopped and refused is proved by those that start them:
`tests.support.server.run_anew` and its users, and the documents.
"""

import atexit
import contextlib
import functools
import io
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Mapping
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext, ForkServerContext
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest

from flambeau.sources import build_cache
from flambeau.sources.build_cache import Progress
from flambeau.sources.request import BuildFailure, BuildRequest, Event, Imported
from tests.support import ROOT

THEIRS = ("", str(ROOT), str(ROOT / "tests" / "networks"))
"""Folders of the tests, of which a build knows nothing."""

SECONDS = 250
"""Until a command is given up; pytest ends a test after 300."""

MEASURED_SECONDS = 0.01
"""For each measurement of how many replicas answer most: these tests ask what is built, and not how fast it is."""


SHARED = "TESTS_FORK_FROM"
"""The variable of the environment that says where the process to fork from listens, if another process started it."""


def share() -> None:
    """Start the process to fork from for this process and for all that it starts: it takes seconds and a gigabyte."""
    _forks()
    server: Any = vars(multiprocessing.forkserver)["_forkserver"]
    if not hasattr(server, "_forkserver_authkey"):  # where there is a key, each process starts its own
        os.environ[SHARED] = server._forkserver_address


def _join(address: str) -> None:
    """Fork from the process that another started, which ends with that one: `multiprocessing` has no word for it."""
    server: Any = vars(multiprocessing.forkserver)["_forkserver"]
    server._forkserver_address = address
    server._forkserver_alive_fd = os.open(os.devnull, os.O_RDONLY)  # in the place of what keeps it alive
    server.ensure_running = resource_tracker.ensure_running


@functools.cache
def _forks() -> ForkServerContext:
    """Starts the process to fork from, which ends with this one, if none is shared."""
    forks = multiprocessing.get_context("forkserver")
    if address := os.environ.get(SHARED):
        _join(address)
        return forks
    forks.set_forkserver_preload(["tests.support.build_imports"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT)]))
        patch.setenv("PYTHONWARNINGS", "ignore")
        multiprocessing.forkserver.ensure_running()
    return forks


FEW_CPU_SECONDS = 3
"""Of processor time, for a graph to be opened and run in its sandbox: the test of one without an end waits for them."""


def run_with_torch(*arguments: object, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a `flambeau` command to its end, where it builds: in a fork of the process that has torch loaded.

    Other commands are run by `server.run_flambeau`.
    """
    return _run([str(word) for word in arguments], cwd=cwd, serves=True)


def open_before(*arguments: object, cwd: Path | None = None) -> str:
    """Build what `flambeau serve` with these arguments would build, and serve nothing. Gives what was said of it."""
    done = _run(["serve", "--port", "0", *map(str, arguments)], cwd=cwd, serves=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def _run(words: list[str], *, cwd: Path | None, serves: bool) -> "subprocess.CompletedProcess[str]":
    with tempfile.TemporaryDirectory() as folder:
        given = (words, serves, str(cwd or os.getcwd()), dict(os.environ), folder)
        process = _forks().Process(target=_command, args=given)
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
        output, errors = (Path(folder, name).read_text() for name in ("output", "errors"))
    assert process.exitcode is not None
    assert process.exitcode != -9, f"flambeau {words} was given up or killed: {output}{errors}"
    return subprocess.CompletedProcess(words, process.exitcode, output, errors)


def _command(words: list[str], serves: bool, here: str, environment: Mapping[str, str], folder: str) -> None:
    """What `python -m flambeau WORDS` would do; not `serves`: up to where it would."""
    import flambeau.__main__
    import flambeau.http.server

    for number, name in enumerate(("output", "errors"), start=1):
        with open(Path(folder, name), "wb") as file:
            os.dup2(file.fileno(), number)
    _become(here, environment)
    sys.path.insert(0, here)  # as `python -m` has it
    sys.argv = ["flambeau", *words]
    build_cache._run_build_process = functools.partial(run_build, forks=multiprocessing.get_context("fork"))
    if not serves:
        flambeau.http.server.run = lambda *_, **__: None
    try:
        flambeau.__main__.main()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]  # both as an interpreter ends, which this one does not
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()


def run_build(
    order: BuildRequest, folder: Path, progress: Progress, *, forks: ForkContext | ForkServerContext | None = None
) -> tuple[BuildFailure | None, tuple[str, ...]]:
    """In the place of `flambeau.sources.build_cache._run_build_process`: fill the folder. Gives why not, and what was
    imported."""
    forks = forks or _forks()
    receive, send = forks.Pipe(duplex=False)
    given = (msgspec.json.encode(order), str(folder), dict(os.environ), os.getcwd(), send)
    process = forks.Process(target=_main, args=given, daemon=True)
    process.start()
    send.close()
    failure: BuildFailure | None = None
    imported: tuple[str, ...] = ()
    try:
        with receive, open(receive.fileno(), "rb", closefd=False) as lines:
            for line in lines:
                event = msgspec.json.decode(line, type=Event)
                if isinstance(event, BuildFailure):
                    failure = event
                elif isinstance(event, Imported):
                    imported = event.files
                else:
                    progress(event)
    except BaseException:
        process.kill()
        raise
    finally:
        process.join()
    if failure is None and process.exitcode:
        failure = BuildFailure("SourceError", f"the build process ended with {process.exitcode}")
    return failure, imported


def _main(order: bytes, folder: str, environment: Mapping[str, str], here: str, events: Connection) -> None:
    """What `python -P -W ignore -m flambeau.builder FOLDER PARENT` would find, and its `main`."""
    from flambeau.builder import __main__ as build
    from flambeau.builder import graphs
    from flambeau.builder.sandbox import reader
    from flambeau.engine_selection import replica_scaling

    _become(here, environment)
    reader.spawn_child = Reading  # type: ignore[assignment, attr-defined]
    replica_scaling._SECONDS = MEASURED_SECONDS
    graphs._CPU_SECONDS = FEW_CPU_SECONDS
    os.dup2(events.fileno(), 1)
    events.close()
    warnings.simplefilter("ignore")
    sys.stdin = io.TextIOWrapper(io.BytesIO(order))
    sys.argv = ["flambeau.builder", folder, str(os.getppid())]
    sys.exit(build.main())


class Reading:
    """In the place of `spawn_child` for `flambeau.builder.sandbox`: its `main` in a fork, which locks itself in.

    What a reader of a file may do is proved in processes that begin from nothing: `tests/unit/test_reader.py`,
    `tests/unit/test_sandbox.py` and `tests/builder/test_hostile_files.py`. Has of a `Popen` what `FileReading` uses.
    """

    def __init__(self, module: str, request: str, *, environment: Mapping[str, str]) -> None:
        assert module == "flambeau.builder.sandbox"
        received, sent = os.pipe()
        self._code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.close(received)
            _end(lambda: _read(request, environment, os.getcwd(), sent))
        os.close(sent)
        self.stdout = open(received, "rb")  # noqa: SIM115  # whoever reads it closes it

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code

    def kill(self) -> None:
        """End it, if it has not been waited for."""
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def _end(run: Callable[[], int]) -> NoReturn:
    """End this process by the exit code, and do nothing of what ends its parent."""
    code = 1
    try:
        code = run()
    finally:
        os._exit(code)


class ReadingOfATest:
    """The same for a build in the process of the tests, which has threads: forked from the process that is for that."""

    def __init__(self, module: str, request: str, *, environment: Mapping[str, str]) -> None:
        assert module == "flambeau.builder.sandbox"
        receive, send = _forks().Pipe(duplex=False)
        given = (request, dict(environment), os.getcwd(), send)
        self._process = _forks().Process(target=_read_elsewhere, args=given, daemon=True)
        self._process.start()
        send.close()
        with receive:
            self.stdout = open(os.dup(receive.fileno()), "rb")  # noqa: SIM115  # whoever reads it closes it

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def kill(self) -> None:
        """End it, if it runs."""
        self._process.kill()


def _read_elsewhere(request: str, environment: Mapping[str, str], here: str, send: Connection) -> None:
    _end(lambda: _read(request, environment, here, send.fileno()))


def _read(request: str, environment: Mapping[str, str], here: str, sent: int) -> int:
    from flambeau.builder.sandbox import ReadRequest
    from flambeau.builder.sandbox import __main__ as sandbox

    asked = msgspec.json.decode(request, type=ReadRequest)
    os.setpgid(0, 0)
    os.dup2(sent, 1)
    os.close(sent)
    _become(here, environment)
    request = msgspec.json.encode(msgspec.structs.replace(asked, parent=os.getppid())).decode()
    sys.argv = ["flambeau.builder.sandbox", request]
    return sandbox.main()


def _become(here: str, environment: Mapping[str, str]) -> None:
    """Stand in that folder, with that environment, and without what the tests have on their path."""
    from tests.support import build_imports

    os.chdir(here)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = [each for each in build_imports.PATH if each not in THEIRS]
