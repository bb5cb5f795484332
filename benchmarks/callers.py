"""Clients that are as much alike as REST and gRPC allow, and a bare server of gRPC's asyncio library to compare with.

Every client is a process with one request at a time, which was encoded before: over REST through a plain socket, over
gRPC through grpcio's own stub. The server returns what it is sent: the least that any with that library does.
"""

import asyncio
import contextlib
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import click
import grpc
import msgspec

from benchmarks.processes import free_port
from flambeau.grpc.inference_proto import INFERENCE_SERVICE

METHOD = f"/{INFERENCE_SERVICE}/ModelInfer"
_WARMUP = 0.3
_LONGEST = [("grpc.max_receive_message_length", -1)]

Transport = Literal["rest", "grpc"]


class Turn(msgspec.Struct, frozen=True):
    """What the clients of one turn got: answers, with those of the warm-up; answers a second after it, and the median
    of their milliseconds."""

    answers: int
    per_second: float
    p50_ms: float


def run(transport: Transport, port: int, request: Path, *, clients: int, seconds: float, text: str) -> Turn:
    """Send the request over and over from so many processes. `text` is in every right answer.

    Raises `click.ClickException` with the first answer that is not right.
    """
    command = [
        sys.executable,
        "-m",
        "benchmarks.callers",
        "ask",
        transport,
        str(port),
        str(request),
        str(seconds),
        text,
    ]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(clients)]
    found = [each.communicate(timeout=seconds + 120) for each in running]
    for process, (_, errors) in zip(running, found, strict=True):
        if process.returncode:
            raise click.ClickException(errors.decode()[-500:])
    turns = [msgspec.json.decode(output, type=Turn) for output, _ in found]
    return Turn(
        sum(each.answers for each in turns), sum(each.per_second for each in turns),
        statistics.median(each.p50_ms for each in turns),
    )  # fmt: skip


@contextlib.contextmanager
def echoing() -> Iterator[tuple[int, int]]:
    """The bare server: its process and its port."""
    port = free_port()
    with subprocess.Popen([sys.executable, "-m", "benchmarks.callers", "echo", str(port)]) as process:
        try:
            grpc.channel_ready_future(grpc.insecure_channel(f"127.0.0.1:{port}")).result(60)
            yield process.pid, port
        finally:
            process.terminate()


async def _echo(port: int) -> None:
    async def answer(request: bytes, call: object) -> bytes:
        return request

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handler = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(INFERENCE_SERVICE, {"ModelInfer": handler}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def _over_socket(port: int, request: bytes) -> Callable[[], bytes]:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask() -> bytes:
        connection.sendall(request)
        found = b""
        while b"\r\n\r\n" not in found:
            found += connection.recv(65536)
        head, _, body = found.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(body) < length:
            body += connection.recv(65536)
        if not head.startswith(b"HTTP/1.1 200"):
            raise click.ClickException(f"{head!r} {body[:200]!r}")
        return body

    return ask


def _over_grpc(port: int, request: bytes) -> Callable[[], bytes]:
    call = grpc.insecure_channel(f"127.0.0.1:{port}", options=_LONGEST).unary_unary(METHOD)

    def ask() -> bytes:
        answer: bytes = call(request, timeout=60)
        return answer

    return ask


@click.group()
def main() -> None:
    """The processes of `benchmarks.protocols`."""


@main.command()
@click.argument("port", type=int)
def echo(port: int) -> None:
    """Serve until it is ended."""
    asyncio.run(_echo(port))


@main.command()
@click.argument("transport")
@click.argument("port", type=int)
@click.argument("request", type=Path)
@click.argument("seconds", type=float)
@click.argument("text")
def ask(transport: Transport, port: int, request: Path, seconds: float, text: str) -> None:
    """Ask again and again, and print a `Turn`."""
    once = (_over_grpc if transport == "grpc" else _over_socket)(port, request.read_bytes())
    wanted = text.encode()
    until, before_it = time.monotonic() + _WARMUP, 0
    while time.monotonic() < until:
        once()
        before_it += 1
    took: list[float] = []
    began = before = time.monotonic()
    while before - began < seconds:
        found = once()
        now = time.monotonic()
        took.append(1000 * (now - before))
        before = now
        if wanted not in found:
            raise click.ClickException(f"not in the answer: {text}: {found[:300]!r}")
    turn = Turn(before_it + len(took), len(took) / (before - began), statistics.median(took))
    click.echo(msgspec.json.encode(turn))


if __name__ == "__main__":
    main()
