"""What the suites share: real photographs, the real default bundle, and real server processes."""

import compileall
import contextlib
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from PIL import Image

import browser
import flambeau
import fleet
import page_models
import quick
import warm
from flambeau.bundle.storage import Bundle
from flambeau.serving.service import BlockingService
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache
from turns import pytest_collection_modifyitems, pytest_xdist_make_scheduler

__all__ = ("pytest_collection_modifyitems", "pytest_xdist_make_scheduler")  # hooks, which pytest finds here

FLAMBEAU = (sys.executable, "-m", "flambeau")
STARTUP_SECONDS = 200  # on a busy machine; pytest ends a test after 300
DOUBLE = '''
import flambeau


class Double(flambeau.PythonModel):
    """The third recipe: twice the number."""

    def load(self):
        self.factor = 2.0

    def predict(self, batch):
        return [self.answer(item) for item in batch]

    def answer(self, item):
        if isinstance(item, bool) or not isinstance(item, (int, float)):
            return flambeau.InvalidInput(f"input must be a number, not {type(item).__name__}")
        return item * self.factor
'''


def pytest_configure(config: pytest.Config) -> None:
    """What makes hundreds of processes on few cores faster.

    The package is compiled, which else each did anew where no bytecode is written; and nobody computes with more than
    one thread for whom no number is set: together they had more than there are cores, and waited for each other.
    """
    if "quick" in config.option.markexpr:
        config.pluginmanager.register(quick)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if "PYTEST_XDIST_WORKER" not in os.environ:
        compileall.compile_dir(Path(flambeau.__file__).parent, quiet=2)


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


@pytest.fixture(scope="module")
def warm_builds() -> Iterator[None]:
    """Builds that a test asks for in this process begin with torch imported: see `warm`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_cache, "_run_build_process", warm.run_build)
        yield


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


def photograph(name: str) -> Image.Image:
    """One of scikit-image's photographs: chelsea (a cat), coffee, rocket, astronaut."""
    from skimage import data

    return Image.fromarray(getattr(data, name)()).convert("RGB")


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="session")
def cat() -> bytes:
    """chelsea.png: an Egyptian cat."""
    return encoded(photograph("chelsea"))


@pytest.fixture(scope="session")
def double_py(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The third recipe as a Python model."""
    file = tmp_path_factory.mktemp("double") / "double.py"
    file.write_text(DOUBLE)
    return file


class ServerProcess:
    """A real `flambeau serve` in a process of its own."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path, output: Path) -> None:
        self.process = process
        self._log = log
        self._output = output
        self.url = ""

    def wait_until_ready(self) -> None:
        """Return when the process has printed its address, or raise with what it printed instead."""
        deadline = time.monotonic() + STARTUP_SECONDS
        while time.monotonic() < deadline:
            if found := re.search(r"https?://\S+", self._output.read_text()):
                self.url = found.group()
                return
            try:
                self.process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
            raise RuntimeError(f"the server ended with {self.process.returncode}: {self.log()}")
        raise RuntimeError(f"the server was not ready in {STARTUP_SECONDS} s: {self.log()}")

    def log(self) -> str:
        """Everything it wrote to standard error so far: of what came before, all, though a thread of its own writes."""
        fleet.settle(self.process.pid)
        return self._log.read_text()

    def output(self) -> str:
        """Everything it wrote to standard output so far."""
        return self._output.read_text()

    def post(self, path: str = "/predict", **arguments: object) -> requests.Response:
        """POST to the server."""
        return requests.post(self.url + path, timeout=60, **arguments)  # type: ignore[arg-type]

    def get(self, path: str, **arguments: object) -> requests.Response:
        """GET from the server."""
        return requests.get(self.url + path, timeout=60, **arguments)  # type: ignore[arg-type]


Serve = Callable[..., "contextlib.AbstractContextManager[ServerProcess]"]


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Serve:
    """Start `flambeau serve` with arguments on a free port: `with serve("resnet18", ...) as server`."""

    @contextlib.contextmanager
    def start(*arguments: object, cwd: Path | None = None) -> Iterator[ServerProcess]:
        folder = tmp_path_factory.mktemp("server")
        log, output = folder / "stderr", folder / "stdout"
        with log.open("w") as stderr, output.open("w") as stdout:
            process = subprocess.Popen(
                [*FLAMBEAU, "serve", "--port", "0", *map(str, arguments)],
                stdout=stdout, stderr=stderr, text=True, cwd=cwd, env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        server = ServerProcess(process, log, output)
        try:
            server.wait_until_ready()
            yield server
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(30)

    return start


@pytest.fixture(scope="session")
def cat_server(serve: Serve, default_bundle: Bundle) -> Iterator[ServerProcess]:
    """The default model, served from its cached bundle."""
    with serve() as server:
        yield server


@pytest.fixture(scope="session")
def several_models(
    default_bundle: Bundle, double_py: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BlockingService]:
    """One service with models of every kind; see `page_models`."""
    service = page_models.open_several(default_bundle, double_py, tmp_path_factory.mktemp("several"))
    yield service
    service.close()


def run_flambeau(*arguments: object, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a `flambeau` command to its end."""
    return subprocess.run(
        [*FLAMBEAU, *map(str, arguments)], capture_output=True, text=True, timeout=250, cwd=cwd, check=False
    )
