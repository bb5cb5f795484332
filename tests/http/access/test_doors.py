"""Every door by which models are loaded, scaled and unloaded: with no token, one for predictions, and an admin's."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests

from flambeau.grpc.descriptors import MANAGEMENT_PACKAGE, MANAGEMENT_SERVICE, message
from flambeau.grpc.inference_proto import INFERENCE_SERVICE
from tests.support.access import ADMIN, INFER, bearer
from tests.support.server import FLAMBEAU, Serve, free_port, run_flambeau, started

TOKENS = (None, INFER, ADMIN)
TORCHSERVE = [
    ("POST", "/models?url=x.mar"), ("PUT", "/models/x?min_worker=2"), ("PUT", "/models/x/1.0/set-default"),
    ("PUT", "/models/x/1.0?min_worker=2"), ("DELETE", "/models/x"), ("DELETE", "/models/x/1.0"),
    ("POST", "/v2/repository/models/x/load"), ("POST", "/v2/repository/models/x/unload"),
]  # fmt: skip
CALLS = [
    (MANAGEMENT_SERVICE, "RegisterModel", MANAGEMENT_PACKAGE, {"url": "x.mar"}),
    (MANAGEMENT_SERVICE, "ScaleWorker", MANAGEMENT_PACKAGE, {"model_name": "x"}),
    (MANAGEMENT_SERVICE, "SetDefault", MANAGEMENT_PACKAGE, {"model_name": "x", "model_version": "1"}),
    (MANAGEMENT_SERVICE, "UnregisterModel", MANAGEMENT_PACKAGE, {"model_name": "x"}),
    (INFERENCE_SERVICE, "RepositoryModelLoad", "inference", {"model_name": "x"}),
    (INFERENCE_SERVICE, "RepositoryModelUnload", "inference", {"model_name": "x"}),
]


@pytest.fixture(scope="module")
def managed(tokens_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, list[str]]]:
    """A server without models: the URLs of predictions and of management, and the ports of gRPC in the same order."""
    folder = tmp_path_factory.mktemp("doors")
    (folder / "store").mkdir()
    management, ports = free_port(), [free_port(), free_port()]
    command = [
        *FLAMBEAU, "serve", "--model-store", folder / "store", "--port", "0", "--tokens-file", tokens_file,
        "--management-address", f"127.0.0.1:{management}", "--grpc-port", ports[0],
        "--grpc-management-address", f"127.0.0.1:{ports[1]}",
    ]  # fmt: skip
    with started(command, folder, anew=False) as server:
        yield server.url, f"http://127.0.0.1:{management}", ports


def test_only_an_admin_manages_and_only_at_the_address_for_it(managed: tuple[str, str, list[str]]) -> None:
    for (method, path), token in itertools.product(TORCHSERVE, TOKENS):
        predictions, management = (
            requests.request(method, url + path, headers=bearer(token), timeout=60) for url in managed[:2]
        )
        assert predictions.status_code in (401, 403), (method, path)
        assert management.status_code == {None: 401, INFER: 403}.get(token, 404), (method, path, management.text)


def test_only_an_admin_manages_over_grpc_and_only_at_the_address_for_it(managed: tuple[str, str, list[str]]) -> None:
    for port, (service, name, package, asked), token in itertools.product(managed[2], CALLS, TOKENS):
        metadata = [(key.lower(), value) for key, value in bearer(token).items()]
        body = message(f"{name}Request", package)(**asked).SerializeToString()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: Any = channel.unary_unary(f"/{service}/{name}")
            with pytest.raises(grpc.RpcError) as caught:
                call(body, metadata=metadata, timeout=60)
        admitted = "NOT_FOUND" if port == managed[2][1] else "PERMISSION_DENIED"
        expected = {None: "UNAUTHENTICATED", INFER: "PERMISSION_DENIED"}.get(token, admitted)
        assert caught.value.code().name == expected, (name, caught.value.details())


def test_only_an_admin_loads_models_as_sagemaker_does(serve: Serve, tokens_file: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with serve("--multi-model", tmp_path / "models", "--tokens-file", tokens_file) as server:
        load = json.dumps({"model_name": "x", "url": str(tmp_path / "models" / "x")})
        doors = [("POST", "/models", load, 422), ("DELETE", "/models/x", "", 404)]
        for (method, path, body, admitted), token in itertools.product(doors, TOKENS):
            found = requests.request(method, server.url + path, data=body, headers=bearer(token), timeout=60)
            assert found.status_code == {None: 401, INFER: 403}.get(token, admitted), (method, found.text)


def test_two_addresses_of_one_port_are_refused(tmp_path: Path) -> None:
    """By its port a connection is known as one to the address of management: anybody managed at the other, too."""
    (tmp_path / "store").mkdir()
    port = free_port()
    done = run_flambeau(
        "serve", "--model-store", tmp_path / "store", "--host", "127.0.0.2", "--port", port, "--insecure-no-auth",
        "--management-address", f"127.0.0.1:{port}",
    )  # fmt: skip
    assert (done.returncode, "has the port of 127.0.0.2" in done.stderr) == (78, True), done.stderr
