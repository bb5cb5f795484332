"""TorchServe's own gRPC, called as stubs of its files call it: predictions, streams of them, and management.

`make test-torchserve` compares the messages with TorchServe's files, and the answers with its own.
"""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests

from flambeau.bundle.storage import Activation
from flambeau.grpc.descriptors import (
    MANAGEMENT_SERVICE,
    POOL,
    TORCHSERVE_SERVICE,
    message,
)
from tests.support import archives, task_models
from tests.support.archives import write_mar
from tests.support.photographs import encoded, photograph
from tests.support.server import FLAMBEAU, ServerProcess, free_port, started

LABELS = ("cat", "dog", "bird", "fish", "horse", "cow")


class Stub:
    """The calls of a service by name, each with its message's fields as arguments."""

    def __init__(self, channel: grpc.Channel, service: str) -> None:
        self._channel = channel
        self._service = POOL.FindServiceByName(service)

    def __getattr__(self, name: str) -> Any:
        method = self._service.methods_by_name[name]
        kind = ("stream" if method.client_streaming else "unary") + ("_stream" if method.server_streaming else "_unary")
        request, response = (message(each.name, each.file.package) for each in (method.input_type, method.output_type))
        call = getattr(self._channel, kind)(
            f"/{self._service.full_name}/{name}", request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )  # fmt: skip
        if method.client_streaming:
            return lambda several, **more: call((request(**each) for each in several), **more)
        return lambda metadata=(), **fields: call(request(**fields), timeout=60, metadata=metadata)


class Running:
    """A server with its two addresses for gRPC."""

    def __init__(self, http: ServerProcess, ports: tuple[str, str]) -> None:
        self.http = http
        self.channels = [grpc.insecure_channel(f"127.0.0.1:{port}") for port in ports]
        self.inference = Stub(self.channels[0], TORCHSERVE_SERVICE)
        self.management_at_inference, self.management = (Stub(channel, MANAGEMENT_SERVICE) for channel in self.channels)

    def predict(self, model: str, version: str = "", **fields: bytes) -> bytes:
        """The answer of `Predictions`."""
        found = self.inference.Predictions(model_name=model, model_version=version, input=fields)
        prediction: bytes = found.prediction
        return prediction


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    write_mar(folder / "functions.mar", {"modelName": "functions", "handler": "functions.py:handle"},
              {"functions.py": archives.FUNCTIONS})  # fmt: skip
    write_mar(folder / "plain.mar", {"modelName": "plain", "handler": "plain.py"}, {"plain.py": archives.PLAIN_CLASS})
    return folder


@pytest.fixture(scope="module")
def running(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("torchserve-grpc")
    task_models.make(
        folder / "pictures", task_models.network(6), task="classification", labels=LABELS,
        activation=Activation("softmax", known="said"), pipeline=task_models.PREPARATION,
    )  # fmt: skip
    ports = free_port(), free_port()
    command = [
        *FLAMBEAU, "serve", f"functions={store / 'functions.mar'}", f"pictures={folder / 'pictures'}", "--port", "0",
        "--allow-code", "--model-store", store, "--grpc-port", ports[0], "--replicas", "1",
        "--grpc-management-address", f"127.0.0.1:{ports[1]}",
    ]  # fmt: skip
    with started(command, folder, anew=False) as http:
        found = Running(http, ports)
        yield found
        for channel in found.channels:
            channel.close()


def failed(code: str, words: str) -> Any:
    """A call that ends with that status, and says so."""
    return pytest.raises(grpc.RpcError, match=rf"(?s)StatusCode\.{code}.*{words}")


# Predictions


def test_a_picture_is_answered_as_over_rest(running: Running) -> None:
    cat = encoded(photograph("chelsea"))
    rest = requests.put(f"{running.http.url}/predictions/pictures", data=cat, timeout=60).content
    assert len(cat) > 64 * 1024
    assert running.predict("pictures", data=cat) == rest
    assert running.predict("pictures", "1", body=cat) == rest
    assert (
        running.predict("pictures", data=cat, body=b"none") == running.predict("pictures", body=b"", data=cat) == rest
    )
    form = [("data", ("a", cat)), ("body", ("b", b"none"))]
    assert requests.put(f"{running.http.url}/predictions/pictures", files=form, timeout=60).content == rest
    assert len(json.loads(rest)) == 5


def test_a_handler_gets_the_fields_by_name(running: Running) -> None:
    asked = running.inference.Predictions(
        model_name="functions", input={"a": b"1", "b": b"[1]"},
        metadata=(("x-client", "old"), ("authorization", "Bearer secret")),
    )  # fmt: skip
    found = json.loads(asked.prediction)
    assert (found["keys"], found["kinds"]) == (["a", "b"], ["bytearray", "bytearray"])
    assert (found["id"], found["agent"], found["token"], found["loaded"]) == (True, None, None, 1)
    assert running.predict("functions", bytes=b"abc") == b"cba"
    assert running.predict("functions", text=b"bold") == b"<b>bold</b>"


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        ({"model_name": "nobody", "input": {"data": b"x"}}, "NOT_FOUND", "no model of that name"),
        ({"model_name": "functions", "model_version": "9"}, "NOT_FOUND", "version"),
        ({"input": {"data": b"x"}}, "INVALID_ARGUMENT", "model_name is required"),
        ({"model_name": "pictures", "input": {"data": b"no picture"}}, "INVALID_ARGUMENT", "image"),
        ({"model_name": "pictures", "input": {"other": b"x"}}, "INVALID_ARGUMENT", "no field data"),
        ({"model_name": "pictures", "input": {"data": b""}}, "INVALID_ARGUMENT", "empty"),
        ({"model_name": "functions", "input": {"status": b"404"}}, "NOT_FOUND", "told"),
        ({"model_name": "functions", "input": {"status": b"422"}}, "INVALID_ARGUMENT", "told"),
        ({"model_name": "functions", "input": {"status": b"520"}}, "INTERNAL", "told"),
        ({"model_name": "functions", "input": {f"f{n}": b"" for n in range(5000)}}, "RESOURCE_EXHAUSTED", "fields"),
    ],
)
def test_a_failure_has_the_status_of_its_reason(running: Running, asked: dict[str, Any], code: str, words: str) -> None:
    with failed(code, words):
        running.inference.Predictions(**asked)


def test_a_stream_has_one_answer_and_ends(running: Running) -> None:
    [found] = running.inference.StreamPredictions(model_name="functions", input={"bytes": b"abc"})
    assert (found.prediction, found.HasField("sequence_id")) == (b"cba", False)
    with failed("NOT_FOUND", "no model"):
        list(running.inference.StreamPredictions(model_name="nobody", input={"bytes": b"abc"}))


def test_messages_of_a_sequence_are_answered_in_order_and_fail_alone(running: Running) -> None:
    cat = encoded(photograph("chelsea").resize((90, 60)))
    one = {"model_name": "pictures", "input": {"data": cat}, "sequence_id": "s"}
    asked = [
        one,
        {**one, "input": {"data": b"no"}},
        {**one, "sequence_id": ""},
        {**one, "model_name": "functions"},
        one,
    ]
    found = list(running.inference.StreamPredictions2(asked))
    assert [each.status.code for each in found] == [0, 3, 3, 12, 0]
    assert found[0].prediction == found[4].prediction == running.predict("pictures", data=cat)
    assert (found[0].sequence_id, found[0].HasField("status")) == ("s", False)
    assert "Predictions" in found[3].status.message


def test_ping_and_the_counts(running: Running) -> None:
    assert json.loads(running.inference.Ping().health) == {"status": "Healthy"}
    assert running.predict("functions", bytes=b"abc") == b"cba"
    text = requests.get(f"{running.http.url}/metrics", timeout=60).text
    assert 'flambeau_requests_total{model="functions",protocol="torchserve",status="200"' in text
    assert "gRPC Predictions" in running.http.log()


# Management


def test_an_archive_is_registered_scaled_and_unregistered(running: Running) -> None:
    manage = running.management
    said = manage.RegisterModel(url="plain.mar", model_name="other", initial_workers=1, synchronous=True, batch_size=2)
    assert said.msg == 'Model "other" Version: 1.0 registered with 1 initial workers'
    assert running.predict("other", data=b"x").startswith(b"plain")
    [shown] = json.loads(manage.DescribeModel(model_name="other").msg)
    assert (shown["modelName"], shown["minWorkers"], shown["batchSize"]) == ("other", 1, 2)
    names = [each["modelName"] for each in json.loads(manage.ListModels().msg)["models"]]
    assert names == ["functions", "other", "pictures"]
    page = json.loads(manage.ListModels(limit=1, next_page_token=1).msg)
    assert ([each["modelName"] for each in page["models"]], page["nextPageToken"]) == (["other"], "2")
    said = manage.ScaleWorker(model_name="other", min_worker=2, synchronous=True)
    assert said.msg == "Workers scaled to 2 for model: other"
    [shown] = json.loads(manage.DescribeModel(model_name="other", model_version="all").msg)
    assert len(shown["workers"]) == 2
    said = manage.SetDefault(model_name="other", model_version="1.0")
    assert said.msg == 'Default version successfully updated for model "other" to "1.0"'
    assert manage.UnregisterModel(model_name="other").msg == 'Model "other" unregistered'
    with failed("NOT_FOUND", "no model"):
        running.predict("other", data=b"x")


def test_a_registration_without_workers_is_told(running: Running) -> None:
    assert (
        "registered with 0 initial workers" in running.management.RegisterModel(url="plain.mar", model_name="idle").msg
    )
    assert running.management.ScaleWorker(model_name="idle").msg == "Processing worker updates..."
    assert running.management.UnregisterModel(model_name="idle").msg == 'Model "idle" unregistered'


@pytest.mark.parametrize(
    ("call", "asked", "code", "words"),
    [
        ("RegisterModel", {}, "INVALID_ARGUMENT", "url is required"),
        ("RegisterModel", {"url": "../x.mar"}, "NOT_FOUND", "not allowed"),
        ("RegisterModel", {"url": "plain.mar", "handler": "other.py"}, "INVALID_ARGUMENT", "archive's own, plain.py"),
        ("ScaleWorker", {"model_name": "functions", "min_worker": 5000}, "INVALID_ARGUMENT", "at most"),
        ("RegisterModel", {"url": "https://x.example/y.mar"}, "PERMISSION_DENIED", "nothing is fetched"),
        ("UnregisterModel", {}, "INVALID_ARGUMENT", "model_name is required"),
        ("DescribeModel", {"model_name": "nobody"}, "NOT_FOUND", "no model"),
        (
            "ScaleWorker",
            {"model_name": "functions", "min_worker": 3, "max_worker": 2},
            "INVALID_ARGUMENT",
            "max_worker",
        ),
    ],
)
def test_what_is_not_managed_says_why(
    running: Running, call: str, asked: dict[str, Any], code: str, words: str
) -> None:
    with failed(code, words):
        getattr(running.management, call)(**asked)


def test_nothing_is_managed_at_the_address_of_predictions(running: Running) -> None:
    assert json.loads(running.management_at_inference.ListModels().msg)["models"]
    with failed("PERMISSION_DENIED", "nothing is managed at this address"):
        running.management_at_inference.UnregisterModel(model_name="functions")
    load = running.channels[0].unary_unary("/inference.GRPCInferenceService/RepositoryModelUnload")
    with failed("PERMISSION_DENIED", "nothing is managed at this address"):
        load(message("RepositoryModelUnloadRequest")(model_name="functions").SerializeToString())


def test_tokens_are_asked_for(store: Path, tmp_path: Path) -> None:
    port = free_port()
    token = {scope: secrets.token_urlsafe(32) for scope in ("infer", "admin")}
    (tmp_path / "tokens").write_text("".join(f"{scope} {text}\n" for scope, text in token.items()))
    (tmp_path / "tokens").chmod(0o600)
    command = [
        *FLAMBEAU, "serve", f"plain={store / 'plain.mar'}", "--port", "0", "--allow-code", "--model-store", store,
        "--grpc-port", port, "--tokens-file", tmp_path / "tokens",
    ]  # fmt: skip
    with started(command, tmp_path, anew=False) as http:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            inference, management = Stub(channel, TORCHSERVE_SERVICE), Stub(channel, MANAGEMENT_SERVICE)
            bearer = {scope: (("authorization", f"Bearer {text}"),) for scope, text in token.items()}
            assert "Healthy" in inference.Ping().health
            with failed("UNAUTHENTICATED", "token"):
                inference.Predictions(model_name="plain", input={"data": b"x"})
            found = inference.Predictions(model_name="plain", input={"data": b"x"}, metadata=bearer["infer"])
            assert found.prediction == b"plain 1"
            with failed("PERMISSION_DENIED", "admin"):
                management.UnregisterModel(model_name="plain", metadata=bearer["infer"])
            assert management.UnregisterModel(model_name="plain", metadata=bearer["admin"]).msg.endswith("unregistered")
        assert http.process.poll() is None
