"""TorchServe's own gRPC by its own stubs, at the real TorchServe and at Flambeau beside it."""

import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2

from benchmarks.torchserve_servers import Running
from flambeau.grpc.descriptors import MANAGEMENT_SERVICE, POOL, TORCHSERVE_SERVICE
from tests.grpc.test_contract import fields, messages
from tests.support.photographs import encoded, photograph
from tests.torchserve.conftest import Stubs

pytestmark = [pytest.mark.torchserve, pytest.mark.timeout(900, func_only=True)]

NEAR = 2e-4


class Called:
    """Both services of one server."""

    def __init__(self, server: Running, stubs: Stubs) -> None:
        options = [("grpc.max_receive_message_length", -1)]
        self.channels = [grpc.insecure_channel(each, options) for each in (server.grpc, server.grpc_management)]
        self.inference = stubs.inference_calls.InferenceAPIsServiceStub(self.channels[0])
        self.management = stubs.management_calls.ManagementAPIsServiceStub(self.channels[1])


@pytest.fixture(scope="module")
def both(theirs: Running, ours: Running, stubs: Stubs) -> Iterator[list[Called]]:
    opened = [Called(each, stubs) for each in (theirs, ours)]
    yield opened
    for each in opened:
        for channel in each.channels:
            channel.close()


@pytest.mark.parametrize("service", [TORCHSERVE_SERVICE, MANAGEMENT_SERVICE])
def test_messages_and_calls_are_those_of_its_files(stubs: Stubs, service: str) -> None:
    file = (stubs.inference if service == TORCHSERVE_SERVICE else stubs.management).DESCRIPTOR
    ours = POOL.FindServiceByName(service)
    theirs = file.services_by_name[ours.name]
    assert ours.file.package == file.package
    assert {name: fields(each) for name, each in messages(ours.file).items()} == {
        name: fields(each) for name, each in messages(file).items()
    }
    assert [
        (each.name, each.input_type.full_name, each.output_type.full_name, each.client_streaming, each.server_streaming)
        for each in sorted(ours.methods, key=lambda each: each.name)
    ] == [
        (each.name, each.input_type.full_name, each.output_type.full_name, each.client_streaming, each.server_streaming)
        for each in sorted(theirs.methods, key=lambda each: each.name)
    ]


def _predicted(each: Called, stubs: Stubs, model: str, **fields: bytes) -> bytes:
    asked = stubs.inference.PredictionsRequest(model_name=model, input=fields)
    prediction: bytes = each.inference.Predictions(asked, timeout=300).prediction
    return prediction


@pytest.mark.parametrize("model", ["classifier", "scripted"])
def test_a_picture(both: list[Called], stubs: Stubs, model: str) -> None:
    cat = encoded(photograph("chelsea"))
    expected, found = (json.loads(_predicted(each, stubs, model, data=cat)) for each in both)
    assert list(found) == list(expected)
    assert list(found.values()) == pytest.approx(list(expected.values()), abs=NEAR)


def test_a_handler_of_rows_and_one_of_fields(both: list[Called], stubs: Stubs) -> None:
    expected, found = (json.loads(_predicted(each, stubs, "rows", data=b"[1, 2, 3]")) for each in both)
    assert found.pop("scores") == pytest.approx(expected.pop("scores"), abs=1e-6)
    assert found == expected
    for fields_ in ({"a": b"1", "b": b"[1]"}, {"body": b"x"}, {"bytes": b"abc"}, {"text": b"bold"}):
        given: dict[str, bytes] = fields_
        expected, found = (_predicted(each, stubs, "functions", **given) for each in both)
        assert (json.loads(found) if found[:1] == b"{" else found) == (
            json.loads(expected) if expected[:1] == b"{" else expected
        )


def test_ping(both: list[Called]) -> None:
    expected, found = (json.loads(each.inference.Ping(empty_pb2.Empty(), timeout=60).health) for each in both)
    assert found == expected


def test_what_is_not_there_fails_at_both(both: list[Called], stubs: Stubs) -> None:
    """TorchServe says INTERNAL to everything; here the status is that of the reason."""
    codes = []
    for each in both:
        with pytest.raises(grpc.RpcError) as caught:
            _predicted(each, stubs, "nobody", data=b"x")
        codes.append(caught.value.code())
    assert codes == [grpc.StatusCode.INTERNAL, grpc.StatusCode.NOT_FOUND]


def test_management(both: list[Called], stubs: Stubs) -> None:
    """What its own client script does: register, look, scale, unregister."""
    pb = stubs.management

    def said(each: Called, call: str, request: str, **given: Any) -> str:
        asked = getattr(pb, request)(**given)
        text: str = getattr(each.management, call)(asked, timeout=300).msg
        return text

    registered = {"url": "plain.mar", "model_name": "again", "initial_workers": 1, "synchronous": True}
    for call, request, given in (
        ("RegisterModel", "RegisterModelRequest", registered),
        ("ScaleWorker", "ScaleWorkerRequest", {"model_name": "again", "min_worker": 2, "synchronous": True}),
        ("SetDefault", "SetDefaultRequest", {"model_name": "again", "model_version": "1.0"}),
    ):
        expected, found = (said(each, call, request, **given) for each in both)
        assert found == expected
    described = [json.loads(said(each, "DescribeModel", "DescribeModelRequest", model_name="again")) for each in both]
    for name in ("modelName", "modelVersion", "modelUrl", "minWorkers", "maxWorkers", "batchSize", "runtime"):
        assert described[1][0][name] == described[0][0][name]
    assert set(described[0][0]) - set(described[1][0]) <= {"responseTimeout", "maxRetryTimeoutInSec",
        "clientTimeoutInMills", "parallelType", "parallelLevel", "deviceType", "continuousBatching",
        "useJobTicket", "useVenv", "stateful", "sequenceMaxIdleMSec", "sequenceTimeoutMSec",
        "maxNumSequence", "maxSequenceJobQueueSize"}  # fmt: skip
    lists = [json.loads(said(each, "ListModels", "ListModelsRequest", limit=100)) for each in both]
    assert [each["modelName"] for each in lists[1]["models"]] == sorted(
        each["modelName"] for each in lists[0]["models"]
    )
    expected, found = (said(each, "UnregisterModel", "UnregisterModelRequest", model_name="again") for each in both)
    assert found == expected
