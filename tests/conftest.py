"""What the suites share: real photographs, the real default bundle, and real server processes."""

import compileall
import contextlib
import gc
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import flambeau
from flambeau.bundle.storage import Bundle
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache
from tests.support import browser, forked, page_models, quick, warm
from tests.support.photographs import encoded, photograph
from tests.support.server import FLAMBEAU, Serve, ServerProcess, started
from tests.support.turns import pytest_collection_modifyitems, pytest_xdist_make_scheduler

__all__ = ("pytest_collection_modifyitems", "pytest_xdist_make_scheduler")  # hooks, which pytest finds here


def pytest_configure(config: pytest.Config) -> None:
    """What makes hundreds of processes on few cores faster.

    The package is compiled, which else each did anew where no bytecode is written; and nobody computes with more than
    one thread for whom no number is set: together they had more than there are cores, and waited for each other. The
    processes of a whole run share one to fork from, unless what they use is counted.
    """
    if "quick" in config.option.markexpr:
        config.pluginmanager.register(quick)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if "PYTEST_XDIST_WORKER" not in os.environ:
        compileall.compile_dir(Path(flambeau.__file__).parent, quiet=2)
        whole = config.getoption("dist", "no") == "loadfile" and "quick" not in config.option.markexpr
        if whole and not config.getoption("processor_time", None):
            warm.share()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Keep the tests as pytest has rewritten them, even where no other bytecode is kept: it takes seconds.

    What is imported and collected stays to the end, and nobody looks for garbage among it: a look at all of it takes
    more than half a second, and tests that ask for one would wait for two (`fleet.nothing_left`).
    """
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, False
    gc.disable()
    try:
        return (yield)
    finally:
        sys.dont_write_bytecode = before
        gc.freeze()
        gc.enable()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their argument.

    Packed ones hold the second they were packed in, and a run's processes, which each collect, would not find the same.
    """
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def _unlimited() -> Iterator[None]:
    """No test leaves a limit on the process of all tests: a browser that comes later crashes of it without a word."""
    yield
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bundle cache of this run's own, so that a run proves that bundles can be built; and logs that tests read.

    The run's processes share it: a bundle is built once, whichever of them first asks for it.
    """
    mine = tmp_path_factory.getbasetemp()
    folder = (mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / "cache"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLAMBEAU_CACHE", str(folder))
        patch.setenv("FLAMBEAU_LOG_FORMAT", "text")
        yield folder


@pytest.fixture(scope="session")
def default_bundle(cache: Path) -> Bundle:
    """The embedded default, built once for the run."""
    return build_cache.open_source(SourceOptions(), progress=lambda event: None)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's program, which is installed where it is missing and can be."""
    try:
        browser.install()
    except browser.NoBrowserError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    return browser.CHROMIUM


@pytest.fixture(scope="session")
def cat() -> bytes:
    """chelsea.png: an Egyptian cat."""
    return encoded(photograph("chelsea"))


@pytest.fixture(scope="session")
def double_py(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The third recipe as a Python model."""
    file = tmp_path_factory.mktemp("double") / "double.py"
    file.write_text(page_models.DOUBLE)
    return file


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Serve:
    """Serve with arguments on a free port: `with serve("resnet18", ...) as server`.

    With one replica, where the arguments name no number of them: each costs the start of a process. `replicas=None`:
    with as many as it takes by itself. The server is forked (`tests/support/forked.py`).
    """
    forked.begin()
    return _starting(tmp_path_factory, anew=False)


@pytest.fixture(scope="session")
def serve_anew(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Serve:
    """The same, and all processes are those that `flambeau serve` has: for tests of the processes themselves."""
    return _starting(tmp_path_factory, anew=True)


def _starting(folders: pytest.TempPathFactory, *, anew: bool) -> Serve:
    def start(
        *arguments: object, cwd: Path | None = None, replicas: int | None = 1
    ) -> "contextlib.AbstractContextManager[ServerProcess]":
        if replicas is not None and not {"--replicas", "--fronts"} & {*map(str, arguments)}:
            arguments = (*arguments, "--replicas", replicas)
        command = [*FLAMBEAU, "serve", "--port", "0", *arguments]
        return started(command, folders.mktemp("server"), cwd=cwd, anew=anew)

    return start


@pytest.fixture(scope="session")
def cat_server(serve: Serve, default_bundle: Bundle) -> Iterator[ServerProcess]:
    """The default model, served from its cached bundle."""
    with serve() as server:
        yield server
