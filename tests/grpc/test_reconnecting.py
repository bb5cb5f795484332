"""Channels of grpcio over the ends of connections that the server means: they connect again by themselves."""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import tritonclient.grpc as triton

from tests.support.grpc_server import GrpcServer, assert_right, grpc_serving, inputs, message, rows, stub
from tests.support.http2_wire import Wire, assert_answered
from tests.support.server import FLAMBEAU, Serve, free_port, started
from tests.support.tensor_bundles import Several

_IDLE_SECONDS = 1.5
_IMPATIENT = f"""
from flambeau.grpc import http2_link
http2_link._IDLE_SECONDS = {_IDLE_SECONDS}
from flambeau.__main__ import main
main()
"""


@pytest.fixture(scope="module")
def impatient(network: Several, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrpcServer]:
    """A server that ends connections without calls after a second and a half, and not after five minutes."""
    port = free_port()
    command = [FLAMBEAU[0], "-c", _IMPATIENT, "serve", network.bundle.path, "--port", "0", "--grpc-port", port]
    with started([*command, "--replicas", "1"], tmp_path_factory.mktemp("impatient")) as http:
        yield GrpcServer(http, f"127.0.0.1:{port}")


def clients_of(server: GrpcServer) -> set[str]:
    """The ports of those who are connected."""
    port = f":{int(server.target.rpartition(':')[2]):04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {fields[2] for fields in lines if fields[1].endswith(port) and fields[3] == "01"}


def wait_for(what: Callable[[], object], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)  # nobody tells when a connection is gone


@pytest.mark.long
def test_channels_go_on_after_restarts(serve: Serve, network: Several) -> None:
    """One that is idle, and one under load, over the ends of two servers at one address."""
    port = free_port()
    target = f"127.0.0.1:{port}"
    with triton.InferenceServerClient(target) as client, Asking(target) as asking:
        for seed in range(3):
            before = asking.counts["ok"]
            with serve(network.bundle.path, "--grpc-port", port) as server:
                server.wait_until(lambda: asking.counts["ok"] > before + 50, within=60)  # noqa: B023 (called here)
                server.wait_until(client_is_answered(client), within=60)
                assert_right(network, rows(2, seed), client.infer("several", inputs(rows(2, seed))))
    assert set(asking.counts) == {"ok", "refused"}


def client_is_answered(client: triton.InferenceServerClient) -> Callable[[], bool]:
    def answered() -> bool:
        with contextlib.suppress(triton.InferenceServerException):
            return bool(client.is_server_live())
        return False

    return answered


class Asking:
    """A channel that is asked one request after the other."""

    def __init__(self, target: str) -> None:
        self.counts: Counter[str] = Counter()
        self._target = target
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "Asking":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        with grpc.insecure_channel(self._target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            call = stub(channel, "ModelInfer")
            while not self._over.is_set():
                try:
                    call(message(rows(1)), timeout=30)
                    self.counts["ok"] += 1
                except grpc.RpcError as error:
                    refused = "failed to connect" in error.details() or "refused" in error.details().lower()
                    self.counts["refused" if refused else f"{error.code().name} {error.details()}"] += 1
                    time.sleep(0.01)  # it says so at once until it tries again


def test_a_channel_that_has_rested_connects_again(impatient: GrpcServer, network: Several) -> None:
    with triton.InferenceServerClient(impatient.target) as client:
        assert_right(network, rows(2), client.infer("several", inputs(rows(2))))
        wait_for(lambda: not clients_of(impatient))
        for seed in range(3):
            assert_right(network, rows(2, seed), client.infer("several", inputs(rows(2, seed))))


@pytest.mark.long
def test_a_channel_with_short_calls_does_not_rest(impatient: GrpcServer) -> None:
    """Its calls are over within a millisecond, and nobody looks at connections as often."""
    with impatient.channel() as channel:
        call = stub(channel, "ModelInfer")
        call(message(rows(1)), timeout=30)
        before = clients_of(impatient)
        assert before
        until = time.monotonic() + 3 * _IDLE_SECONDS
        while time.monotonic() < until:
            call(message(rows(1)), timeout=30)
            time.sleep(0.05)
        assert before <= clients_of(impatient)


@pytest.fixture(scope="module")
def crowded(serve: Serve, network: Several) -> Iterator[GrpcServer]:
    """A server with two connections at most."""
    with grpc_serving(serve, network.bundle.path, "--max-connections", 1) as running:
        yield running


def test_channels_that_have_to_make_room_connect_again(crowded: GrpcServer) -> None:
    """Five channels take turns, and each takes the place of another: no call is lost."""
    with contextlib.ExitStack() as opened:
        calls = [stub(opened.enter_context(crowded.channel()), "ModelInfer") for _ in range(5)]
        for turn in range(40):
            for number, call in enumerate(calls):
                found = call(message(rows(1), id=f"{turn}-{number}"), timeout=30)
                assert found.id == f"{turn}-{number}"


def test_the_idle_connection_makes_room_and_not_the_busy_one(crowded: GrpcServer, right: bytes) -> None:
    wait_for(lambda: not clients_of(crowded))
    with Wire(crowded) as busy, Wire(crowded) as idle:
        until, stream = time.monotonic() + 1.5, 1
        while time.monotonic() < until:
            busy.ask(stream := stream + 2)
            assert_answered(busy, stream, right)
            time.sleep(0.03)
        with Wire(crowded) as third:
            third.ask(1)
            assert_answered(third, 1, right)
            assert idle.end() == "NO_ERROR"
            busy.ask(stream := stream + 2)
            assert_answered(busy, stream, right)
