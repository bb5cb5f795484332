"""Calls that a proxy has received, as Ray Serve does: bytes in, bytes and a status out. Ray's own: `tests/cluster`."""

import asyncio
from collections.abc import Iterator

import pytest
from tritonclient.grpc import service_pb2

from flambeau.bundle import storage
from flambeau.grpc.proxied import ProxiedCall, of_one
from flambeau.grpc.statuses import Status
from flambeau.http.asgi import AsgiApp, create_asgi_app
from tests.support.grpc_server import message, rows
from tests.support.tensor_bundles import Several, several

PEER = "ipv4:10.0.0.9:5000"


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Several:
    return several(tmp_path_factory.mktemp("bundles") / "several")


@pytest.fixture(scope="module")
def app(network: Several) -> Iterator[AsgiApp]:
    made = create_asgi_app(network.bundle.member(storage.ONNX).parent, max_body_bytes=10_000)
    yield made
    asyncio.run(made.close())


def asked(app: AsgiApp, method: str, raw: bytes) -> tuple[bytes, ProxiedCall]:
    call = ProxiedCall(PEER, (("x-request-id", "my-own"),), read=of_one(raw))
    return asyncio.run(app.answer_call(method, call)), call


def test_a_message_is_answered_with_the_networks_own_numbers(app: AsgiApp, network: Several) -> None:
    arrays = rows(3)
    raw, call = asked(app, "ModelInfer", message(arrays).SerializeToString())
    found = service_pb2.ModelInferResponse.FromString(raw)
    right = network.answers(arrays)
    assert [each.name for each in found.outputs] == list(right)
    assert call.status is Status.OK


@pytest.mark.parametrize(
    ("method", "raw", "code", "told"),
    [
        ("ModelInfer", b"\xff\xff", Status.INVALID_ARGUMENT, "bad_request"),
        ("ModelInfer", bytes(10_001), Status.RESOURCE_EXHAUSTED, "body_too_large"),
        (
            "ModelMetadata", service_pb2.ModelMetadataRequest(name="nothing").SerializeToString(),
            Status.NOT_FOUND, "model_not_found",
        ),
        ("Check", b"", Status.OK, None),
    ],
)  # fmt: skip
def test_a_refusal_has_its_status_and_its_code(
    app: AsgiApp, method: str, raw: bytes, code: Status, told: str | None
) -> None:
    answer, call = asked(app, method, raw)
    assert (call.status, bool(answer)) == (code, told is None)
    trailing = dict(call.trailing)
    assert trailing.get("error-code") == told
    assert trailing.get("x-request-id") == (told and "my-own")


def test_a_stream_ends_at_a_message_that_is_too_long_and_answers_those_before(app: AsgiApp) -> None:
    async def steps() -> tuple[list[bytes], ProxiedCall]:
        messages = iter([message(rows(1)).SerializeToString(), bytes(10_001)])
        written: list[bytes] = []

        async def read() -> bytes | None:
            return next(messages, None)

        async def write(answer: bytes) -> None:
            written.append(answer)

        call = ProxiedCall(PEER, (), read=read, write=write)
        await app.answer_call("ModelStreamInfer", call)
        return written, call

    written, call = asyncio.run(steps())
    assert call.status is Status.RESOURCE_EXHAUSTED
    [answer] = written
    assert service_pb2.ModelStreamInferResponse.FromString(answer).infer_response.outputs
