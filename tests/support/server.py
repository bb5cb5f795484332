"""Commands of `flambeau`, and real server processes: whatever serves is started, waited for and ended here."""

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests

from tests.support import fleet, forked
from tests.support.forked import Forked

if TYPE_CHECKING:
    from huggingface_hub import InferenceClient

FLAMBEAU = (sys.executable, "-m", "flambeau")
STARTUP_SECONDS = 200  # on a busy machine; pytest ends a test after 300
_COMMAND_SECONDS = 250
ADDRESS = r"(https?://\S+)"

Process = subprocess.Popen[str] | Forked
Serve = Callable[..., "contextlib.AbstractContextManager[ServerProcess]"]


class ServerProcess:
    """A real server in a process of its own."""

    def __init__(self, process: Process, folder: Path) -> None:
        self.process = process
        self.url = ""
        self._log = folder / "stderr"
        self._output = folder / "stdout"

    def wait_until(self, holds: Callable[[], object], *, within: float = STARTUP_SECONDS) -> None:
        """Return when it holds, or raise with what the process has printed instead."""
        deadline = time.monotonic() + within
        while not holds():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.05)
                if holds():  # it was the last that it did
                    return
                raise RuntimeError(f"the server ended with {self.process.returncode}: {self._told()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"the server was not ready in {within} s: {self._told()}")

    def wait_for_address(self, pattern: str, *, within: float = STARTUP_SECONDS) -> None:
        """Return when the process has printed its address."""
        self.wait_until(lambda: re.search(pattern, self.output()), within=within)
        found = re.search(pattern, self.output())
        assert found is not None
        self.url = found[1]

    def log(self) -> str:
        """Everything it wrote to standard error so far: of what came before, all, though a thread of its own writes."""
        fleet.settle(self.process.pid)
        return self._log.read_text()

    def output(self) -> str:
        """Everything it wrote to standard output so far."""
        return self._output.read_text()

    def post(self, path: str = "/predict", **arguments: object) -> requests.Response:
        """POST to the server."""
        return self._ask("POST", path, **arguments)

    def get(self, path: str, **arguments: object) -> requests.Response:
        """GET from the server."""
        return self._ask("GET", path, **arguments)

    def hugging_face(self) -> "InferenceClient":
        """Hugging Face's own client of it, unmodified."""
        from huggingface_hub import InferenceClient  # half a second, and so not while tests are collected

        return InferenceClient(model=self.url)

    def _ask(self, method: str, path: str, **arguments: object) -> requests.Response:
        try:
            return requests.request(method, self.url + path, timeout=60, **arguments)  # type: ignore[arg-type]
        except requests.ConnectionError as error:
            if self.process.poll() is not None:
                error.add_note(f"the server has ended with {self.process.returncode}: {self._told()[-4000:]}")
            raise

    def _told(self) -> str:
        return f"{self.output()}\n{self._log.read_text() if self._log.exists() else ''}"


@contextlib.contextmanager
def started(
    command: Sequence[object],
    folder: Path,
    *,
    address: str | None = ADDRESS,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    stderr: int | None = None,
    group: bool = False,
    ends_by: signal.Signals = signal.SIGTERM,
    descriptors: Sequence[int] = (),
    anew: bool = True,
) -> Iterator[ServerProcess]:
    """Run a server's command until the block is left; ready as soon as it has printed what `address` finds.

    What it writes lies in the folder; standard error elsewhere, where `stderr` is a descriptor or `subprocess.STDOUT`.
    Without `address` nothing is waited for. A `group` is ended whole. `descriptors` are passed on. Not `anew`: it
    is forked (`tests.support.forked`); then the command is `flambeau`, without a group and descriptors.

    Raises what a server printed that did not start, and `TimeoutExpired` for one that does not end by the signal.
    """
    with contextlib.ExitStack() as files:
        stdout = files.enter_context((folder / "stdout").open("w"))
        log = files.enter_context((folder / "stderr").open("w")) if stderr is None else stderr
        words = [str(word) for word in command]
        environment = os.environ if environment is None else environment
        process: Process
        if anew or not forked.can(environment):
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=stdout, stderr=log, text=True, cwd=cwd,
                env={**environment, "PYTHONUNBUFFERED": "1"}, start_new_session=group, pass_fds=descriptors,
            )  # fmt: skip
        else:
            assert (tuple(words[: len(FLAMBEAU)]), group, descriptors) == (FLAMBEAU, False, ())
            output = stdout.fileno()
            errors = log.fileno() if not isinstance(log, int) else output if log == subprocess.STDOUT else log
            process = forked.start(words[len(FLAMBEAU) :], output, errors, cwd=cwd, environment=environment)
    server = ServerProcess(process, folder)
    try:
        if address is not None:
            server.wait_for_address(address)
        yield server
    finally:
        _end(process, ends_by, group=group)


def _end(process: Process, number: signal.Signals, *, group: bool) -> None:
    def send(number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)

    send(number)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        send(signal.SIGKILL)  # else the tests of processes find it among their own
        process.wait()
        raise


def free_port() -> str:
    """A port that nobody has, and that the kernel gives to nobody who asks for any (it gives those from 32768 on)."""
    while True:
        port = random.randrange(10_000, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return str(port)


def answer_schema(server: ServerProcess, path: str = "/predict") -> dict[str, Any]:
    """The schema of an answer of `POST /predict`, or of another path, with what it refers to."""
    document = server.get("/openapi.json").json()
    answered = document["paths"][path]["post"]["responses"]["200"]
    return {"components": document["components"], **answered["content"]["application/json"]["schema"]}


def examples_of(server: ServerProcess) -> dict[str, Any]:
    """The body in JSON that /openapi.json shows for each path that predicts, by path."""
    paths = server.get("/openapi.json").json()["paths"]
    bodies = {path: each["post"]["requestBody"]["content"] for path, each in paths.items()
              if "requestBody" in each.get("post", {})}  # fmt: skip
    shown = {path: content.get("application/json", {}).get("example") for path, content in bodies.items()}
    return {path: example for path, example in shown.items() if example is not None}


def answer_examples(server: ServerProcess) -> set[str]:
    """Send each example of /openapi.json, alone and with the examples of its parameters; return the paths that have
    one. Fails on the first that is not answered 200.
    """
    document = server.get("/openapi.json").json()
    examples = examples_of(server)
    for path, example in examples.items():
        told = [
            document["components"]["parameters"][each["$ref"].rpartition("/")[2]] if "$ref" in each else each
            for each in document["paths"][path]["post"].get("parameters", [])
        ]
        shown = [each for each in told if "example" in each]
        query, header = (
            {each["name"]: str(each["example"]) for each in shown if each["in"] == place}
            for place in ("query", "header")
        )
        for parameters, headers in (({}, {}), (query, header)):
            answered = server.post(path, json=example, params=parameters, headers=headers)
            assert answered.status_code == 200, (path, parameters, headers, str(example)[:200], answered.text)
    return set(examples)


def run_flambeau(*arguments: object, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a `flambeau` command to its end. It is forked (`tests.support.forked`), as servers are."""
    if not forked.can(os.environ):
        return run_anew(*arguments, cwd=cwd)
    words = [str(word) for word in arguments]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = forked.start(words, output.fileno(), errors.fileno(), cwd=cwd, environment=os.environ)
        try:
            process.wait(_COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        told = []
        for each in (output, errors):
            each.seek(0)
            told.append(each.read().decode().replace("\r\n", "\n"))
    assert process.returncode is not None
    return subprocess.CompletedProcess([*FLAMBEAU, *words], process.returncode, *told)


def run_anew(*arguments: object, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """The same, in a process that begins as a user's does."""
    return subprocess.run(
        [*FLAMBEAU, *map(str, arguments)], capture_output=True, text=True, timeout=_COMMAND_SECONDS, cwd=cwd,
        check=False,
    )  # fmt: skip
