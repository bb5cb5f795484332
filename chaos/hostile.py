"""`python -m chaos.hostile`: the table of hostile requests, each written to a real server byte for byte (F-27 to F-40).

It prints what was sent and what came back, as the table of docs/hostile-requests.md, and ends with 1 when an answer is
not the promised one, a server died, or an answer tells what it should not (T-13).
"""

import asyncio
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import create_connection

import click

from chaos.hostile_bodies import BODIES
from chaos.hostile_case import Case, Target
from chaos.hostile_heads import HEADS
from chaos.server import Server
from chaos.wire import strict_json

CASES: tuple[Case, ...] = (*HEADS, *BODIES)

_PATIENCE = 30.0  # seconds; what is to time out does so after five at most, with the flags below
FLAGS = ("--header-timeout", "1", "--body-timeout", "1", "--max-body-bytes", "1000000", "--log-level", "warning")
"""Short waits, so that the slow rows take a second."""

_TELLS_TOO_MUCH = re.compile(
    rb"Traceback|0x[0-9a-f]{6}|File \"|/usr/|/home/|/tmp/|\.py\b|site-packages|uvicorn|werkzeug"
)


@dataclass(frozen=True, slots=True)
class Answered:
    """What came back. `status` 0: nothing but the end of the connection."""

    status: int
    code: str
    closed: bool
    seconds: float
    complaint: str = ""


def send(port: int, case: Case) -> Answered:
    """Write the request, and read until the answer is whole and, where the case says so, the connection ended."""
    pieces = case.pieces()  # which may take a moment, and the server waits for a request only so long
    started = time.monotonic()
    with create_connection(("127.0.0.1", port), timeout=_PATIENCE) as sock:
        received = b""
        try:
            for piece in pieces:
                sock.sendall(piece)
        except OSError:
            pass  # it was refused before it was sent whole; what was answered is still to be read
        try:
            while (not case.closes and not _whole(received, case)) or case.closes:
                if not (piece := sock.recv(65536)):
                    return _read(case, received, closed=True, seconds=time.monotonic() - started)
                received += piece
        except ConnectionResetError:
            return _read(case, received, closed=True, seconds=time.monotonic() - started)
        except TimeoutError:
            return Answered(0, "no answer", closed=False, seconds=_PATIENCE, complaint="it hangs")
        return _read(case, received, closed=False, seconds=time.monotonic() - started)


def _head(received: bytes) -> tuple[int, dict[bytes, bytes], bytes] | None:
    while received.startswith(b"HTTP/1.1 100"):
        received = received.partition(b"\r\n\r\n")[2]
    head, end, body = received.partition(b"\r\n\r\n")
    if not end:
        return None
    first, *lines = head.split(b"\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    return int(first.split()[1]), headers, body


def _whole(received: bytes, case: Case) -> bool:
    found = _head(received)
    if found is None:
        return False
    return case.headless or len(found[2]) >= int(found[1].get(b"content-length", b"0"))


def _read(case: Case, received: bytes, *, closed: bool, seconds: float) -> Answered:
    found = _head(received)
    if found is None:
        return Answered(0, "", closed, seconds)
    status, headers, body = found
    closed = closed or headers.get(b"connection") == b"close"
    code, complaint = "", ""
    if headers.get(b"content-type") == b"application/json" and not case.headless:
        body = body[: int(headers[b"content-length"])]
        try:
            answer = strict_json(body)
        except ValueError as error:
            return Answered(status, "", closed, seconds, f"the answer is not JSON: {error}")
        code = str(answer.get("code", "")) if isinstance(answer, dict) else ""
        if not code and isinstance(answer, dict) and isinstance(answer.get("results"), list):
            code = next((str(each["code"]) for each in answer["results"] if "code" in each), "")
    if status >= 400 and _TELLS_TOO_MUCH.search(received):
        complaint = f"it tells too much: {received[-200:]!r}"
    if b"server" in headers:
        complaint = "it tells which server it is"
    return Answered(status, code, closed, seconds, complaint)


def judge(case: Case, answered: Answered) -> str:
    """What is wrong with the answer, or the empty string."""
    if answered.complaint:
        return answered.complaint
    if (answered.status, answered.code) not in case.expect:
        return f"answered {answered.status} {answered.code}, and not {case.promise()}"
    if case.closes and not answered.closed:
        return "the connection stays open"
    return ""


@contextmanager
def servers(folder: Path, cache: Path) -> Iterator[dict[Target, int]]:
    """A service over numbers and one over images, by their ports."""
    loop = asyncio.new_event_loop()
    numbers = Server(folder / "numbers", cache, "Same", "--replicas", "1", *FLAGS)
    images = Server(folder / "images", cache, "", "--replicas", "1", *FLAGS)
    try:
        for server in (numbers, images):
            loop.run_until_complete(server.begin())
        for server in (numbers, images):
            loop.run_until_complete(server.ready())
        yield {"numbers": numbers.port, "images": images.port}
    finally:
        for server in (numbers, images):
            if loop.run_until_complete(server.stop()) != 0:
                click.echo(f"a server did not end well: {server.log()[-2000:]}", err=True)
        loop.close()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Send every hostile request to a real server, and print the table of docs/hostile-requests.md."""
    wrong = 0
    with (
        tempfile.TemporaryDirectory(prefix="flambeau-hostile-") as folder,
        servers(Path(folder), Path(folder, "cache")) as ports,
    ):
        click.echo("| fault | what is sent | answer | connection | ms |\n|---|---|---|---|---:|")
        for case in CASES:
            answered = send(ports[case.target], case)
            complaint = judge(case, answered)
            wrong += bool(complaint)
            shown = f"{answered.status} `{answered.code}`" if answered.code else str(answered.status or "none")
            connection = "closed" if answered.closed else "kept"
            milliseconds = f"{1000 * answered.seconds:.0f}"
            click.echo(f"| {case.fault} | {case.name} | {shown} | {connection} | {milliseconds} |")
            if complaint:
                click.echo(f"{case.fault}, {case.name}: {complaint}", err=True)
    click.echo(f"{len(CASES) - wrong} passed, {wrong} failed", err=True)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
