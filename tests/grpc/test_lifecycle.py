"""gRPC from the start of the server to its end: what starts it, what it survives, and that its end loses nothing."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

import flambeau
from chaos import proc
from flambeau.errors import ConfigError
from tests.support.grpc_server import SERVICE, GrpcServer, assert_right, grpc_serving, inputs, message, rows, stub
from tests.support.server import FLAMBEAU, Serve, free_port, run_flambeau
from tests.support.tensor_bundles import Several

WITHOUT_PROTOBUF = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "google":
            raise ImportError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from flambeau.__main__ import main
main()
"""


@pytest.fixture
def running(serve: Serve, network: Several) -> Iterator[GrpcServer]:
    with grpc_serving(serve, network.bundle.path) as started:
        yield started


class Load:
    """Clients that ask one request after the other, each on a channel of its own, until they cannot connect."""

    def __init__(self, server: GrpcServer, network: Several, clients: int) -> None:
        self.counts: Counter[str] = Counter()
        self._server, self._network = server, network
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]

    def __enter__(self) -> "Load":
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for each in self._threads:
            each.join()

    def _ask(self, number: int) -> None:
        seed = 1000 * number
        with self._server.channel() as channel:
            call = stub_of(channel)
            while not self._over.is_set():
                arrays = rows(1, seed := seed + 1)
                try:
                    found = call(message(arrays, id=str(seed)), timeout=30)
                except grpc.RpcError as error:
                    refused = "failed to connect" in error.details() or "refused" in error.details().lower()
                    self.counts["refused" if refused else f"{error.code().name} {error.details()}"] += 1
                    if refused:
                        return
                    continue
                scores = np.frombuffer(found.raw_output_contents[1], np.float32)
                right = self._network.answers(arrays)["scores"][0]
                own = found.id == str(seed) and np.allclose(scores, right, rtol=1e-5, atol=1e-5)
                self.counts["ok" if own else "WRONG"] += 1


def stub_of(channel: grpc.Channel) -> Any:
    from tritonclient.grpc import service_pb2

    return channel.unary_unary(
        SERVICE + "ModelInfer", request_serializer=service_pb2.ModelInferRequest.SerializeToString,
        response_deserializer=service_pb2.ModelInferResponse.FromString,
    )  # fmt: skip


def test_a_worker_that_is_killed_costs_no_call_f01(running: GrpcServer, network: Several) -> None:
    with Load(running, network, 8) as load:
        for kills in range(1, 4):
            running.http.wait_until(lambda: load.counts["ok"] > 100 * kills, within=60)  # noqa: B023 (called here)
            for pid in proc.children(running.http.process.pid):
                os.kill(pid, signal.SIGKILL)
        running.http.wait_until(lambda: load.counts["ok"] > 400, within=60)
    assert set(load.counts) == {"ok"}
    assert len(running.lines("worker lost")) == 3


def test_the_end_of_the_server_costs_no_call_f19(running: GrpcServer, network: Several) -> None:
    with Load(running, network, 8) as load:
        running.http.wait_until(lambda: load.counts["ok"] > 100, within=60)
        running.http.process.send_signal(signal.SIGTERM)
        assert running.http.process.wait(30) == 0
    assert set(load.counts) <= {"ok", "refused"}
    assert not running.lines("Traceback")


def test_an_open_stream_does_not_hold_up_the_end_f19(running: GrpcServer, network: Several) -> None:
    answers: list[Any] = []
    with triton.InferenceServerClient(running.target) as client:
        client.start_stream(lambda result, error: answers.append((result, error)))
        client.async_stream_infer("several", inputs(rows(1)), request_id="1")
        running.http.wait_until(lambda: answers, within=30)
        began = time.monotonic()
        running.http.process.send_signal(signal.SIGTERM)
        assert running.http.process.wait(30) == 0
        assert time.monotonic() - began < 10
        assert_right(network, rows(1), answers[0][0])
        assert "the server is stopping" in str(answers[1][1])


@pytest.mark.long
def test_grpc_is_not_there_unless_it_is_asked_for(serve_anew: Serve, network: Several) -> None:
    """Nothing of it is loaded without --grpc-port; with it, a missing extra is told with its remedy."""
    with serve_anew(network.bundle.path) as server:
        maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "uvloop" in maps
    assert "google/_upb" not in maps
    without = [sys.executable, "-c", WITHOUT_PROTOBUF, "serve", str(network.bundle.path), "--grpc-port", free_port()]
    told = subprocess.run(without, capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == 78
    assert "needs the package protobuf: " in told.stderr
    assert "pip install" in told.stderr
    assert "[grpc]" in told.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence", "code"),
    [
        (lambda taken: ("--grpc-port", taken), "take another --grpc-port", 69),
        (lambda _: ("--port", "7000", "--grpc-port", "7000"), "HTTP and gRPC need a port each", 78),
        (lambda _: ("--host", "unix:x.sock", "--grpc-port", "7000"), "needs a --host that has ports", 78),
    ],
)
def test_a_port_that_cannot_be_is_told_before_anything_loads(
    server: GrpcServer, network: Several, tmp_path: Path, arguments: Callable[[str], tuple[str, ...]], sentence: str,
    code: int,
) -> None:  # fmt: skip
    given = arguments(server.target.rpartition(":")[2])
    if "--port" not in given:
        given = (*given, "--port", "0")
    told = run_flambeau("serve", network.bundle.path, *given, cwd=tmp_path)
    assert (told.returncode, sentence in told.stderr) == (code, True), told.stderr
    assert "models opened" not in told.stderr


def test_an_application_does_not_take_the_setting_in_silence(network: Several) -> None:
    with pytest.raises(ConfigError, match="only flambeau serve listens for gRPC"):
        flambeau.create_app(str(network.bundle.path), grpc_port=7000)


def test_tls_is_that_of_the_server(serve: Serve, network: Several, tmp_path: Path) -> None:
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", "key.pem", "-out",
         "cert.pem"], cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    files = ("--tls-certificate", tmp_path / "cert.pem", "--tls-key", tmp_path / "key.pem")
    with grpc_serving(serve, network.bundle.path, *files) as started:
        with triton.InferenceServerClient(
            started.target, ssl=True, root_certificates=str(tmp_path / "cert.pem")
        ) as client:
            assert_right(network, rows(2), client.infer("several", inputs(rows(2))))
        with started.channel() as plain, pytest.raises(grpc.RpcError) as refused:
            stub(plain, "ServerLive", raw=True)(b"", timeout=10)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_message_that_does_not_come_ends_its_call(serve: Serve, network: Several) -> None:
    never = threading.Event()

    def nothing() -> Iterator[bytes]:
        never.wait(20)
        yield b""

    with (
        grpc_serving(serve, network.bundle.path, "--deadline", "0.3") as started,
        started.channel() as channel,
        pytest.raises(grpc.RpcError) as refused,
    ):
        channel.stream_unary(SERVICE + "ModelInfer")(nothing())
    never.set()
    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert dict(refused.value.trailing_metadata())["error-code"] == "client_too_slow"


def test_the_address_is_announced(server: GrpcServer) -> None:
    assert f"gRPC: {server.target}" in server.http.output()


@pytest.mark.long
def test_it_runs_without_uvloop(network: Several, tmp_path: Path) -> None:
    """asyncio's own loop, as on Windows."""
    port = free_port()
    hidden = "import sys\nsys.modules['uvloop'] = None\nfrom flambeau.__main__ import main\nmain()\n"
    from tests.support.server import started

    command = [FLAMBEAU[0], "-c", hidden, "serve", network.bundle.path, "--port", "0", "--grpc-port", port]
    with started([*command, "--replicas", "1"], tmp_path) as http:
        assert "uvloop" not in Path(f"/proc/{http.process.pid}/maps").read_text()
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            assert_right(network, rows(3), client.infer("several", inputs(rows(3))))
