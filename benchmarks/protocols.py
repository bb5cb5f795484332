"""`python -m benchmarks.protocols`: the same three works over each protocol, in turns, and over MLServer's KServe v2.

`numbers`: four to three, a small ONNX graph. `photograph`: a file to EfficientNet-Lite0. `tensor`: a prepared image of
602 kB to the same graph. One worker and one engine thread everywhere. All servers run all the time and the protocols
take turns, so that a slow moment of the machine meets all of them. A table of medians, and a JSON line.
"""

import contextlib
import json
import statistics
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import click
import msgspec
import numpy as np

from benchmarks import callers, environments, machine
from benchmarks.callers import Transport
from benchmarks.many_models import NUMBERS, MlServer, serving, small_repository
from benchmarks.processes import Server, free_port
from flambeau.grpc.descriptors import message
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache

_CLIENTS = (1, 8)
_REST = "v2 binary"
_USUAL = {"numbers": "native", "photograph": "native", "tensor": _REST}
"""What the others of a work are compared with."""

_SHAPE = (1, 3, 224, 224)
_OCTETS = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Question:
    """What is sent, how, to whose port, and what every right answer holds."""

    transport: Transport
    port: int
    sent: bytes
    text: str
    cpu: Callable[[], Mapping[int, float]]


class ProtocolRate(msgspec.Struct):
    """Of one protocol with so many clients: requests a second, the median of their milliseconds, and the milliseconds
    of a core that all processes of the server took for one."""

    work: str
    protocol: str
    clients: int
    per_second: float
    p50_ms: float
    cpu_ms: float


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


def _binary(port: int, model: str, tensor: Mapping[str, object], data: bytes, output: str) -> bytes:
    head = json.dumps(
        {
            "inputs": [{**tensor, "parameters": {"binary_data_size": len(data)}}],
            "outputs": [{"name": output, "parameters": {"binary_data": True}}],
        }
    ).encode()
    return _request(port, f"/v2/models/{model}/infer", head + data, _OCTETS, header=len(head))


def _call(model: str, tensor: Mapping[str, object], data: bytes, output: str | None) -> bytes:
    asked = message("ModelInferRequest")(model_name=model)
    asked.inputs.add(**tensor)
    asked.raw_input_contents.append(data)
    if output is not None:
        asked.outputs.add(name=output)
    return bytes(asked.SerializeToString())


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the servers listen, and what the processes of each have used. The peer's are `None` without one."""

    rest: int
    grpc: int
    cpu: Callable[[], Mapping[int, float]]
    bare: int
    bare_cpu: Callable[[], Mapping[int, float]]
    peer: tuple[int, int, Callable[[], Mapping[int, float]]] | None


def questions(at: Ports, output: str) -> dict[tuple[str, str], Question]:
    """The questions, by work and protocol. `output`: that of the photographs' network."""
    numbers = {"name": "input", "shape": [1, 4], "datatype": "FP32"}
    packed = struct.pack("<4f", *NUMBERS)
    picture = files("flambeau.ui").joinpath("static", "samples", "chelsea.jpg").read_bytes()
    image = {"name": "images", "shape": [1], "datatype": "BYTES"}
    element = struct.pack("<I", len(picture)) + picture
    floats = np.random.default_rng(0).standard_normal(_SHAPE, np.float32)
    tensor = {"name": "input", "shape": list(_SHAPE), "datatype": "FP32"}

    def json_tensor(tensor: Mapping[str, object], data: list[float]) -> bytes:
        return json.dumps({"inputs": [{**tensor, "data": data}]}).encode()

    few, many = json_tensor(numbers, NUMBERS), json_tensor(tensor, floats.ravel().tolist())
    rest, cat = at.rest, "Egyptian_cat"
    small, large = "/v2/models/net1/infer", "/v2/models/photos/infer"
    found: dict[tuple[str, str], Question] = {}

    def ask(work: str, protocol: str, transport: Transport, sent: bytes, text: str) -> None:
        found[work, protocol] = Question(transport, rest if transport == "rest" else at.grpc, sent, text, at.cpu)

    ask("numbers", "native", "rest", native_request(rest), "output")
    v1 = _request(rest, "/v1/models/net1:predict", json.dumps({"instances": [NUMBERS]}).encode())
    ask("numbers", "v1", "rest", v1, "predictions")
    ask("numbers", "v2 JSON", "rest", _request(rest, small, few), "output")
    ask("numbers", _REST, "rest", _binary(rest, "net1", numbers, packed, "output"), "output")
    ask("numbers", "v2 gRPC", "grpc", _call("net1", numbers, packed, "output"), "output")
    ask("photograph", "native", "rest", _request(rest, "/predict/photos", picture, "image/jpeg"), cat)
    ask("photograph", _REST, "rest", _binary(rest, "photos", image, element, "labels"), cat)
    ask("photograph", "v2 gRPC", "grpc", _call("photos", image, element, "labels"), cat)
    ask("tensor", "v2 JSON", "rest", _request(rest, large, many), output)
    ask("tensor", _REST, "rest", _binary(rest, "photos", tensor, floats.tobytes(), output), output)
    ask("tensor", "v2 gRPC", "grpc", _call("photos", tensor, floats.tobytes(), output), output)
    bare = _call("net1", numbers, packed, "output")
    found["numbers", "bare grpc.aio"] = Question("grpc", at.bare, bare, "output", at.bare_cpu)
    if at.peer is not None:
        http, grpc, cpu = at.peer
        for work, path, text, given, data in (
            ("numbers", small, few, numbers, packed),
            ("tensor", large, many, tensor, floats.tobytes()),
        ):
            model = path.split("/")[3]
            found[work, "MLServer, v2 JSON"] = Question("rest", http, _request(http, path, text), "output", cpu)
            sent = _call(model, given, data, None)
            found[work, "MLServer, gRPC"] = Question("grpc", grpc, sent, "output", cpu)
    return found


@contextlib.contextmanager
def _peer(
    repository: Path, folder: Path, *, wanted: bool
) -> Iterator[tuple[int, int, Callable[[], Mapping[int, float]]] | None]:
    if not wanted:
        yield None
        return
    environments.install("mlserver")
    peer = MlServer(repository, ["net1", "photos"], folder)
    with peer.running() as (server, port, _):
        yield port, peer.grpc_port, server.cpu


@contextlib.contextmanager
def _servers(folder: Path, *, peer: bool) -> Iterator[tuple[Ports, str]]:
    repository, over = small_repository(folder, 4), free_port()
    photographs = build_cache.open_source(SourceOptions(), progress=lambda event: None)
    (repository / "photos").symlink_to(photographs.path)
    beside = folder / "peer"
    beside.mkdir()
    flags = ("--replicas", "1", "--threads", "1", "--grpc-port", str(over))
    server: Server
    with (
        serving(repository, folder, *flags) as (server, port, _),
        callers.echoing() as (bare, echo),
        _peer(repository, beside, wanted=peer) as mlserver,
    ):
        yield (
            Ports(port, over, server.cpu, echo, lambda: {bare: _used(bare)}, mlserver),
            photographs.manifest.outputs[0].name,
        )


def _used(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def _turn(question: Question, wire: Path, *, clients: int, seconds: float) -> tuple[float, float, float]:
    wire.write_bytes(question.sent)
    before = question.cpu()
    turn = callers.run(
        question.transport, question.port, wire, clients=clients, seconds=seconds, text=question.text
    )  # fmt: skip
    used = sum(after - before.get(pid, 0.0) for pid, after in question.cpu().items())
    return turn.per_second, turn.p50_ms, 1000 * used / turn.answers


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Turns of each protocol.")
@click.option("--seconds", default=4.0, show_default=True, type=click.FloatRange(0.5), help="Length of each turn.")
@click.option("--peer", is_flag=True, help="Measure MLServer, too. It is installed first.")
def main(rounds: int, seconds: float, *, peer: bool) -> None:
    """Measure numbers, a photograph and a tensor over every protocol, in turns."""
    windows: dict[tuple[str, str, int], list[tuple[float, float, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="flambeau-protocols-") as name:
        folder = Path(name)
        with _servers(folder, peer=peer) as (at, output):
            for number in range(1, rounds + 1):
                click.echo(f"round {number} of {rounds} ...", err=True)
                for (work, protocol), question in questions(at, output).items():
                    for clients in _CLIENTS:
                        found = _turn(question, folder / "request", clients=clients, seconds=seconds)
                        windows.setdefault((work, protocol, clients), []).append(found)
    rates = [
        ProtocolRate(*key, *(statistics.median(each) for each in zip(*turns, strict=True)))
        for key, turns in windows.items()
    ]
    click.echo("\n".join(_table(rates)))
    click.echo(json.dumps({"rates": msgspec.to_builtins(rates), "machine": machine.describe()}))


def _table(rates: list[ProtocolRate]) -> Iterator[str]:
    rows = {(each.work, each.protocol, each.clients): each for each in rates}
    yield f"{'work':11} {'protocol':18} {'clients':>7} {'requests/s':>10} {'to first':>8} {'p50 ms':>8} {'CPU ms':>7}"
    for each in sorted(rates, key=lambda rate: (list(_USUAL).index(rate.work), rate.clients)):
        ratio = each.per_second / rows[each.work, _USUAL[each.work], each.clients].per_second
        yield (
            f"{each.work:11} {each.protocol:18} {each.clients:7} {each.per_second:10.1f} {ratio:8.2f} "
            f"{each.p50_ms:8.2f} {each.cpu_ms:7.2f}"
        )


if __name__ == "__main__":
    main()
