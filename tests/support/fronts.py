"""One application behind its fronts: `flambeau serve` itself, Flask's test client, and servers of others."""

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
import requests
from flask import Flask

import flambeau
from tests.support.server import Serve, free_port, started

NAMES = ("serve", "flask", "gunicorn", "waitress", "uwsgi", "fastapi", "uvicorn", "hypercorn", "granian")
ALIKE = ("uvicorn", "hypercorn", "granian")
"""Servers of an application of which `fastapi` is the hardest case: mounted, and never told of its start."""
ERROR_KEYS = {"error", "code", "retryable", "request_id"}
OF_WSGI = ("gunicorn", "waitress", "uwsgi")
"""Servers of the application that Flask's client asks, too; `test_wsgi.py` has what each of them does of its own."""
FRONTS = tuple(pytest.param(name, marks=pytest.mark.slow) if name in ALIKE + OF_WSGI else name for name in NAMES)


@dataclass(frozen=True)
class Answered:
    """An answer, as every front gives it. Header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, read by a strict JSON parser."""
        return json.loads(self.body, parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


class Front(Protocol):
    """Sends one prepared request."""

    def send(self, method: str, path: str, **arguments: Any) -> Answered:
        """`arguments` are those of `requests.Request`."""
        ...


class OverHttp:
    """A front in a server process."""

    def __init__(self, url: str) -> None:
        self._url = url

    def send(self, method: str, path: str, **arguments: Any) -> Answered:
        response = requests.request(method, self._url + path, timeout=60, **arguments)
        return Answered(
            response.status_code, {key.lower(): value for key, value in response.headers.items()}, response.content
        )


class InProcess:
    """Flask's test client."""

    def __init__(self, app: Flask) -> None:
        self._client = app.test_client()

    def send(self, method: str, path: str, **arguments: Any) -> Answered:
        prepared = requests.Request(method, "http://localhost" + path, **arguments).prepare()
        body = prepared.body.encode() if isinstance(prepared.body, str) else prepared.body
        headers = list(prepared.headers.items())
        with self._client.open(path, method=method, headers=headers, data=body) as response:
            return Answered(
                response.status_code, {key.lower(): value for key, value in response.headers.items()}, response.data
            )


@contextlib.contextmanager
def application(source: str | None, **options: Any) -> Iterator[Flask]:
    """What `create_app` makes, until the block is left: its loop is a thread of this process."""
    app = flambeau.create_app(source, **options)
    try:
        yield app
    finally:
        app.extensions["flambeau"].close()


@contextlib.contextmanager
def open_front(name: str, serve: Serve, folder: Path, source: str | None, **options: Any) -> Iterator[Front]:
    """Start the front of that name over a source. `options` are those of `create_app`."""
    if name == "flask":
        with application(source, **options) as app:
            yield InProcess(app)
    elif name == "serve":
        flags: list[object] = [source] if source else []
        for key, value in options.items():
            flag = "--" + key.replace("_", "-")
            flags += [flag] if value is True else [flag, value]
        with serve(*flags) as server:
            yield OverHttp(server.url)
    else:
        arguments = ", ".join([repr(source), *(f"{k}={v!r}" for k, v in options.items())])
        call = f"{'create_asgi_app' if name in ASGI else 'create_app'}({arguments})"
        with serving(*_COMMANDS[name](call, folder), folder) as url:
            yield OverHttp(url + ("/cats" if name == "fastapi" else ""))


ASGI = ("fastapi", *ALIKE)
Started = tuple[list[str], str]
"""A server's Python command, and a pattern that finds its address in its output."""


def _script(folder: Path, text: str) -> Path:
    file = folder / "front_app.py"
    file.write_text(text)
    return file


def _gunicorn(call: str, folder: Path) -> Started:
    command = ["-m", "gunicorn", "--bind", "127.0.0.1:0", "--timeout", "60", f"flambeau:{call}"]
    return command, r"Listening at: (http://\S+)"


def _waitress(call: str, folder: Path) -> Started:
    script = _script(
        folder,
        f"import flambeau, waitress\n"
        f"server = waitress.create_server(flambeau.{call}, listen='127.0.0.1:0')\n"
        "print('http://%s:%s' % (server.effective_host, server.effective_port), flush=True)\n"
        "server.run()\n",
    )
    return [str(script)], r"(http://\S+)"


def uwsgi(call: str, folder: Path) -> Started:
    """uWSGI, which embeds Python."""
    script = _script(folder, f"import flambeau\napp = flambeau.{call}\n")
    command = [
        str(Path(sys.executable).with_name("uwsgi")), "--http-socket", "127.0.0.1:0", "--wsgi-file", str(script),
        "--callable", "app", "--master", "--lazy-apps", "--need-app", "--die-on-term", "--threads", "8",
        "--worker-reload-mercy", "5",
    ]  # fmt: skip
    return command, r"bound to TCP address (127\.0\.0\.1:\d+)"


def _fastapi(call: str, folder: Path) -> Started:
    """Mounted in somebody's application, which does not tell it of its start."""
    text = f"import fastapi, flambeau\napp = fastapi.FastAPI()\napp.mount('/cats', flambeau.{call})\n"
    return ["-m", "uvicorn", "--app-dir", str(folder), *_UVICORN, f"{_script(folder, text).stem}:app"], _RUNNING


def _uvicorn(call: str, folder: Path) -> Started:
    text = f"import flambeau\napp = flambeau.{call}\n"
    return ["-m", "uvicorn", "--app-dir", str(folder), *_UVICORN, f"{_script(folder, text).stem}:app"], _RUNNING


def _hypercorn(call: str, folder: Path) -> Started:
    text = f"import flambeau\napp = flambeau.{call}\n"
    return ["-m", "hypercorn", "--bind", "127.0.0.1:0", f"{_script(folder, text)}:app"], r"Running on (http://\S+)"


def _granian(call: str, folder: Path) -> Started:
    text = f"import flambeau\napp = flambeau.{call}\n"
    port = free_port()  # it does not tell which it has taken
    command = ["-m", "granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", port]
    return [*command, f"{_script(folder, text)}:app"], r"Listening at: (http://\S+)"


_UVICORN = ("--port", "0", "--no-access-log")
_RUNNING = r"Uvicorn running on (http://\S+)"
_COMMANDS = {
    "gunicorn": _gunicorn, "waitress": _waitress, "uwsgi": uwsgi, "fastapi": _fastapi, "uvicorn": _uvicorn,
    "hypercorn": _hypercorn, "granian": _granian,
}  # fmt: skip


@contextlib.contextmanager
def serving(command: list[str], address: str, folder: Path) -> Iterator[str]:
    """Run a server's Python command; gives its url, found in its output by the pattern `address`."""
    with started([sys.executable, *command], folder, address=address, stderr=subprocess.STDOUT) as server:
        at = server.url.removeprefix("http://")
        server.wait_until(lambda: _listens(at))  # some tell their address before they do
        yield f"http://{at}"


def _listens(address: str) -> bool:
    host, port = address.split(":")
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection((host, int(port)), timeout=10):
        return True
    return False


def post(front: Front, path: str = "/predict", **arguments: Any) -> Answered:
    """POST, and check what holds of every answer."""
    answered = front.send("POST", path, **arguments)
    assert answered.headers["content-type"] == "application/json"
    assert answered.headers["x-request-id"]
    assert answered.headers["cache-control"] == "no-store"
    assert answered.headers["x-content-type-options"] == "nosniff"
    return answered


def refused(answered: Answered, status: int, code: str) -> str:
    """Check the one shape of errors; returns the sentence."""
    body = answered.json()
    assert (answered.status, body["code"]) == (status, code)
    assert body.keys() - {"hint"} == ERROR_KEYS
    assert body["request_id"] == answered.headers["x-request-id"]
    assert body["retryable"] == (status in (408, 503, 504))
    return str(body["error"])


MAX_BODY = 3_000_000
