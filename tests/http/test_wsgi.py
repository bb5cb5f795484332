"""`create_app` as other people use it: under `flask run`, gunicorn's workers, and mounted in their own application."""

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urljoin

import flask
import pytest
import requests
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

import flambeau
from flambeau.bundle.storage import Bundle
from flambeau.system import process
from tests.support.fronts import application, serving, uwsgi


def test_mounted_in_somebodys_own_application(default_bundle: Bundle, cat: bytes) -> None:
    mine = flask.Flask("mine")
    mine.add_url_rule("/", "home", lambda: "my own page")
    with application(str(default_bundle.path), replicas=1) as cats:
        client = Client(DispatcherMiddleware(mine.wsgi_app, {"/cats": cats}))
        assert client.get("/").text == "my own page"
        body = {"file": (io.BytesIO(cat), "c.png")}
        assert client.post("/cats/predict", data=body).json == {"class_id": "n02124075", "class_name": "Egyptian_cat"}
        [style] = re.findall(r'href="([^"]+style\.css)"', client.get("/cats/").text)
        with client.get(urljoin("/cats/", style)) as found:
            assert found.status_code == 200


def test_two_services_live_in_one_process(default_bundle: Bundle, double_py: Path) -> None:
    with (
        application(str(default_bundle.path), replicas=1) as cats,
        application(f"{double_py}:Double", allow_code=True) as doubles,
    ):
        assert doubles.test_client().post("/predict", json={"input": 4}).json == {"output": 8.0}
        assert cats.test_client().get("/readyz").get_json()["models"] == {"efficientnet_lite0": "ready"}


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(flambeau.SetupError, match="no option 'wieghts'"):
        flambeau.create_app("resnet18", wieghts="x.pth")


def test_a_source_that_cannot_be_served_raises(tmp_path: Path) -> None:
    with pytest.raises(flambeau.SetupError, match="does not exist"):
        flambeau.create_app(str(tmp_path / "absent.pth"))
    with pytest.raises(flambeau.SetupError, match="--allow-code"):
        flambeau.create_app("model.py:Model")


def test_under_flask_run(double_py: Path, tmp_path: Path) -> None:
    app = f"flambeau:create_app({str(double_py) + ':Double'!r}, allow_code=True)"
    with serving(["-m", "flask", "--app", app, "run", "--port", "0"], r"Running on (http://\S+)", tmp_path) as url:
        answered = requests.post(url + "/predict", json={"input": 3}, timeout=30)
        assert answered.json() == {"output": 6.0}


@pytest.mark.long
@pytest.mark.parametrize("flags", [["--workers", "2"], ["--workers", "2", "--preload"], ["--threads", "8"]])
def test_under_gunicorns_workers(default_bundle: Bundle, cat: bytes, tmp_path: Path, flags: list[str]) -> None:
    """F-24: with --preload the service is made before the fork, and made anew in each worker."""
    app = f"flambeau:create_app({str(default_bundle.path)!r}, replicas=1)"
    command = ["-m", "gunicorn", "--bind", "127.0.0.1:0", *flags, app]
    with serving(command, r"Listening at: (http://\S+)", tmp_path) as url:
        for _ in range(12):
            answered = requests.post(url + "/predict", files={"file": cat}, timeout=30)
            assert answered.json()["class_name"] == "Egyptian_cat"
        assert requests.get(url + "/readyz", timeout=30).status_code == 200


@pytest.mark.long
def test_the_first_requests_after_a_fork_are_answered_p8(default_bundle: Bundle, cat: bytes, tmp_path: Path) -> None:
    """All at once, while each worker still makes its own model."""
    app = f"flambeau:create_app({str(default_bundle.path)!r}, replicas=1)"
    command = ["-m", "gunicorn", "--bind", "127.0.0.1:0", "--preload", "-w", "2", "--threads", "8", app]

    def ask(url: str) -> str:
        answered = requests.post(url + "/predict", files={"file": cat}, timeout=60)
        return str(answered.json().get("class_name", answered.text))

    with serving(command, r"Listening at: (http://\S+)", tmp_path) as url, ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, [url] * 16)) == ["Egyptian_cat"] * 16


@pytest.mark.long
def test_a_source_that_fails_stops_gunicorn() -> None:
    command = [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", "flambeau:create_app('absent.pth')"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ.copy(), check=False)
    assert done.returncode != 0
    assert "absent.pth does not exist" in done.stderr


@pytest.mark.long
@pytest.mark.parametrize("runner", ["threads", "processes"])
def test_under_uwsgi_children_are_started_with_the_environments_python_u20(
    double_py: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runner: str
) -> None:
    """There `sys.executable` is the Python that the environment was made from: it has no package of ours."""
    monkeypatch.setenv("FLAMBEAU_CACHE", str(tmp_path / "cache"))  # so that there is something to build
    call = f"create_app({str(double_py) + ':Double'!r}, allow_code=True, runner={runner!r}, replicas=1)"
    with serving(*uwsgi(call, tmp_path), tmp_path) as url:
        answered = requests.post(url + "/predict", json={"input": 3}, timeout=60)
        assert answered.json() == {"output": 6.0}
    assert "No module named" not in (tmp_path / "stdout").read_text()


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forgets which interpreter was found, before and after."""
    process.interpreter.cache_clear()
    yield
    monkeypatch.undo()
    process.interpreter.cache_clear()


@pytest.mark.usefixtures("interpreter")
def test_the_interpreter_is_the_environments_wherever_python_is_embedded_u20(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Path(sys.prefix, "bin", "python")
    for executable in (Path(sys.base_prefix, "bin", "python3"), "/usr/sbin/apache2", "uwsgi", ""):
        process.interpreter.cache_clear()
        monkeypatch.setattr(sys, "executable", str(executable))
        assert Path(process.interpreter()) == ours, executable
    process.interpreter.cache_clear()
    monkeypatch.setattr(sys, "executable", "/usr/sbin/apache2")
    for name in ("prefix", "base_prefix"):
        monkeypatch.setattr(sys, name, str(tmp_path))
    monkeypatch.setattr(sys, "_base_executable", "/usr/sbin/apache2")
    with pytest.raises(flambeau.SetupError, match=r"uWSGI: --virtualenv, mod_wsgi: python-home"):
        process.interpreter()
