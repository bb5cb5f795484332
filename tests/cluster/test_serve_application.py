"""Flambeau as a Ray Serve application, in a real cluster, from `flambeau deploy ray` on: `make test-cluster`."""

import os
import queue
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from tests.support.serve_application import START_SECONDS, Application, served

ray = pytest.importorskip("ray")
pytest.importorskip("ray.serve")
grpc = pytest.importorskip("grpc")

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]  # Ray's own


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    with served(tmp_path_factory.mktemp("serve")) as made:
        yield made


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


def test_replicas_are_on_both_nodes_and_the_front_has_no_torch(application: Application) -> None:
    assert sorted(application.view("/models/several/2")["nodes"].values()) == [1, 1]
    [front] = application.nodes.hosts("plain")  # what Serve calls a replica
    assert "libtorch" not in Path(f"/proc/{front}/maps").read_text()


def test_models_tell_of_themselves(application: Application, client: Any) -> None:
    from tritonclient.utils import InferenceServerException

    told = client.get_model_metadata("several", headers=application.headers)
    assert [(each.name, each.datatype) for each in told.inputs] == [("a", "FP32"), ("b", "INT64")]
    assert list(told.versions) == ["2"]
    assert client.is_model_ready("several", headers=application.headers)
    assert client.is_model_ready("several", "2", headers=application.headers)
    with pytest.raises(InferenceServerException, match="no such version"):
        client.is_model_ready("several", "7", headers=application.headers)


def test_metrics_are_ours_at_the_application_and_serves_at_each_node(application: Application) -> None:
    """Serve's are there some seconds after what they count."""
    as_admin = {"authorization": f"Bearer {application.admin}"}
    ours = requests.get(f"{application.url}/metrics", headers=as_admin, timeout=30).text
    assert re.search(r'^flambeau_\w+{.*model="several".*} [1-9]', ours, re.MULTILINE), ours
    until, theirs, exporters = time.monotonic() + 60, "", application.nodes.exporters()
    while not re.search(r"^ray_serve_num_grpc_requests\w*{.*} [1-9]", theirs, re.MULTILINE):
        assert time.monotonic() < until, sorted({line.split("{")[0] for line in theirs.splitlines()})
        time.sleep(1)
        theirs = "\n".join(requests.get(f"{each}/metrics", timeout=30).text for each in exporters)


def contents(arrays: dict[str, Any]) -> Any:
    """A `ModelInferRequest` whose numbers are fields of the message, as clients without tritonclient write them."""
    from tests.support.grpc_server import message

    asked = message(arrays)
    del asked.raw_input_contents[:]
    for each in asked.inputs:
        field = {"FP32": each.contents.fp32_contents, "INT64": each.contents.int64_contents}[each.datatype]
        field.extend(arrays[each.name].ravel().tolist())
    return asked


def assert_same(network: Any, arrays: dict[str, Any], found: Any) -> None:
    """Compare a `ModelInferResponse` with PyTorch's own numbers."""
    import tritonclient.grpc as triton

    from tests.support.grpc_server import assert_right

    assert_right(network, arrays, triton.InferResult(found))


def test_numbers_in_the_fields_of_a_message_are_answered_as_raw_ones_are(application: Application) -> None:
    from tests.support.grpc_server import message, rows, stub

    arrays = rows(3)
    with grpc.insecure_channel(application.target) as channel:
        infer = stub(channel, "ModelInfer")
        for asked in (contents(arrays), message(arrays)):
            found = infer(asked, metadata=tuple(application.headers.items()), timeout=60)
            assert_same(application.network, arrays, found)


def _asked(**more: Any) -> bytes:
    from tests.support.grpc_server import message, rows

    made = message(rows(2), **more)
    return bytes(made.SerializeToString())


def _named(**names: str) -> bytes:
    from tritonclient.grpc import service_pb2

    return bytes(service_pb2.ModelMetadataRequest(**names).SerializeToString())


def _misshapen() -> bytes:
    from tests.support.grpc_server import message

    made = message({"a": np.zeros((1, 5), np.float32), "b": np.zeros((1, 2, 3), np.int64)})
    return bytes(made.SerializeToString())


def _too_little() -> bytes:
    from tritonclient.grpc import service_pb2

    made = service_pb2.ModelInferRequest(model_name="sleepy")
    value = made.inputs.add(name="input", datatype="BYTES", shape=[1])
    value.contents.bytes_contents.append(b"{}")
    return bytes(made.SerializeToString())


REFUSED = {
    "no model": ("ModelMetadata", lambda: _named(name="nothing"), "NOT_FOUND", "model_not_found"),
    "no version": ("ModelMetadata", lambda: _named(name="several", version="7"), "NOT_FOUND", "version_not_found"),
    "not a message": ("ModelInfer", lambda: b"\xff\xff", "INVALID_ARGUMENT", "bad_request"),
    "another version": ("ModelInfer", lambda: _asked(model_version="7"), "NOT_FOUND", "version_not_found"),
    "another shape": ("ModelInfer", _misshapen, "INVALID_ARGUMENT", "invalid_tensor"),
    "what its model fails on": ("ModelInfer", _too_little, "INTERNAL", "model_error"),
}
"""By what is wrong: the method, its message, and the status and the code that it is refused with."""


@pytest.mark.parametrize("wrong", REFUSED)
def test_refusals_have_their_status_and_their_code(application: Application, wrong: str) -> None:
    from tests.support.grpc_server import stub

    method, make, status, code = REFUSED[wrong]
    with grpc.insecure_channel(application.target) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            stub(channel, method, raw=True)(make(), metadata=tuple(application.headers.items()), timeout=60)
        error: Any = refused.value
        assert (error.code().name, dict(error.trailing_metadata())["error-code"]) == (status, code), error.details()


def test_nobody_is_answered_without_a_token(application: Application, client: Any) -> None:
    import tritonclient.grpc as triton

    from tests.support.grpc_server import inputs, rows

    with pytest.raises(triton.InferenceServerException, match="token") as refused:
        client.infer("several", inputs(rows(1)))
    assert str(refused.value.status()) == "StatusCode.UNAUTHENTICATED"


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
    """Its request waits while both replicas are busy, and what is asked afterwards is answered."""
    import tritonclient.grpc as triton

    from tests.support.grpc_server import sleeping

    def computed() -> int:
        found = client.get_inference_statistics("sleepy", headers=application.headers)
        return sum(int(each.inference_count) for each in found.model_stats)

    before = computed()
    done: queue.Queue[Any] = queue.Queue()
    for _ in range(2):
        client.async_infer(
            "sleepy", sleeping(4.0), lambda result, error: done.put((result, error)), headers=application.headers
        )
    with pytest.raises(triton.InferenceServerException, match="Deadline") as late:
        client.infer("sleepy", sleeping(4.0, "dropped"), client_timeout=2.0, headers=application.headers)
    assert str(late.value.status()) == "StatusCode.DEADLINE_EXCEEDED"
    for _ in range(2):
        assert done.get(timeout=30)[1] is None
    client.infer("sleepy", sleeping(0.0), headers=application.headers)
    assert computed() == before + 3


def test_replicas_that_are_killed_under_calls_cost_none_of_them(application: Application) -> None:
    """kill -9 of six hosts, each when forty calls were answered since the one before; every answer is compared."""
    answered: list[int] = []
    failed: list[str] = []
    over = threading.Event()

    def ask(seed: int) -> None:
        from tests.support.grpc_server import message, rows, stub

        rng = random.Random(seed)
        with grpc.insecure_channel(application.target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            infer = stub(channel, "ModelInfer")
            while not over.is_set():
                arrays = rows(rng.randrange(1, 4), seed=rng.randrange(1 << 30))
                asked = rng.choice((contents, message))(arrays)
                try:
                    found = infer(asked, metadata=tuple(application.headers.items()), timeout=90)
                    assert_same(application.network, arrays, found)
                    answered.append(seed)
                except (grpc.RpcError, AssertionError) as error:
                    failed.append(str(error))

    def more(count: int) -> None:
        """Return when so many more were answered, or one was not."""
        target, end = len(answered) + count, time.monotonic() + START_SECONDS
        while len(answered) < target and not failed:
            assert time.monotonic() < end, f"{len(answered)} were answered"
            time.sleep(0.01)

    asking = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    rng = random.Random(1)
    before = _lost(application)
    for each in asking:
        each.start()
    try:
        for _ in range(6):
            more(40)
            os.kill(rng.choice(application.nodes.hosts("flambeau")), signal.SIGKILL)
        more(80)
    finally:
        over.set()
        for each in asking:
            each.join()
    assert failed == []
    assert _lost(application) > before


def _lost(application: Application) -> int:
    """How many replicas were lost, as the models' views tell."""
    views = (application.view(f"/models/{each}") for each in ("several/2", "sleepy/1"))
    return sum(sum(view.get("restarts", {}).values()) for view in views)


def test_health_checks_and_reflection_are_what_tools_ask(application: Application) -> None:
    from google.protobuf import descriptor_pb2
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    from flambeau.grpc.descriptors import message

    checked, asked = message("HealthCheckResponse", "grpc.health.v1"), message("HealthCheckRequest", "grpc.health.v1")
    with grpc.insecure_channel(application.target) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check", asked.SerializeToString, checked.FromString)
        until = time.monotonic() + START_SECONDS  # the replicas that another test has killed come again
        while check(asked()).status != checked.SERVING:
            assert time.monotonic() < until
            time.sleep(0.2)
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(database.get_services())
        file: descriptor_pb2.FileDescriptorProto = database.FindFileContainingSymbol("inference.GRPCInferenceService")
        assert "ModelInferRequest" in {each.name for each in file.message_type}
