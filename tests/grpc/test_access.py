"""Who may call what over gRPC: the same tokens, scopes, rates and limits as over HTTP."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2

from flambeau.grpc.inference_proto import INFERENCE_CALLS
from flambeau.http import tokens
from tests.support.grpc_server import SERVICE, GrpcServer, grpc_serving, message, rows
from tests.support.server import Serve
from tests.support.tensor_bundles import Several

INFER, ADMIN = tokens.fresh(), tokens.fresh()
PUBLIC = {"ServerLive", "ServerReady"}
MANAGING = {"RepositoryModelLoad", "RepositoryModelUnload"}


@pytest.fixture(scope="module")
def guarded(serve: Serve, network: Several, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrpcServer]:
    file = tmp_path_factory.mktemp("access") / "tokens"
    file.touch(0o600)
    file.write_text(f"infer {INFER}\nadmin {ADMIN}\n")
    with grpc_serving(serve, network.bundle.path, "--tokens-file", file, "--rate-limit", "20/minute") as running:
        yield running


@pytest.fixture(scope="module")
def channel(guarded: GrpcServer) -> Iterator[grpc.Channel]:
    with guarded.channel() as opened:
        yield opened


def outcome(channel: grpc.Channel, method: str, body: bytes = b"", **metadata: str) -> str:
    """The name of the status of a call."""
    given = [(name.replace("_", "-"), value) for name, value in metadata.items()]
    try:
        channel.unary_unary(SERVICE + method)(body, metadata=given)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def bearer(token: str) -> dict[str, Any]:
    return {"authorization": f"Bearer {token}"}


def test_every_call_asks_for_its_scope_t10(channel: grpc.Channel) -> None:
    for method in INFERENCE_CALLS:
        nobody, infer = outcome(channel, method), outcome(channel, method, **bearer(INFER))
        if method in PUBLIC:
            assert (nobody, infer) == ("OK", "OK"), method
        else:
            assert nobody == "UNAUTHENTICATED", method
            assert (infer == "PERMISSION_DENIED") == (method in MANAGING), method
            assert outcome(channel, method, **bearer(ADMIN)) not in ("UNAUTHENTICATED", "PERMISSION_DENIED"), method


def test_a_stream_asks_before_it_reads(channel: grpc.Channel) -> None:
    call = channel.stream_stream(SERVICE + "ModelStreamInfer")
    with pytest.raises(grpc.RpcError) as refused:
        next(call(iter([message(rows(1)).SerializeToString()])))
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_wrong_tokens_are_refused_and_guessing_is_slowed_down_t10(channel: grpc.Channel) -> None:
    found = [outcome(channel, "ServerMetadata", **bearer(tokens.fresh())) for _ in range(12)]
    assert found[0] == "UNAUTHENTICATED"
    assert found[-1] == "RESOURCE_EXHAUSTED"
    assert outcome(channel, "ServerMetadata", **bearer(INFER)) == "OK"
    assert outcome(channel, "ServerMetadata", authorization=f"Basic {INFER}") != "OK"


def test_pages_may_change_nothing(channel: grpc.Channel) -> None:
    asked = service_pb2.RepositoryModelLoadRequest(model_name="several").SerializeToString()
    assert outcome(channel, "RepositoryModelLoad", asked, **bearer(ADMIN)) == "OK"
    for page in ({"origin": "https://example.org"}, {"sec_fetch_site": "cross-site"}):
        assert outcome(channel, "RepositoryModelLoad", asked, **bearer(ADMIN), **page) == "PERMISSION_DENIED"


def test_health_needs_no_token(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING


def test_the_rate_limit_counts_requests_and_says_when_to_come_again(channel: grpc.Channel) -> None:
    call: Any = channel.unary_unary(SERVICE + "ModelInfer")
    body = message(rows(1)).SerializeToString()

    def ask(times: int) -> None:
        for _ in range(times):
            call(body, metadata=[("authorization", f"Bearer {INFER}")])

    ask(10)
    with pytest.raises(grpc.RpcError) as refused:
        ask(11)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailing = dict(refused.value.trailing_metadata())
    assert (trailing["error-code"], int(trailing["retry-after"]) > 0) == ("rate_limited", True)


def test_models_are_managed_on_loopback_or_with_a_token(serve: Serve, network: Several) -> None:
    path: Path = network.bundle.path
    with (
        grpc_serving(serve, path, "--host", "0.0.0.0", "--insecure-no-auth", "--max-connections", 1) as opened,
        opened.channel() as channel,
    ):
        asked = service_pb2.RepositoryModelLoadRequest(model_name="several").SerializeToString()
        assert outcome(channel, "RepositoryModelLoad", asked) == "PERMISSION_DENIED"
        stream = channel.stream_stream(SERVICE + "ModelStreamInfer")
        held = stream(iter_of_nothing())
        held.initial_metadata  # noqa: B018 (it is only looked at)
        opened.http.wait_until(lambda: outcome(channel, "ServerMetadata") == "UNAVAILABLE", within=10)
        assert outcome(channel, "ServerLive") == "OK"  # what is public has room of its own
        held.cancel()
        opened.http.wait_until(lambda: outcome(channel, "ServerMetadata") == "OK", within=10)


def iter_of_nothing() -> Iterator[bytes]:
    """A client that sends nothing, and does not end."""
    import threading

    threading.Event().wait(20)
    yield b""
