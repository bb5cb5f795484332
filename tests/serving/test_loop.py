"""Nothing keeps the front's loop for long, whatever is in a body within the limits (A11, A13, P4).

The promise is 5 ms. Machines that run tests are slow and shared, so what is measured is the processor's time of the
thread, and ten times as much is let pass. Before, single steps took from 0.1 to 7.5 seconds.
"""

import asyncio
import contextlib
import gc
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from flambeau.errors import RequestError
from flambeau.pipelines import json_document
from flambeau.protocols import multipart
from flambeau.serving.quarantine import Quarantine
from flambeau.types import Payload
from tests.support.server import Serve, ServerProcess

LARGEST = 32 * (1 << 20)
STEP = 0.05  # seconds
FORM = "multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="file"'


def repeated(head: bytes, piece: bytes, tail: bytes = b"", *, size: int = LARGEST) -> bytes:
    return head + piece * ((size - len(head) - len(tail)) // len(piece)) + tail


FORMS: dict[str, Callable[[], bytes]] = {
    "semicolons": lambda: (PART + b";" * 8000 + b"\r\n\r\nx\r\n") * 62 + b"--b--\r\n",
    "semicolons and blanks": lambda: (PART + b"; " * 4000 + b"\r\n\r\nx\r\n") * 62 + b"--b--\r\n",
    "open quotes": lambda: (PART + b';a="\\' * 1500 + b"\r\n\r\nx\r\n") * 62 + b"--b--\r\n",
    "parameters": lambda: (PART + b";a=b" * 2000 + b"\r\n\r\nx\r\n") * 62 + b"--b--\r\n",
    "header lines": lambda: (PART + b"\r\na:" * 2000 + b"\r\n\r\nx\r\n") * 62 + b"--b--\r\n",
    "carriage returns": lambda: repeated(PART + b"\r\n\r\n", b"\r"),
    "nearly boundaries": lambda: repeated(PART + b"\r\n\r\n", b"\r\n--a"),
    "a preamble": lambda: repeated(b"", b"\r\n--a"),
    "blanks after a boundary": lambda: repeated(b"--b", b" "),
    "a header that does not end": lambda: repeated(PART, b"\r\nx"),
    "one large file": lambda: repeated(PART + b"\r\n\r\n", b"\0", b"\r\n--b--\r\n"),
}


@pytest.fixture(autouse=True)
def _no_collection() -> Iterator[None]:
    """The collector would walk through all that the other tests hold, in the middle of a step."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_read_in_short_steps_a11(name: str) -> None:
    steps = multipart.steps(FORMS[name](), FORM, max_parts=64)
    longest, done = 0.0, False
    while not done:
        started = time.thread_time()
        try:
            next(steps)
        except (StopIteration, RequestError):
            done = True
        longest = max(longest, time.thread_time() - started)
    assert longest < STEP


DOCUMENTS = {
    "strings": repeated(b'{"input":[[', b'"\\"",', b"0]]" + b"[]" * 40, size=json_document.SHORT),
    "commas": repeated(b'{"input":[', b"[0,],", size=json_document.SHORT),
    "brackets": repeated(b'{"input":', b"[", size=json_document.SHORT),
    "empty lists": repeated(b'{"input":[', b"[],", b"0]}", size=json_document.SHORT),
    "names": repeated(b"{", b'"input":1,', b'"input":2}', size=json_document.SHORT),
    "escapes": repeated(b'{"input":"', b"\\u0069", b'"}', size=json_document.SHORT),
    "half pairs": repeated(b'{"input":"', b"\\ud800", b'"}', size=json_document.SHORT),
    "backslashes": repeated(b'{"input":"', b"\\\\", b'"', size=json_document.SHORT),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_that_the_front_looks_at_is_short_a11(name: str) -> None:
    body = DOCUMENTS[name]
    assert len(body) <= json_document.SHORT
    longest = 0.0
    for _ in range(3):  # the first time, something may be compiled
        started = time.thread_time()
        with contextlib.suppress(RequestError):
            json_document.read_input(body, max_depth=32)
        longest = time.thread_time() - started
    assert longest < STEP


@pytest.mark.parametrize("name", ["strings", "commas"])
def test_the_time_for_a_document_grows_with_its_length_and_no_faster_p4(name: str) -> None:
    """In the replica; the longest took 7.5 s."""
    body = DOCUMENTS[name] * (8 * (1 << 20) // len(DOCUMENTS[name]))
    started = time.thread_time()
    json_document.deeper_than(body, 32)
    assert time.thread_time() - started < 5


def test_a_long_input_is_hashed_beside_the_loop_a11() -> None:
    """What is held in quarantine is known by its hash, which takes 40 ms of 32 MiB."""

    async def whole() -> None:
        quarantine = Quarantine()
        poison, other = Payload("file", bytes(LARGEST)), Payload("file", bytes(LARGEST - 1) + b"x")
        started = time.thread_time()
        quarantine.add(poison)
        while not quarantine.inputs:
            await asyncio.sleep(0.01)
        assert await quarantine.holds(poison)
        assert not await quarantine.holds(other)
        assert time.thread_time() - started < STEP

    asyncio.run(whole())


@pytest.fixture(scope="module")
def server(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    file = tmp_path_factory.mktemp("length") / "length.py"
    file.write_text(
        "import flambeau\n"
        "class Length(flambeau.PythonModel):\n"
        "    def predict(self, batch):\n"
        "        return [len(item) for item in batch]\n"
    )
    with serve(f"{file}:Length", "--allow-code", "--replicas", 1) as started:
        yield started


def post(body: bytes, kind: str, path: str = "/predict") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.long
@pytest.mark.parametrize(
    ("body", "kind", "path"),
    [
        (lambda: repeated(b'{"input":[[', b'"\\"",', b"0]]" + b"[]" * 40), "application/json", "/predict"),
        (lambda: repeated(b'{"input":[', b"[0,],"), "application/json", "/predict"),
        (FORMS["semicolons"], FORM, "/predict"),
        (FORMS["nearly boundaries"], FORM, "/"),
        (lambda: repeated(PART.replace(b"file", b"input") + b"\r\n\r\n", b"<", b"\r\n--b--\r\n"), FORM, "/"),
    ],
    ids=["broken JSON", "commas", "semicolons", "nearly boundaries", "a text for the page"],
)
def test_health_is_answered_beside_bodies_that_take_long_a11(
    server: ServerProcess, body: Callable[[], bytes], kind: str, path: str
) -> None:
    """Four at a time; before, it waited up to thirty seconds."""
    data = post(body(), kind, path)

    def send() -> None:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=120) as sock:
            sock.sendall(data)
            while sock.recv(65536):
                pass

    threads = [threading.Thread(target=send) for _ in range(4)]
    for each in threads:
        each.start()
    longest, asked = 0.0, 0
    while any(each.is_alive() for each in threads):
        started = time.monotonic()
        assert server.get("/livez").status_code == 200
        longest, asked = max(longest, time.monotonic() - started), asked + 1
    assert asked > 1
    assert longest < 10  # others work on this machine, too
