"""One server for all tests of gRPC that need no other."""

from collections.abc import Iterator

import pytest
import tritonclient.grpc as triton

from tests.support import grpc_server
from tests.support.grpc_server import GrpcServer, grpc_serving, rows
from tests.support.server import Serve
from tests.support.tensor_bundles import Several


@pytest.fixture(scope="session")
def grpc_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Several]:
    """The folder of the repository, and the network over numbers in it."""
    folder = tmp_path_factory.mktemp("grpc") / "models"
    return str(folder), grpc_server.write(folder)


@pytest.fixture(scope="session")
def network(grpc_models: tuple[str, Several]) -> Several:
    return grpc_models[1]


@pytest.fixture(scope="module")
def server(serve: Serve, grpc_models: tuple[str, Several]) -> Iterator[GrpcServer]:
    with grpc_serving(serve, grpc_models[0], "--allow-code", "--max-body-bytes", 1 << 20) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: GrpcServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.target) as opened:
        yield opened


@pytest.fixture(scope="module")
def right(network: Several) -> bytes:
    """The scores of the one row that is asked by hand."""
    return bytes(network.answers(rows(1))["scores"].tobytes())
