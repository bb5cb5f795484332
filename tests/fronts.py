"""One application behind its fronts: the lane of `flambeau serve`, Flask's test client, and servers of others."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import requests
from flask import Flask

import flambeau
from conftest import STARTUP_SECONDS, Serve

NAMES = ("lane", "flask", "gunicorn", "waitress", "uwsgi")


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
def open_front(name: str, serve: Serve, folder: Path, source: str | None, **options: Any) -> Iterator[Front]:
    """Start the front of that name over a source. `options` are those of `create_app`."""
    if name == "flask":
        app = flambeau.create_app(source, **options)
        yield InProcess(app)
        app.extensions["flambeau"].close()
    elif name == "lane":
        flags: list[object] = [source] if source else []
        for key, value in options.items():
            flag = "--" + key.replace("_", "-")
            flags += [flag] if value is True else [flag, value]
        with serve(*flags) as server:
            yield OverHttp(server.url)
    else:
        call = f"flambeau:create_app({', '.join([repr(source), *(f'{k}={v!r}' for k, v in options.items())])})"
        with _wsgi_server(name, call, folder) as url:
            yield OverHttp(url)


@contextlib.contextmanager
def _wsgi_server(name: str, call: str, folder: Path) -> Iterator[str]:
    if name == "gunicorn":
        command = ["-m", "gunicorn", "--bind", "127.0.0.1:0", "--timeout", "60", call]
        address = r"Listening at: (http://\S+)"
    elif name == "uwsgi":
        script = folder / "uwsgi_app.py"
        script.write_text(f"import flambeau\napp = {call.replace(':', '.', 1)}\n")
        command = [
            str(Path(sys.executable).with_name("uwsgi")), "--http-socket", "127.0.0.1:0", "--wsgi-file", str(script),
            "--callable", "app", "--master", "--lazy-apps", "--need-app", "--die-on-term", "--threads", "8",
        ]  # fmt: skip
        address = r"bound to TCP address (127\.0\.0\.1:\d+)"
    else:
        script = folder / "run_waitress.py"
        module, function = call.split(":", 1)
        script.write_text(
            f"import {module}, waitress\n"
            f"server = waitress.create_server({module}.{function}, listen='127.0.0.1:0')\n"
            "print('http://%s:%s' % (server.effective_host, server.effective_port), flush=True)\n"
            "server.run()\n"
        )
        command, address = [str(script)], r"(http://\S+)"
    with serving(command, address, folder) as url:
        yield url


@contextlib.contextmanager
def serving(command: list[str], address: str, folder: Path) -> Iterator[str]:
    """Run a server's Python command; gives its url, found in its output by the pattern `address`."""
    log = folder / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, *command], stdout=out, stderr=out, env=os.environ.copy())
    try:
        found = _wait_for_address(process, log, address)
        yield found if found.startswith("http") else f"http://{found}"
    finally:
        process.terminate()
        process.wait(30)


def _wait_for_address(process: "subprocess.Popen[bytes]", log: Path, pattern: str) -> str:
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(pattern, log.read_text()):
            return found.group(1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    raise RuntimeError(f"the server did not start: {log.read_text()}")
