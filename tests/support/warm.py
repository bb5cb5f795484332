"""Builds whose process is forked from one that has imported torch already, which is half of what a small build takes.

It runs `flambeau.builder`'s own `main`, for tests of what a build makes of a model. How the process itself is started,
fed, stopped and refused is proved by those that start the real one: `test_sources.py`, `test_cli.py`, the documents.
"""

import functools
import io
import multiprocessing
import multiprocessing.forkserver
import os
import sys
import warnings
from collections.abc import Mapping
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

import msgspec
import pytest

from flambeau.sources.build_cache import Progress
from flambeau.sources.request import BuildFailure, BuildRequest, Event, Imported
from tests.support import ROOT

THEIRS = ("", str(ROOT), str(ROOT / "tests" / "networks"))
"""Folders of the tests, of which a build knows nothing."""


@functools.cache
def _forks() -> ForkServerContext:
    """Starts the process to fork from, which ends with this one."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["tests.support.build_imports"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("PYTHONWARNINGS", "ignore")
        multiprocessing.forkserver.ensure_running()
    return forks


def run_build(order: BuildRequest, folder: Path, progress: Progress) -> tuple[BuildFailure | None, tuple[str, ...]]:
    """In the place of `flambeau.sources.build_cache._run_build_process`: fill the folder. Gives why not, and what was
    imported."""
    receive, send = _forks().Pipe(duplex=False)
    given = (msgspec.json.encode(order), str(folder), dict(os.environ), os.getcwd(), send)
    process = _forks().Process(target=_main, args=given, daemon=True)
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
    from tests.support import build_imports  # both have been imported where this was forked from

    os.chdir(here)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(events.fileno(), 1)
    events.close()
    warnings.simplefilter("ignore")
    sys.path[:] = [each for each in build_imports.PATH if each not in THEIRS]
    sys.stdin = io.TextIOWrapper(io.BytesIO(order))
    sys.argv = ["flambeau.builder", folder, str(os.getppid())]
    sys.exit(build.main())
