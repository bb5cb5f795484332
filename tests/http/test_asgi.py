"""`create_asgi_app` as other people use it: mounted, told of its start or not, on whichever loop, and drained (U21)."""

import asyncio
import concurrent.futures
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
import requests
from fastapi import FastAPI
from starlette.testclient import TestClient

import flambeau
from flambeau.bundle.storage import Bundle
from flambeau.http.asgi import AsgiApp
from tests.support.fleet import wait_for
from tests.support.fronts import serving
from tests.support.photographs import encoded, photograph

SLOW_PY = """
import pathlib, time
import flambeau

class Slow(flambeau.PythonModel):
    def load(self):
        print("loaded", flush=True)
    def predict(self, batch):
        pathlib.Path({begun!r}).touch()
        time.sleep(1.5)
        return batch
"""


def slow_model(folder: Path) -> str:
    """The source of a model that takes a while, and writes the file `begun` when it begins."""
    file = folder / "slow.py"
    file.write_text(SLOW_PY.format(begun=str(folder / "begun")))
    return f"{file}:Slow"


EGYPTIAN = {"class_id": "n02124075", "class_name": "Egyptian_cat"}


@pytest.fixture
def make() -> Iterator[Callable[..., AsgiApp]]:
    """Makes applications, and closes them in the end."""
    made: list[AsgiApp] = []

    def one(*arguments: Any, **options: Any) -> AsgiApp:
        made.append(flambeau.create_asgi_app(*arguments, **options))
        return made[-1]

    yield one
    for app in made:
        asyncio.run(app.close())


def test_mounted_in_fastapi_it_loads_with_the_first_request(
    make: Callable[..., AsgiApp], default_bundle: Bundle, cat: bytes
) -> None:
    """Starlette's test client makes a loop for every request, where the application is not entered."""
    mine = FastAPI()
    mine.add_api_route("/", lambda: {"mine": True})
    mine.mount("/cats", make(default_bundle.path))
    client = TestClient(mine)
    assert client.get("/").json() == {"mine": True}
    for _ in range(3):
        assert client.post("/cats/predict", files={"file": cat}).json() == EGYPTIAN
    assert client.get("/cats/readyz").json() == {"status": "ready", "models": {"efficientnet_lite0": "ready"}}


def test_below_a_root_path_the_page_finds_what_belongs_to_it(
    make: Callable[..., AsgiApp], default_bundle: Bundle
) -> None:
    mine = FastAPI()
    mine.mount("/cats", make(default_bundle.path))
    client = TestClient(mine, root_path="/api")
    page = client.get("/cats/")
    assert page.status_code == 200
    [style] = re.findall(r'href="([^"]+style\.css)"', page.text)
    assert urljoin("/api/cats/", style).startswith("/api/cats/static/")
    assert client.get(urljoin("/cats/", style).removeprefix("/api")).status_code == 200
    assert client.get("/cats/openapi.json").status_code == 200


def test_an_own_lifespan_may_start_and_close_it(make: Callable[..., AsgiApp], double_py: Path) -> None:
    doubles = make(f"{double_py}:Double", allow_code=True)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await doubles.start()
        yield
        await doubles.close()

    mine = FastAPI(lifespan=lifespan)
    mine.mount("/double", doubles)
    for _ in range(2):  # closed, it can be started again
        with TestClient(mine) as client:
            assert client.post("/double/predict", json={"input": 3}).json() == {"output": 6.0}


@pytest.mark.long
def test_first_requests_at_once_load_the_model_once(
    make: Callable[..., AsgiApp], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    client = TestClient(make(slow_model(tmp_path), allow_code=True, replicas=1))
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda value: client.post("/predict", json={"input": value}).json(), range(6)))
    assert found == [{"output": value} for value in range(6)]
    assert capfd.readouterr().out.count("loaded") == 1


@pytest.mark.long
def test_a_model_that_cannot_be_loaded_is_a_503_and_ends_a_server_at_its_start(
    make: Callable[..., AsgiApp], tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text(
        "import flambeau\nclass Bad(flambeau.PythonModel):\n    def load(self):\n        raise OSError('no weights')\n"
        "    def predict(self, batch):\n        return batch\n"
    )
    source = f"{tmp_path / 'bad.py'}:Bad"
    answered = TestClient(make(source, allow_code=True)).post("/predict", json={"input": 1})
    assert (answered.status_code, answered.json()["code"]) == (503, "model_unavailable")
    assert "no weights" not in answered.text
    (tmp_path / "app.py").write_text(f"import flambeau\napp = flambeau.create_asgi_app({source!r}, allow_code=True)\n")
    command = [sys.executable, "-m", "uvicorn", "--port", "0", "--app-dir", str(tmp_path), "app:app"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "no weights" in done.stderr


def test_what_cannot_be_built_is_told_at_once() -> None:
    with pytest.raises(flambeau.SetupError, match=r"absent\.pth does not exist"):
        flambeau.create_asgi_app("absent.pth")


GATED_PY = """
import pathlib, time
import flambeau

class Gated(flambeau.PythonModel):
    def load(self):
        pathlib.Path({folder!r}, "loading").touch()
        while not pathlib.Path({folder!r}, "open").exists():
            time.sleep(0.01)
    def predict(self, batch):
        return batch
"""


def test_a_child_that_is_forked_while_the_model_loads_loads_its_own_p8(
    make: Callable[..., AsgiApp], tmp_path: Path
) -> None:
    """The lock that the parent's loading thread held was never free in the child: its requests waited for ever."""
    (tmp_path / "gated.py").write_text(GATED_PY.format(folder=str(tmp_path)))
    client = TestClient(make(f"{tmp_path / 'gated.py'}:Gated", allow_code=True, replicas=1))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.post, "/predict", json={"input": 1})
        wait_for((tmp_path / "loading").exists)
        child = os.fork()
        (tmp_path / "open").touch()
        if not child:
            status = 1
            try:
                status = 0 if client.post("/predict", json={"input": 2}).json() == {"output": 2} else 2
            finally:
                os._exit(status)
        try:
            wait_for(lambda: os.waitpid(child, os.WNOHANG) == (child, 0))
        except BaseException:
            os.kill(child, signal.SIGKILL)
            raise
        assert waiting.result(60).json() == {"output": 1}


def test_a_websocket_is_refused(make: Callable[..., AsgiApp], double_py: Path) -> None:
    app, sent = make(f"{double_py}:Double", allow_code=True), []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    asyncio.run(app({"type": "websocket", "path": "/predict"}, receive, send))
    assert sent == ["websocket.close"]


@pytest.mark.long
@pytest.mark.parametrize("server", ["uvicorn", "hypercorn"])
def test_what_was_received_is_answered_when_the_server_is_stopped(tmp_path: Path, server: str) -> None:
    source = slow_model(tmp_path)
    (tmp_path / "app.py").write_text(f"import flambeau\napp = flambeau.create_asgi_app({source!r}, allow_code=True)\n")
    command = {
        "uvicorn": ["-m", "uvicorn", "--port", "0", "--app-dir", str(tmp_path), "app:app"],
        "hypercorn": ["-m", "hypercorn", "--bind", "127.0.0.1:0", f"{tmp_path / 'app.py'}:app"],
    }[server]
    answers: list[Any] = []
    with serving(command, r"[Rr]unning on (http://[\d.:]+)", tmp_path) as url:
        requests.get(url + "/readyz", timeout=60).raise_for_status()
        asking = threading.Thread(
            target=lambda: answers.append(requests.post(url + "/predict", json={"input": 7}, timeout=60).json())
        )
        asking.start()
        begun = tmp_path / "begun"
        while not begun.exists():
            asking.join(0.05)
            assert not answers
    # SIGTERM came with the block's end
    asking.join(60)
    assert answers == [{"output": 7}]


@pytest.mark.long
def test_a_photograph_of_another_orientation_goes_through_too(
    make: Callable[..., AsgiApp], default_bundle: Bundle
) -> None:
    client = TestClient(make(default_bundle.path))
    body = encoded(photograph("rocket"), "JPEG")
    assert client.post("/predict", content=body, headers={"Content-Type": "image/jpeg"}).status_code == 200
