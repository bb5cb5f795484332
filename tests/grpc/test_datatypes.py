"""Every datatype of the protocol there and back, bit for bit: JSON, binary tensors, gRPC's contents, and raw ones."""

import json
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import requests
from tritonclient.grpc import service_pb2

from flambeau.grpc.tensor_messages import _CONTENTS as CONTENTS
from flambeau.protocols.v2_datatypes import NUMPY
from tests.support.grpc_server import GrpcServer, grpc_serving, stub
from tests.support.server import Serve
from tests.support.tensor_bundles import echoing

LIMITS = {name: np.iinfo(np.dtype(NUMPY[name]).name) for name in NUMPY if "INT" in name}
WHOLE = {name: (int(limits.min), int(limits.max)) for name, limits in LIMITS.items()}
EDGES: dict[str, list[Any]] = {
    "BOOL": [True, False, True],
    **{name: [least, 1, most] for name, (least, most) in WHOLE.items()},
    "INT64": [-(2**63), 2**53 + 1, 2**63 - 1],
    "UINT64": [2**63 + 1, 2**53 + 1, 2**64 - 1],
    "FP16": [6e-8, -0.0, 65504.0],
    "FP32": [1e-45, -0.0, 3.4028234663852886e38],
    "FP64": [5e-324, -0.0, 1.7976931348623157e308],
}
"""A row of numbers of each: the least, the largest, and those that a detour over another type changes."""

NOT_NUMBERS = {"FP16": [np.nan, np.inf, -np.inf], "FP32": [np.nan, np.inf, -np.inf], "FP64": [np.nan, np.inf, -np.inf]}
TYPED = sorted({*EDGES} - {"FP16"})  # gRPC's contents have no place for it


@pytest.fixture(scope="module")
def echo(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrpcServer]:
    """Models that give back what they get: `all` a tensor of each datatype, `typed` all but FP16, `halves` FP32."""
    folder = tmp_path_factory.mktemp("echo") / "models"
    for name, datatypes in (("all", sorted(EDGES)), ("typed", TYPED), ("halves", ["FP32"])):
        echoing(folder / name / "1", {each: NUMPY[each].name for each in datatypes}, name)  # type: ignore[index]
    with grpc_serving(serve, folder) as running:
        yield running


def arrays(datatypes: list[str], **values: list[Any]) -> dict[str, np.ndarray]:
    """Two rows of each, the second that of `EDGES`."""
    found = {}
    for name in datatypes:
        row = values.get(name, EDGES[name])
        found[name] = np.array([row[::-1], row], NUMPY[name])  # type: ignore[index]
    return found


def assert_same(found: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert found.keys() == right.keys()
    for name, array in right.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].tobytes() == array.tobytes(), (name, found[name], array)


def posted(server: GrpcServer, model: str, document: Any, binary: list[bytes] | None = None) -> requests.Response:
    body, headers = json.dumps(document).encode(), {}
    if binary is not None:
        headers["Inference-Header-Content-Length"] = str(len(body))
        body += b"".join(binary)
    return requests.post(f"{server.http.url}/v2/models/{model}/infer", data=body, headers=headers, timeout=60)


def document(given: dict[str, np.ndarray], *, nested: bool = False) -> Any:
    return {
        "inputs": [
            {"name": name, "datatype": name, "shape": list(array.shape),
             "data": array.tolist() if nested else array.ravel().tolist()} for name, array in given.items()
        ]
    }  # fmt: skip


def read(answer: requests.Response) -> dict[str, np.ndarray]:
    """The outputs of an answer, of JSON or binary."""
    assert answer.status_code == 200, answer.text
    length = int(answer.headers.get("Inference-Header-Content-Length", len(answer.content)))
    told, place = json.loads(answer.content[:length]), length
    found = {}
    for each in told["outputs"]:
        dtype, name = NUMPY[each["datatype"]], each["name"].removesuffix("_out")
        assert each["datatype"] == name or name == "FP32"
        if "data" in each:
            found[name] = np.array(each["data"], dtype)
        else:
            size = each["parameters"]["binary_data_size"]
            found[name] = np.frombuffer(answer.content[place : place + size], dtype)
            place += size
    assert place == len(answer.content) or place == length
    return found


@pytest.mark.parametrize("nested", [False, True])
def test_json_keeps_every_number(echo: GrpcServer, nested: bool) -> None:
    given = arrays(sorted(EDGES))
    assert_same(read(posted(echo, "all", document(given, nested=nested))), given)


@pytest.mark.parametrize("values", [{}, NOT_NUMBERS])
def test_binary_tensors_keep_every_bit(echo: GrpcServer, values: dict[str, list[Any]]) -> None:
    given = arrays(sorted(EDGES), **values)
    asked = document(given)
    for each, array in zip(asked["inputs"], given.values(), strict=True):
        del each["data"]
        each["parameters"] = {"binary_data_size": array.nbytes}
    asked["parameters"] = {"binary_data_output": True}
    pieces = [array.tobytes() for array in given.values()]
    assert_same(read(posted(echo, "all", asked, pieces)), given)
    del asked["parameters"]
    answer = posted(echo, "all", asked, pieces)
    if not values:
        assert_same(read(answer), given)
        return
    assert answer.headers["X-Nonfinite-Outputs"] == "18"
    for each in answer.json()["outputs"]:
        assert (each["data"] == [None] * 6) == (each["datatype"] in values)


@pytest.mark.parametrize("values", [{}, NOT_NUMBERS])
@pytest.mark.parametrize("raw", [True, False])
def test_grpc_keeps_every_bit(echo: GrpcServer, raw: bool, values: dict[str, list[Any]]) -> None:
    given = arrays(sorted(EDGES) if raw else TYPED, **values)
    asked = service_pb2.ModelInferRequest(model_name="all" if raw else "typed")
    for name, array in given.items():
        tensor = asked.inputs.add(name=name, datatype=name, shape=array.shape)
        if raw:
            asked.raw_input_contents.append(array.tobytes())
        else:
            getattr(tensor.contents, CONTENTS[name]).extend(array.ravel().tolist())  # type: ignore[index]
    with echo.channel() as channel:
        answer = stub(channel, "ModelInfer")(asked, timeout=60)
    found = {}
    for each, data in zip(answer.outputs, answer.raw_output_contents, strict=True):
        name = each.name.removesuffix("_out")
        assert (each.datatype, tuple(each.shape)) == (name, (2, 3))
        found[name] = np.frombuffer(data, NUMPY[each.datatype])
    assert_same(found, given)


def test_bfloat16_is_taken_exactly_over_both(echo: GrpcServer) -> None:
    bits = np.array([[0x3F81, 0x0001, 0xFF7F], [0x8000, 0x7F80, 0x7FC1]], "<u2")
    right = (bits.astype(np.uint32) << 16).view(np.float32)
    told = {"name": "FP32", "datatype": "BF16", "shape": [2, 3], "parameters": {"binary_data_size": 12}}
    asked = {"inputs": [told], "parameters": {"binary_data_output": True}}
    assert_same(read(posted(echo, "halves", asked, [bits.tobytes()])), {"FP32": right})
    message = service_pb2.ModelInferRequest(model_name="halves")
    message.inputs.add(name="FP32", datatype="BF16", shape=[2, 3])
    message.raw_input_contents.append(bits.tobytes())
    with echo.channel() as channel:
        [data] = stub(channel, "ModelInfer")(message, timeout=60).raw_output_contents
    assert data == right.tobytes()


BESIDE: dict[str, list[object]] = {
    **{name: [least - 1, most + 1, 1.0, 1.5, 1e30, True, None, "1", [1]] for name, (least, most) in WHOLE.items()},
    "BOOL": [0, 1, 2, "true", None, 1.0],
    "FP16": [65520.0, 1e39, True, None, "1"],
    "FP32": [3.4028235677973366e38, 10**400, True, None, "1"],
    "FP64": [10**400, True, None, "1"],
}
"""What JSON can say and the datatype cannot hold. None of it is rounded, cut off or taken for another."""


@pytest.mark.parametrize("datatype", BESIDE)
def test_json_that_the_datatype_does_not_hold_is_refused(echo: GrpcServer, datatype: str) -> None:
    for value in BESIDE[datatype]:
        asked = document(arrays(sorted(EDGES)))
        [tensor] = [each for each in asked["inputs"] if each["name"] == datatype]
        tensor["data"][4] = value
        answer = posted(echo, "all", asked)
        assert answer.status_code == 400, (value, answer.text)
        assert datatype in answer.json()["error"], value


@pytest.mark.parametrize(
    ("datatype", "value"),
    [("INT8", 128), ("INT8", -129), ("INT16", 1 << 15), ("INT16", -(1 << 15) - 1), ("UINT8", 256), ("UINT16", 1 << 16)],
)  # fmt: skip
def test_contents_that_the_datatype_does_not_hold_are_refused(echo: GrpcServer, datatype: str, value: int) -> None:
    asked = service_pb2.ModelInferRequest(model_name="typed")
    for name, array in arrays(TYPED).items():
        numbers = array.ravel().tolist()
        numbers[4] = value if name == datatype else numbers[4]
        tensor = asked.inputs.add(name=name, datatype=name, shape=array.shape)
        getattr(tensor.contents, CONTENTS[name]).extend(numbers)  # type: ignore[index]
    with echo.channel() as channel, pytest.raises(grpc.RpcError) as refused:
        stub(channel, "ModelInfer")(asked, timeout=60)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert datatype in refused.value.details()


@pytest.mark.parametrize("shape", [[0, 3], [2, 0], [], [3], [-1, 3], [2**31, 3], [6], [2, 3, 1]])
def test_shapes_that_no_row_has_are_refused(echo: GrpcServer, shape: list[int]) -> None:
    for data in ([], [0.0] * 6, [0.0]):
        asked = {"inputs": [{"name": "FP32", "datatype": "FP32", "shape": shape, "data": data}]}
        answer = posted(echo, "halves", asked)
        assert answer.status_code == 400, (shape, data, answer.text)
    message = service_pb2.ModelInferRequest(model_name="halves")
    message.inputs.add(name="FP32", datatype="FP32", shape=shape)
    message.raw_input_contents.append(bytes(24))
    with echo.channel() as channel, pytest.raises(grpc.RpcError) as refused:
        stub(channel, "ModelInfer")(message, timeout=60)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("text", ["", "\0", "\x7f\u0080\u07ff\uffff", "\U0001f600\U0010ffff", '"\\\n'])
def test_texts_come_back_as_they_are(server: GrpcServer, text: str) -> None:
    """As JSON within BYTES, over JSON, binary and gRPC."""
    element = json.dumps({"seconds": 0, "name": text})
    packed = len(element).to_bytes(4, "little") + element.encode()
    told: dict[str, Any] = {"name": "input", "datatype": "BYTES", "shape": [1]}
    answer = posted(server, "sleepy", {"inputs": [told | {"data": [element]}]})
    assert json.loads(answer.json()["outputs"][0]["data"][0]) == text
    asked = {"inputs": [told | {"parameters": {"binary_data_size": len(packed)}}]}
    answer = posted(server, "sleepy", asked, [packed])
    assert json.loads(answer.json()["outputs"][0]["data"][0]) == text
    for raw in (True, False):
        message = service_pb2.ModelInferRequest(model_name="sleepy")
        tensor = message.inputs.add(name="input", datatype="BYTES", shape=[1])
        if raw:
            message.raw_input_contents.append(packed)
        else:
            tensor.contents.bytes_contents.append(element.encode())
        with server.channel() as channel:
            [data] = stub(channel, "ModelInfer")(message, timeout=60).raw_output_contents
        assert int.from_bytes(data[:4], "little") == len(data) - 4
        assert json.loads(data[4:]) == text


@pytest.mark.parametrize("name", [b"\\ud800", b"\xff", b"\xed\xa0\x80"])
def test_half_of_a_surrogate_pair_and_bytes_that_are_no_text_are_refused(server: GrpcServer, name: bytes) -> None:
    element = b'{"seconds": 0, "name": "%b"}' % name
    message = service_pb2.ModelInferRequest(model_name="sleepy")
    message.inputs.add(name="input", datatype="BYTES", shape=[1]).contents.bytes_contents.append(element)
    with server.channel() as channel, pytest.raises(grpc.RpcError) as refused:
        stub(channel, "ModelInfer")(message, timeout=60)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    packed = len(element).to_bytes(4, "little") + element
    told = {"name": "input", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(packed)}}
    assert posted(server, "sleepy", {"inputs": [told]}, [packed]).status_code == 400
