"""Calls that gRPC's own library makes: typed contents, deadlines, limits, health, reflection, log, metrics, traces."""

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.grpc import service_pb2

from tests.support.grpc_server import SERVICE, GrpcServer, message, rows, stub
from tests.support.tensor_bundles import Several

SERVING = health_pb2.HealthCheckResponse.SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.fixture(scope="module")
def channel(server: GrpcServer) -> Iterator[grpc.Channel]:
    with server.channel() as opened:
        yield opened


@pytest.fixture(scope="module")
def infer(channel: grpc.Channel) -> Any:
    return channel.unary_unary(
        SERVICE + "ModelInfer", request_serializer=service_pb2.ModelInferRequest.SerializeToString,
        response_deserializer=service_pb2.ModelInferResponse.FromString,
    )  # fmt: skip


def sleepy(seconds: float, **parameters: int) -> Any:
    asked = service_pb2.ModelInferRequest(model_name="sleepy", id="z")
    given = asked.inputs.add(name="input", datatype="BYTES", shape=[1])
    given.contents.bytes_contents.append(b'{"seconds": %f, "name": "z"}' % seconds)
    for name, value in parameters.items():
        asked.parameters[name].int64_param = value
    return asked


def test_numbers_that_are_null_in_texts_are_counted(infer: Any) -> None:
    asked = sleepy(0)
    asked.inputs[0].contents.bytes_contents[0] = b'{"seconds": 0, "name": "nan"}'
    answer, call = infer.with_call(asked)
    assert answer.raw_output_contents == [b"\4\0\0\0null"]
    assert dict(call.trailing_metadata())["x-nonfinite-outputs"] == "1"
    assert not infer.with_call(sleepy(0))[1].trailing_metadata()


@contextlib.contextmanager
def refused(status: str, sentence: str = "") -> Iterator[None]:
    with pytest.raises(grpc.RpcError) as caught:
        yield
    assert (caught.value.code().name, sentence in caught.value.details()) == (status, True), caught.value.details()


def typed(arrays: dict[str, Any]) -> Any:
    asked = service_pb2.ModelInferRequest(model_name="several")
    a = asked.inputs.add(name="a", datatype="FP32", shape=arrays["a"].shape)
    a.contents.fp32_contents.extend(arrays["a"].ravel().tolist())
    b = asked.inputs.add(name="b", datatype="INT64", shape=arrays["b"].shape)
    b.contents.int64_contents.extend(arrays["b"].ravel().tolist())
    return asked


def test_typed_contents_are_answered_as_raw_ones(infer: Any, network: Several) -> None:
    arrays = rows(3)
    one, other = infer(typed(arrays)), infer(message(arrays))
    assert one.raw_output_contents == other.raw_output_contents
    scores = np.frombuffer(one.raw_output_contents[1], np.float32).reshape(one.outputs[1].shape)
    right = network.answers(arrays)["scores"]
    np.testing.assert_allclose(scores, right, rtol=1e-6, atol=1e-6 * np.abs(right).max())


def test_a_long_message_is_answered_as_its_rows_are_wherever_its_raw_contents_lie(channel: grpc.Channel) -> None:
    """They are cut out of a long message before protobuf reads it, and protobuf takes fields in any order."""
    arrays = rows(1000)
    send = channel.unary_unary(SERVICE + "ModelInfer", response_deserializer=service_pb2.ModelInferResponse.FromString)
    asked = message(arrays)
    few = [send(message({name: each[at : at + 40] for name, each in arrays.items()}).SerializeToString())
           for at in range(0, 1000, 40)]  # fmt: skip
    right = [b"".join(each.raw_output_contents[place] for each in few) for place in range(2)]
    raw = service_pb2.ModelInferRequest(raw_input_contents=asked.raw_input_contents)
    del asked.raw_input_contents[:]
    fields, contents = asked.SerializeToString(), raw.SerializeToString()
    first = service_pb2.ModelInferRequest(raw_input_contents=raw.raw_input_contents[:1]).SerializeToString()
    for sent in (fields + contents, contents + fields, first + fields + contents[len(first) :]):
        assert list(send(sent).raw_output_contents) == right
    with refused("INVALID_ARGUMENT", "2 inputs and 3 raw_input_contents"):
        send(fields + contents + first)
    with refused("INVALID_ARGUMENT", "is no inference.ModelInferRequest"):
        send(fields + contents[:-1])


def spoilt(what: str) -> Any:
    """A request with one fault."""
    asked = typed(rows(1))
    if what == "datatype":
        asked.inputs[0].datatype = "FLOAT"
    elif what == "place":
        asked.inputs[0].contents.fp64_contents.append(1.0)
    elif what == "count":
        asked.inputs[0].contents.fp32_contents.append(1.0)
    elif what == "range":
        asked.inputs[1].datatype = "INT8"
        asked.inputs[1].contents.Clear()
        asked.inputs[1].contents.int_contents.extend([1, 2, 3, 4, 5, 300])
    elif what == "shape":
        asked.inputs[0].shape[:] = [-1, 4]
    elif what == "raw":
        asked.raw_input_contents.append(b"1234")
    elif what == "both":
        asked.raw_input_contents.extend([b"", b""])
    elif what == "half":
        asked.inputs[0].datatype = "FP16"
    elif what == "parameter":
        asked.parameters["timeout"].SetInParent()
    return asked


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("datatype", "the input 'a' has the datatype 'FLOAT': there are BF16, BOOL"),
        ("place", "the input 'a' is FP32: its elements are to be in fp32_contents, not in fp64_contents"),
        ("count", "the input 'a' has 5 elements, but its shape [1, 4] has 4"),
        ("range", "the input 'b' has a number that INT8 cannot hold"),
        ("shape", "the shape of the input 'a' has the size -1"),
        ("raw", "the request has 2 inputs and 1 raw_input_contents"),
        ("both", "the input 'a' has contents beside raw_input_contents"),
        ("half", "the input 'a' is FP16, which only raw_input_contents hold"),
        ("parameter", "the parameter 'timeout' has no value"),
    ],
)
def test_what_does_not_fit_is_told(infer: Any, what: str, sentence: str) -> None:
    with refused("INVALID_ARGUMENT", sentence):
        infer(spoilt(what))


def test_bytes_that_are_no_message_are_refused(channel: grpc.Channel) -> None:
    for bad in (b"\xff\xff\xff", b"\x0a\xff\xff\xff\xff\x0f"):
        with refused("INVALID_ARGUMENT", "the message is no inference.ModelInferRequest"):
            stub(channel, "ModelInfer", raw=True)(bad)
    with refused("INVALID_ARGUMENT", "names no model"):
        stub(channel, "ModelInfer", raw=True)(b"")
    with refused("UNIMPLEMENTED"):
        channel.unary_unary(SERVICE + "ModelDream")(b"")


def test_a_message_is_limited_before_and_after_it_is_unpacked(server: GrpcServer, channel: grpc.Channel) -> None:
    call = stub(channel, "ModelInfer", raw=True)
    with refused("RESOURCE_EXHAUSTED", "larger than max"):
        call(bytes(2 << 20))
    with refused("RESOURCE_EXHAUSTED", "larger than max"):
        call(bytes(64 << 20), compression=grpc.Compression.Gzip)  # 64 KiB on the way
    assert len(server.lines("code=body_too_large")) == 2
    assert not server.lines("Traceback")


def field(number: int, data: bytes) -> bytes:
    """A field of bytes, as protobuf encodes it."""
    size, length = len(data), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data


MANY = 400_000
COSTLY = {
    "empty inputs": b"\x2a\x00" * MANY,
    "empty parameters": b"\x22\x00" * MANY,
    "empty raw contents": b"\x3a\x00" * MANY,
    "empty elements": field(5, field(5, b"\x42\x00" * MANY)),
    "whole numbers": field(5, field(5, field(3, b"\x01" * MANY))),
    "whole numbers one by one": field(5, field(5, b"\x18\x01" * MANY)),
    "sizes": field(5, field(3, b"\x01" * MANY)),
    "unknown fields": b"\x78\x01" * MANY,
    "unknown bytes": field(15, b"x" * MANY),
}


@pytest.mark.parametrize("what", COSTLY)
def test_what_would_cost_much_to_read_is_refused_unread(channel: grpc.Channel, what: str) -> None:
    with refused("RESOURCE_EXHAUSTED", "send tensors of whole numbers as raw_input_contents"):
        stub(channel, "ModelInfer", raw=True)(COSTLY[what])


@pytest.mark.parametrize("bad", [b"\x3a\xff\xff\xff\x7f", b"\x7b", b"\x3a", b"\xff" * 12, b"\x7d\x00"])
def test_a_long_message_that_is_broken_is_refused(channel: grpc.Channel, bad: bytes) -> None:
    with refused("INVALID_ARGUMENT", "the message is no inference.ModelInferRequest"):
        stub(channel, "ModelInfer", raw=True)(field(7, bytes(50_000)) + bad)


def test_no_mutation_of_a_request_is_the_servers_fault(channel: grpc.Channel, server: GrpcServer) -> None:
    """Bytes changed, cut out, doubled and put in: each is answered, or refused as the client's fault."""
    call = stub(channel, "ModelInfer", raw=True)
    rng = random.Random(7)
    seeds = [each.SerializeToString() for each in (message(rows(2)), typed(rows(2)), sleepy(0))]
    found: Counter[str] = Counter()
    for _ in range(600):
        changed = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(changed))
            how = rng.randrange(4)
            if how == 0:
                changed[place] = rng.randrange(256)
            elif how == 1:
                del changed[place : place + rng.randint(1, 20)]
            elif how == 2:
                changed[place:place] = changed[place : place + rng.randint(1, 20)]
            else:
                changed[place:place] = rng.randbytes(rng.randint(1, 8))
        try:
            call(bytes(changed))
        except grpc.RpcError as error:
            found[error.code().name] += 1
            continue
        found["OK"] += 1
    assert set(found) <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "INTERNAL"}
    assert not server.lines("failed unexpectedly")
    assert found["INVALID_ARGUMENT"] > 100


def test_other_messages_are_short(channel: grpc.Channel) -> None:
    for method in ("ModelMetadata", "ServerLive"):
        with refused("RESOURCE_EXHAUSTED", "the message has more than 65536 bytes"):
            stub(channel, method, raw=True)(field(1, bytes(70_000)))


def test_many_typed_floats_are_read_as_they_are(infer: Any, network: Several) -> None:
    arrays = {"a": rows(5000, 3)["a"], "b": np.ones((5000, 2, 3), np.int64)}
    found = infer(typed(arrays))
    scores = np.frombuffer(found.raw_output_contents[1], np.float32).reshape(5000, 3)
    right = network.answers(arrays)["scores"]
    np.testing.assert_allclose(scores, right, rtol=1e-6, atol=1e-6 * np.abs(right).max())


def test_the_earlier_of_the_deadlines_counts(infer: Any) -> None:
    began = time.monotonic()
    with refused("DEADLINE_EXCEEDED"):
        infer(sleepy(0.5), timeout=0.2)
    assert time.monotonic() - began < 0.45
    with refused("DEADLINE_EXCEEDED"):
        infer(sleepy(0.5, timeout=100_000), timeout=30)
    assert infer(sleepy(0), timeout=30).id == "z"


def test_what_waits_is_dropped_when_its_client_leaves(server: GrpcServer, infer: Any) -> None:
    def metrics() -> str:
        return server.http.get("/metrics").text

    def items() -> int:
        wanted = 'flambeau_queue_items{model="sleepy",version="1"}'
        (line,) = (each for each in metrics().splitlines() if each.startswith(wanted))
        return int(float(line.rpartition(" ")[2]))

    assert infer(sleepy(0)).id == "z"  # whatever another test has left behind is over
    first = infer.future(sleepy(1.0))
    busy = 'flambeau_workers{model="sleepy",state="busy",version="1"} 1.0'
    server.http.wait_until(lambda: busy in metrics(), within=0.9)
    waiting = [infer.future(sleepy(1.0)) for _ in range(5)]
    server.http.wait_until(lambda: items() == 5, within=0.9)
    for each in waiting:
        each.cancel()
    server.http.wait_until(lambda: items() == 0, within=0.9)  # before the first is done
    assert first.result().id == "z"
    server.http.wait_until(lambda: len(server.lines("the client is gone")) >= 5, within=5)


def test_the_standard_health_client(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)

    def check(name: str) -> int:
        return int(health.Check(health_pb2.HealthCheckRequest(service=name)).status)

    assert [check(name) for name in ("", "inference.GRPCInferenceService", "several")] == [SERVING] * 3
    with refused("NOT_FOUND", "there is no model or service 'nothing'"):
        check("nothing")
    watched = health.Watch(health_pb2.HealthCheckRequest(service="nothing"))
    assert next(watched).status == UNKNOWN
    watched.cancel()


def test_watching_tells_of_changes(channel: grpc.Channel, server: GrpcServer) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    watched = health.Watch(health_pb2.HealthCheckRequest(service="sleepy"))
    assert next(watched).status == SERVING
    stub(channel, "RepositoryModelUnload")(service_pb2.RepositoryModelUnloadRequest(model_name="sleepy"))
    assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
    stub(channel, "RepositoryModelLoad")(service_pb2.RepositoryModelLoadRequest(model_name="sleepy"))
    assert next(watched).status == SERVING
    watched.cancel()


def test_reflection_describes_all_of_it(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    services = set(database.get_services())
    assert {
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
    } <= services
    for each in services:
        file = database.FindFileContainingSymbol(each)
        assert each.rpartition(".")[2] in [service.name for service in file.service]
    found = database.FindFileContainingSymbol("inference.ModelInferRequest")
    assert "ModelInferRequest" in [each.name for each in found.message_type]


def test_newer_clients_reflect_under_the_new_name(channel: grpc.Channel) -> None:
    from grpc_reflection.v1alpha import reflection_pb2

    call = channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    answer = next(call(iter([reflection_pb2.ServerReflectionRequest(list_services="")])))
    assert "inference.GRPCInferenceService" in [each.name for each in answer.list_services_response.service]


def test_requests_are_logged_and_counted_once(server: GrpcServer, infer: Any) -> None:
    def counted() -> float:
        line = 'flambeau_requests_total{model="several",protocol="grpc",status="200",version="2"}'
        text = server.http.get("/metrics").text
        return sum(float(each.rpartition(" ")[2]) for each in text.splitlines() if each.startswith(line))

    before = counted()
    trace = "0af7651916cd43dd8448eb211c80319c"
    metadata = (("x-request-id", "of-this-test"), ("traceparent", f"00-{trace}-b7ad6b7169203331-01"))
    infer(message(rows(1)), metadata=metadata)
    assert counted() == before + 1
    server.http.wait_until(lambda: server.lines("of-this-test"))
    (line,) = server.lines("of-this-test")
    assert all(each in line for each in ("gRPC ModelInfer", f"trace={trace}", "model=several", "status=200"))


def test_an_error_has_its_code_and_id_in_the_trailing_metadata(infer: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        infer(message(rows(1), model="nothing"), metadata=(("x-request-id", "lost"),))
    trailing = dict(caught.value.trailing_metadata())
    assert (trailing["error-code"], trailing["x-request-id"]) == ("model_not_found", "lost")


def test_a_call_without_a_message_is_refused(channel: grpc.Channel) -> None:
    call = channel.stream_unary(SERVICE + "ModelInfer")
    with refused("INVALID_ARGUMENT", "the call has no message"):
        call(iter(()))


def test_a_stream_holds_back_a_client_that_sends_without_end(channel: grpc.Channel, server: GrpcServer) -> None:
    """At most --max-items requests of a stream are read before they are answered."""
    call = channel.stream_stream(SERVICE + "ModelStreamInfer")
    sent = 0
    over = threading.Event()

    def send() -> Iterator[bytes]:
        nonlocal sent
        while not over.is_set():
            sent += 1
            asked = sleepy(0.05)
            asked.parameters["filler"].string_param = "x" * 200_000
            yield asked.SerializeToString()

    answers = call(send())
    for _ in range(4):
        next(answers)
    assert sent < 120  # 64, and what the connection holds
    over.set()
    answers.cancel()
    assert server.http.get("/readyz").status_code == 200
