"""A server of gRPC for tests, with a model over numbers and one of own code that waits as long as it is told."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2

from tests.support.server import Serve, ServerProcess, free_port
from tests.support.tensor_bundles import Several, several

SERVICE = "/inference.GRPCInferenceService/"

_SLEEPY = """
import time
import flambeau


class Sleepy(flambeau.PythonModel):
    def predict(self, batch):
        time.sleep(max(item["seconds"] for item in batch))
        return [float("nan") if item["name"] == "nan" else item["name"] for item in batch]
"""


@dataclass(frozen=True)
class GrpcServer:
    """A running server. `target` is the address of gRPC."""

    http: ServerProcess
    target: str

    def channel(self, **options: int) -> grpc.Channel:
        """A connection of its own."""
        given = [("grpc.use_local_subchannel_pool", 1), *((f"grpc.{name}", value) for name, value in options.items())]
        return grpc.insecure_channel(self.target, options=given)

    def lines(self, what: str) -> list[str]:
        """The lines of the log that hold a text."""
        return [line for line in self.http.log().splitlines() if what in line]


def write(folder: Path) -> Several:
    """Write the repository: `several`, version 1 and 2, and `sleepy`."""
    made = several(folder / "several" / "1")
    several(folder / "several" / "2")
    (folder / "sleepy" / "1").mkdir(parents=True)
    (folder / "sleepy" / "1" / "sleepy.py").write_text(_SLEEPY)
    (folder / "sleepy" / "1" / "model.toml").write_text('source = "sleepy.py:Sleepy"\n')
    return made


@contextlib.contextmanager
def grpc_serving(serve: Serve, *arguments: object) -> Iterator[GrpcServer]:
    """Serve with gRPC on a port of its own."""
    port = free_port()
    with serve(*arguments, "--grpc-port", port, "--replicas", "1") as http:
        yield GrpcServer(http, f"127.0.0.1:{port}")


def rows(count: int, seed: int = 0) -> dict[str, Any]:
    """Inputs of `several`."""
    numbers = np.random.default_rng(seed)
    return {
        "a": numbers.standard_normal((count, 4)).astype(np.float32),
        "b": numbers.integers(0, 9, (count, 2, 3)).astype(np.int64),
    }


def inputs(arrays: dict[str, Any]) -> list[triton.InferInput]:
    """The same as tritonclient has them."""
    names = {"float32": "FP32", "int64": "INT64", "object": "BYTES"}
    made = []
    for name, array in arrays.items():
        each = triton.InferInput(name, list(array.shape), names[array.dtype.name])
        each.set_data_from_numpy(array)
        made.append(each)
    return made


def sleeping(seconds: float, name: str = "x") -> list[triton.InferInput]:
    """The input that makes `sleepy` wait."""
    return inputs({"input": np.array([f'{{"seconds": {seconds}, "name": "{name}"}}'.encode()], np.object_)})


def message(arrays: dict[str, Any], model: str = "several", **more: str) -> Any:
    """A `ModelInferRequest` with raw contents, of tritonclient's own classes."""
    made = service_pb2.ModelInferRequest(model_name=model, **more)
    for name, array in arrays.items():
        datatype = {"float32": "FP32", "int64": "INT64"}[array.dtype.name]
        made.inputs.add(name=name, datatype=datatype, shape=array.shape)
        made.raw_input_contents.append(array.tobytes())
    return made


def stub(channel: grpc.Channel, method: str, *, raw: bool = False) -> Any:
    """A call of the inference service by name; of plain bytes if `raw`."""
    if raw:
        return channel.unary_unary(SERVICE + method)
    request, response = (getattr(service_pb2, method + each) for each in ("Request", "Response"))
    return channel.unary_unary(
        SERVICE + method, request_serializer=request.SerializeToString, response_deserializer=response.FromString
    )


def assert_right(network: Several, arrays: dict[str, Any], found: triton.InferResult) -> None:
    """Compare with PyTorch's own numbers."""
    for name, right in network.answers(arrays).items():
        array = found.as_numpy(name)
        assert (array.dtype, array.shape) == (right.dtype, right.shape)
        np.testing.assert_allclose(array, right, rtol=1e-6, atol=1e-6 * np.abs(right).max())  # a row's sums cancel
