"""`python -m benchmarks.grpc_turns`: KServe v2 over gRPC beside v2 binary over REST and native JSON, and beside a bare
server of gRPC's asyncio library that returns what it holds.

The same small network as `benchmarks.protocols`, one worker. Every client is a process with one request at a time,
encoded before: over REST through a plain socket, over gRPC through grpcio's own stub. The protocols take turns.
"""

import asyncio
import contextlib
import json
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import grpc

from benchmarks import machine
from benchmarks.many_models import NUMBERS, serving, small_repository
from benchmarks.protocols import requests
from chaos.server import free_port
from flambeau.grpc.descriptors import INFERENCE_SERVICE, message

_METHOD = f"/{INFERENCE_SERVICE}/ModelInfer"
_WARMUP = 0.3


def _call() -> bytes:
    """The request over gRPC: four numbers, raw."""
    asked = message("ModelInferRequest")(model_name="net1")
    asked.inputs.add(name="input", datatype="FP32", shape=[1, 4])
    asked.raw_input_contents.append(struct.pack("<4f", *NUMBERS))
    return bytes(asked.SerializeToString())


async def _echo(port: int) -> None:
    """Serve until it is killed: the least that a server with this library does."""

    async def answer(request: bytes, call: object) -> bytes:
        return request

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handler = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(INFERENCE_SERVICE, {"ModelInfer": handler}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def _over_socket(port: int, request: bytes) -> Callable[[], None]:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask() -> None:
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

    return ask


def _over_grpc(port: int, request: bytes) -> Callable[[], None]:
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    call = channel.unary_unary(_METHOD)

    def ask() -> None:
        call(request, timeout=30)

    return ask


def _client(kind: str, port: int, request: bytes, seconds: float) -> None:
    """Ask again and again, and print how often and the milliseconds of each."""
    ask = (_over_grpc if kind == "grpc" else _over_socket)(port, request)
    began = time.monotonic()
    while time.monotonic() - began < _WARMUP:
        ask()
    took: list[float] = []
    began = before = time.monotonic()
    while before - began < seconds:
        ask()
        now = time.monotonic()
        took.append(1000 * (now - before))
        before = now
    click.echo(json.dumps([len(took) / (before - began), statistics.median(took)]))


@contextlib.contextmanager
def _echoing() -> Iterator[int]:
    port = free_port()
    with subprocess.Popen([sys.executable, "-m", "benchmarks.grpc_turns", "--echo", str(port)]) as process:
        try:
            grpc.channel_ready_future(grpc.insecure_channel(f"127.0.0.1:{port}")).result(60)
            yield port
        finally:
            process.terminate()


def _window(kind: str, port: int, request: bytes, *, clients: int, seconds: float) -> tuple[float, float]:
    """Requests a second of all clients together, and the median of their medians in milliseconds."""
    command = [sys.executable, "-m", "benchmarks.grpc_turns", "--client", kind, str(port), request.hex(), str(seconds)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(clients)]
    found = [json.loads(each.communicate(timeout=120)[0]) for each in running]
    return sum(rate for rate, _ in found), statistics.median(middle for _, middle in found)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Turns of each protocol.")
@click.option("--seconds", default=3.0, show_default=True, type=click.FloatRange(0.5), help="Length of each turn.")
@click.option("--echo", type=int, hidden=True)
@click.option("--client", type=(str, int, str, float), hidden=True)
def main(rounds: int, seconds: float, echo: int | None, client: tuple[str, int, str, float] | None) -> None:
    """Measure a small network over gRPC and REST, in turns."""
    if echo is not None:
        asyncio.run(_echo(echo))
    elif client is not None:
        kind, port, text, length = client
        _client(kind, port, bytes.fromhex(text), length)
    else:
        _compare(rounds, seconds)


def _compare(rounds: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix="flambeau-grpc-") as name:
        folder, over = Path(name), free_port()
        repository = small_repository(folder, 4)
        flags = ("--replicas", "1", "--grpc-port", str(over))
        with serving(repository, folder, *flags) as (_, port, _), _echoing() as bare:
            wire = requests(port, None)
            asked: dict[str, tuple[str, int, bytes]] = {
                "native": ("rest", *wire["native"]),
                "v2 binary, REST": ("rest", *wire["v2 binary"]),
                "v2, gRPC": ("grpc", over, _call()),
                "bare grpc.aio": ("grpc", bare, _call()),
            }
            rates: dict[tuple[str, int], list[tuple[float, float]]] = {}
            for _ in range(rounds):
                for clients in (1, 8):
                    for called, (kind, to, sent) in asked.items():
                        found = _window(kind, to, sent, clients=clients, seconds=seconds)
                        rates.setdefault((called, clients), []).append(found)
    click.echo(f"{'protocol':18} {'clients':>7} {'requests/s':>10} {'p50 ms':>7} {'to REST':>8}")
    medians = {key: [statistics.median(each) for each in zip(*turns, strict=True)] for key, turns in rates.items()}
    for (called, clients), (rate, middle) in sorted(medians.items(), key=lambda each: each[0][1]):
        ratio = rate / medians["v2 binary, REST", clients][0]
        click.echo(f"{called:18} {clients:7} {rate:10.0f} {middle:7.2f} {ratio:8.2f}")
    click.echo(json.dumps(machine.describe()))


if __name__ == "__main__":
    main()
