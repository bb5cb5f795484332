"""`python -m benchmarks.protocols`: the same small network over each protocol, and over MLServer's KServe v2.

Four numbers to three, the same ONNX graph everywhere, one worker each. Both servers run all the time; the protocols
take turns, so that a slow moment of the machine meets all of them. A table of medians, and a JSON line.
"""

import contextlib
import json
import statistics
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from benchmarks import environments, load, machine
from benchmarks.many_models import NUMBERS, MlServer, serving, small_repository

_CLIENTS = (1, 8, 32)
_NATIVE = "native"


class ProtocolRate(msgspec.Struct):
    """Requests a second of one protocol with so many clients, and the median of the milliseconds of each."""

    protocol: str
    clients: int
    per_second: float
    p50_ms: float


def requests(port: int, mlserver: int | None) -> dict[str, tuple[int, bytes]]:
    """The port and the bytes of one request, by protocol."""
    document = {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": NUMBERS}]}
    binary = {"name": "input", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
    head = json.dumps({"inputs": [binary], "parameters": {"binary_data_output": True}}).encode()
    tensor = struct.pack("<4f", *NUMBERS)
    text = json.dumps(document).encode()
    path, octets = "/v2/models/net1/infer", "application/octet-stream"
    found = {
        _NATIVE: (port, native_request(port)),
        "v2 JSON": (port, _request(port, path, text)),
        "v2 binary": (port, _request(port, path, head + tensor, octets, header=len(head))),
        "v1": (port, _request(port, "/v1/models/net1:predict", json.dumps({"instances": [NUMBERS]}).encode())),
    }
    if mlserver is not None:
        found["MLServer, v2 JSON"] = (mlserver, _request(mlserver, path, text))
    return found


def native_request(port: int) -> bytes:
    """Four numbers to the first network of the small repository."""
    return _request(port, "/predict/net1", json.dumps({"input": NUMBERS}).encode())


def _request(port: int, path: str, body: bytes, kind: str = "application/json", *, header: int | None = None) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
    ]
    if header is not None:
        lines.append(f"Inference-Header-Content-Length: {header}")
    return "\r\n".join([*lines, "", ""]).encode() + body


@contextlib.contextmanager
def _peer(repository: Path, folder: Path, *, wanted: bool) -> Iterator[int | None]:
    if not wanted:
        yield None
        return
    environments.install("mlserver")
    with MlServer(repository, ["net1"], folder).running() as (_, port, _):
        yield port


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Turns of each protocol.")
@click.option("--seconds", default=4.0, show_default=True, type=click.FloatRange(0.5), help="Length of each turn.")
@click.option("--peer", is_flag=True, help="Measure MLServer, too. It is installed first.")
def main(rounds: int, seconds: float, *, peer: bool) -> None:
    """Measure a small network over every protocol of HTTP, in turns."""
    with tempfile.TemporaryDirectory(prefix="flambeau-protocols-") as name:
        folder = Path(name)
        repository = small_repository(folder, 4)
        beside = folder / "peer"
        beside.mkdir()
        with (
            serving(repository, folder, "--replicas", "1") as (_, port, _),
            _peer(repository, beside, wanted=peer) as mlserver,
        ):
            windows: dict[tuple[str, int], list[load.Window]] = {}
            for _ in range(rounds):
                for protocol, (to, sent) in requests(port, mlserver).items():
                    wire = folder / "request"
                    wire.write_bytes(sent)
                    text = "predictions" if protocol == "v1" else "output"
                    for clients in _CLIENTS:
                        window = load.run(wire, port=to, clients=clients, text=text, seconds=seconds, warmup=0.5)
                        if window.wrong:
                            raise click.ClickException(f"{protocol}: {window.wrong} wrong: {window.complaint}")
                        windows.setdefault((protocol, clients), []).append(window)
    rates = [
        ProtocolRate(
            protocol, clients, statistics.median(each.per_second for each in turns),
            statistics.median(each.p50_ms for each in turns),
        )
        for (protocol, clients), turns in windows.items()
    ]  # fmt: skip
    usual = {each.clients: each.per_second for each in rates if each.protocol == _NATIVE}
    click.echo(f"{'protocol':20} {'clients':>7} {'requests/s':>10} {'p50 ms':>7} {'to native':>9}")
    for each in rates:
        ratio = each.per_second / usual[each.clients]
        click.echo(f"{each.protocol:20} {each.clients:7} {each.per_second:10.0f} {each.p50_ms:7.2f} {ratio:9.2f}")
    click.echo(json.dumps({"rates": msgspec.to_builtins(rates), "machine": machine.describe()}))


if __name__ == "__main__":
    main()
