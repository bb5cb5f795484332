"""Requests and answers of KServe v2 as they cross a connection, made by hand."""

import json
import zlib
from typing import Any

import numpy as np
import requests

from flambeau.protocols.v2_datatypes import NUMPY
from tests.support.kserve_models import Served

LENGTH = "Inference-Header-Content-Length"
ROWS = {"a": [[0.5, -1.0, 2.0, 0.25], [1.0, 2.0, 3.0, 4.0]], "b": [[[1, 2, 3], [4, 5, 6]], [[0, 1, 0], [1, 0, 1]]]}
INFER = "/v2/models/several/infer"


def arrays(rows: dict[str, Any] = ROWS) -> dict[str, Any]:
    return {"a": np.array(rows["a"], np.float32), "b": np.array(rows["b"], np.int64)}


def document(tensors: dict[str, Any], *, flat: bool = False, **more: Any) -> dict[str, Any]:
    datatypes = {"float32": "FP32", "int64": "INT64"}
    inputs = [
        {"name": name, "shape": list(each.shape), "datatype": datatypes[each.dtype.name],
         "data": each.ravel().tolist() if flat else each.tolist()}
        for name, each in tensors.items()
    ]  # fmt: skip
    return {"inputs": inputs, **more}


def binary(tensors: dict[str, Any], **more: Any) -> tuple[dict[str, str], bytes]:
    """The headers and the body of a request in binary form."""
    whole = document(tensors, **more)
    for each in whole["inputs"]:
        del each["data"]
        each["parameters"] = {"binary_data_size": tensors[each["name"]].nbytes}
    text = json.dumps(whole).encode()
    return {LENGTH: str(len(text))}, b"".join((text, *(each.tobytes() for each in tensors.values())))


def outputs(answer: requests.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return {
        each["name"]: np.array(each["data"], NUMPY[each["datatype"]]).reshape(each["shape"])
        for each in answer.json()["outputs"]
    }


def refused(answer: requests.Response, status: int = 400) -> str:
    """The sentence of an error in the protocol's form, which has nothing else."""
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    return str(answer.json()["error"])


def assert_right(models: Served, tensors: dict[str, Any], answer: requests.Response) -> None:
    found, right = outputs(answer), models.several.answers(tensors)
    assert found["sums"].tolist() == right["sums"].tolist()
    np.testing.assert_allclose(found["scores"], right["scores"], rtol=1e-6, atol=1e-6 * np.abs(right["scores"]).max())


def changed(**of_first: Any) -> dict[str, Any]:
    whole = document(arrays())
    whole["inputs"][0] |= of_first
    return whole


def with_another(text: bytes, data: bytes) -> bytes:
    """The document with one more list, which is no input's."""
    return text.replace(b'"name": "a"', b'"x": {"data": ' + data + b'}, "name": "a"', 1)


def deflated(data: bytes) -> bytes:
    """Without the header of zlib, as some understand the word."""
    return zlib.compress(data)[2:-4]


HOSTILE = {
    "keys": b'{"inputs": [{"data":[' + b'"data":[' * 400_000,
    "open lists": b'"data":[1,' * 300_000,
    "one open list": b'{"inputs": [{"name": "a", "data": [' + b"1," * 1_500_000,
    "objects": b'{"inputs": [' + b"{}," * 1_000_000 + b"{}]}",
    "tensors": b'{"inputs": [' + b'{"name":"a","shape":[1],"datatype":"FP32","data":[1]},' * 60_000 + b"1]}",
    "parameters": b'{"parameters": {' + b",".join(b'"%d":1' % each for each in range(300_000)) + b'}, "inputs": []}',
    "shape": b'{"inputs": [{"name":"a","datatype":"FP32","data":[1],"shape":[' + b"1," * 1_000_000 + b"1]}]}",
    "depth": b'{"inputs": ' + b"[" * 3_000_000,
    "braces": b'{"inputs": [{"data": ' + b"{" * 3_000_000,
    "text": b'{"inputs": "' + b"x" * 3_900_000 + b'"}',
}
