"""Flambeau as a Ray Serve application, in a real cluster, from `flambeau deploy ray` on: `make test-cluster`."""

import contextlib
import os
import queue
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flambeau.http import tokens
from tests.support.server import FLAMBEAU, free_port

ray = pytest.importorskip("ray")
pytest.importorskip("ray.serve")
grpc = pytest.importorskip("grpc")

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]  # Ray's own

_START_SECONDS = 220.0


@dataclass(frozen=True, slots=True)
class Application:
    """A running application: what its proxies listen on."""

    url: str
    target: str
    token: str
    process: "subprocess.Popen[bytes]"
    network: Any
    """What `several` computes."""

    @property
    def headers(self) -> dict[str, str]:
        """What a request has to have."""
        return {"authorization": f"Bearer {self.token}"}


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    """The models of `tests.support.grpc_server`, served by `serve run` from the file of `flambeau deploy ray`."""
    from chaos.cluster.nodes import Nodes
    from tests.support import grpc_server

    folder = tmp_path_factory.mktemp("serve")
    network = grpc_server.write(folder / "repository")
    port, grpc_port, token = free_port(), free_port(), tokens.fresh()
    (folder / "tokens").write_text(f"infer {token}\n")
    (folder / "tokens").chmod(0o600)
    with Nodes(1, cpus=4) as nodes:
        environment = dict(os.environ, RAY_ADDRESS=nodes.address, FLAMBEAU_CACHE=str(folder / "cache"))
        subprocess.run(
            [
                *map(str, FLAMBEAU), "deploy", "ray", str(folder / "repository"), "--allow-code", "--replicas", "1",
                "--port", str(port), "--grpc-port", str(grpc_port), "--tokens-file", str(folder / "tokens"), "-o",
                str(folder / "serve.yaml"),
            ],
            check=True,
        )  # fmt: skip
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "ray.serve.scripts", "run", str(folder / "serve.yaml")],
                env=environment, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            made = Application(f"http://127.0.0.1:{port}", f"127.0.0.1:{grpc_port}", token, process, network)
            _await(made, folder / "log")
            yield made
        finally:
            process.terminate()
            process.wait()


def _await(application: Application, log: Path) -> None:
    import requests

    until = time.monotonic() + _START_SECONDS
    while True:
        with contextlib.suppress(requests.ConnectionError, requests.Timeout):
            if requests.get(f"{application.url}/readyz", timeout=5).status_code == 200:
                return
        assert application.process.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < until, log.read_text()[-4000:]
        time.sleep(0.2)


@pytest.fixture
def client(application: Application) -> Iterator[Any]:
    import tritonclient.grpc as triton

    with triton.InferenceServerClient(application.target) as made:
        yield made


def test_triton_s_client_is_answered_through_serve_s_proxy(application: Application, client: Any) -> None:
    from tests.support.grpc_server import assert_right, inputs, rows

    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata(headers=application.headers).name == "flambeau"
    arrays = rows(5)
    found = client.infer("several", inputs(arrays), request_id="my own", headers=application.headers)
    assert_right(application.network, arrays, found)
    assert (found.get_response().id, found.get_response().model_version) == ("my own", "2")


def test_a_large_message_comes_through(application: Application, client: Any) -> None:
    from tests.support.grpc_server import inputs, rows

    arrays = rows(40_000)
    found = client.infer("several", inputs(arrays), headers=application.headers)
    assert len(found.as_numpy("sums")) == 40_000


def test_refusals_have_their_status_and_their_code(application: Application, client: Any) -> None:
    import tritonclient.grpc as triton

    from tests.support.grpc_server import inputs, rows, stub

    with pytest.raises(triton.InferenceServerException, match="token") as refused:
        client.infer("several", inputs(rows(1)))
    assert str(refused.value.status()) == "StatusCode.UNAUTHENTICATED"
    with grpc.insecure_channel(application.target) as channel:
        from tritonclient.grpc import service_pb2

        with pytest.raises(grpc.RpcError) as missing:
            stub(channel, "ModelMetadata")(
                service_pb2.ModelMetadataRequest(name="nothing"), metadata=tuple(application.headers.items())
            )
        error: Any = missing.value
        assert error.code() is grpc.StatusCode.NOT_FOUND
        trailing = dict(error.trailing_metadata())
        assert trailing["error-code"] == "model_not_found"
        with pytest.raises(grpc.RpcError) as broken:
            stub(channel, "ModelInfer", raw=True)(b"\xff\xff", metadata=tuple(application.headers.items()))
        error = broken.value
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_stream_is_answered_message_by_message(application: Application, client: Any) -> None:
    from tests.support.grpc_server import sleeping

    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)), headers=application.headers)
    for number in range(20):
        client.async_stream_infer("sleepy", sleeping(0.0, f"item {number}"), request_id=str(number))
    client.async_stream_infer("nothing", sleeping(0.0), request_id="refused")
    seen: dict[str, bytes] = {}
    refused = []
    for _ in range(21):
        result, error = answers.get(timeout=30)
        if error is not None:
            refused.append(str(error))
        else:
            [text] = result.as_numpy("output").ravel()
            seen[result.get_response().id] = text
    client.stop_stream()
    assert seen == {str(number): f'"item {number}"'.encode() for number in range(20)}
    assert len(refused) == 1
    assert "no model of that name" in refused[0]


def test_a_client_that_gives_up_is_not_computed_for(application: Application, client: Any) -> None:
    """Its request waits behind another, and a third is answered after both."""
    import tritonclient.grpc as triton

    from tests.support.grpc_server import sleeping

    def computed() -> int:
        found = client.get_inference_statistics("sleepy", headers=application.headers)
        return int(found.model_stats[0].inference_count)

    before = computed()
    done: queue.Queue[Any] = queue.Queue()
    client.async_infer(
        "sleepy", sleeping(4.0), lambda result, error: done.put((result, error)), headers=application.headers
    )
    with pytest.raises(triton.InferenceServerException, match="Deadline"):
        client.infer("sleepy", sleeping(4.0, "dropped"), client_timeout=2.0, headers=application.headers)
    assert done.get(timeout=30)[1] is None
    client.infer("sleepy", sleeping(0.0), headers=application.headers)
    assert computed() == before + 2


def test_health_checks_and_reflection_are_what_tools_ask(application: Application) -> None:
    from google.protobuf import descriptor_pb2
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    from flambeau.grpc.descriptors import message

    checked, asked = message("HealthCheckResponse", "grpc.health.v1"), message("HealthCheckRequest", "grpc.health.v1")
    with grpc.insecure_channel(application.target) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check", asked.SerializeToString, checked.FromString)
        assert check(asked()).status == checked.SERVING
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(database.get_services())
        file: descriptor_pb2.FileDescriptorProto = database.FindFileContainingSymbol("inference.GRPCInferenceService")
        assert "ModelInferRequest" in {each.name for each in file.message_type}
