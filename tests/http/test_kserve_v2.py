"""KServe v2 over REST, byte by byte: forms, errors, limits. `test_tritonclient.py` asks with the real client."""

import base64
import gzip
import json
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import requests

from flambeau.protocols.v2_datatypes import narrowed, widened
from tests.support.kserve_models import Served
from tests.support.kserve_requests import (
    HOSTILE,
    INFER,
    LENGTH,
    ROWS,
    arrays,
    assert_right,
    binary,
    changed,
    deflated,
    document,
    outputs,
    refused,
    with_another,
)
from tests.support.photographs import encoded, photograph
from tests.support.server import Serve, ServerProcess

MAX_BODY = 4_000_000


@pytest.fixture(scope="module")
def server(serve: Serve, models: Served) -> Iterator[ServerProcess]:
    options = ("--allow-code", "--replicas", "1", "--max-body-bytes", str(MAX_BODY))
    with serve(models.folder, *options) as running:
        yield running


# Forms


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("rows", [2, 6000])  # the longer lists are cut out of their document and read in pieces
def test_json_may_be_flat_or_nested_and_long(server: ServerProcess, models: Served, flat: bool, rows: int) -> None:
    numbers = np.random.default_rng(rows)
    tensors = {
        "a": numbers.standard_normal((rows, 4)).astype(np.float32),
        "b": numbers.integers(-9, 9, (rows, 2, 3)).astype(np.int64),
    }
    assert_right(models, tensors, server.post(INFER, json=document(tensors, flat=flat)))


def test_the_answer_is_that_of_the_native_protocol(server: ServerProcess) -> None:
    native = server.post("/predict/several", json={"input": ROWS}).json()["outputs"]
    found = outputs(server.post(INFER, json=document(arrays())))
    assert found["sums"].tolist() == native["sums"]
    np.testing.assert_allclose(found["scores"], native["scores"], rtol=1e-6)


def test_json_and_binary_tensors_may_be_mixed(server: ServerProcess, models: Served) -> None:
    tensors = arrays()
    whole = document(
        tensors, id="mine", outputs=[{"name": "scores", "parameters": {"binary_data": True}}, {"name": "sums"}]
    )
    del whole["inputs"][1]["data"]
    whole["inputs"][1]["parameters"] = {"binary_data_size": tensors["b"].nbytes}
    text = json.dumps(whole).encode()
    answer = server.post(INFER, data=text + tensors["b"].tobytes(), headers={LENGTH: str(len(text))})
    assert answer.headers["Content-Type"] == "application/octet-stream"
    length = int(answer.headers[LENGTH])
    found = json.loads(answer.content[:length])
    assert (found["model_name"], found["model_version"], found["id"]) == ("several", "1", "mine")
    scores, sums = found["outputs"]
    assert (scores["parameters"], "data" in scores, len(sums["data"])) == ({"binary_data_size": 24}, False, 4)
    right = models.several.answers(tensors)
    array = np.frombuffer(answer.content[length:], "<f4").reshape(scores["shape"])
    np.testing.assert_allclose(array, right["scores"], rtol=1e-6)


def test_an_output_wins_over_the_request(server: ServerProcess) -> None:
    asked = [{"name": "sums", "parameters": {"binary_data": False}}, {"name": "scores"}]
    headers, body = binary(arrays(), parameters={"binary_data_output": True}, outputs=asked)
    answer = server.post(INFER, data=body, headers=headers)
    sums, scores = json.loads(answer.content[: int(answer.headers[LENGTH])])["outputs"]
    assert "data" in sums
    assert scores["parameters"] == {"binary_data_size": 24}


def test_a_body_without_json_is_one_file(server: ServerProcess, models: Served) -> None:
    file = encoded(photograph("coffee"))
    answer = server.post("/v2/models/animals/infer", data=file, headers={LENGTH: "0"})
    head = json.loads(answer.content[: int(answer.headers[LENGTH])])
    first = head["outputs"][0]
    assert (first["name"], first["shape"]) == ("probabilities", [1, 5])
    start = int(answer.headers[LENGTH])
    found = np.frombuffer(answer.content[start : start + 20], "<f4")
    np.testing.assert_allclose(found, models.animals.answers(file).softmax(0).numpy(), rtol=1e-4, atol=1e-5)
    assert "models with one input" in refused(server.post(INFER, data=b"x" * 16, headers={LENGTH: "0"}))


def test_images_in_json_are_base64(server: ServerProcess, models: Served) -> None:
    files = [encoded(photograph(name)) for name in ("coffee", "chelsea")]
    data = [base64.b64encode(each).decode() for each in files]
    asked: dict[str, Any] = {
        "inputs": [{"name": "images", "shape": [2], "datatype": "BYTES", "data": data}],
        "outputs": [{"name": "probabilities"}],
    }
    found = outputs(server.post("/v2/models/animals/infer", json=asked))
    right = [models.animals.answers(each).softmax(0).numpy() for each in files]
    np.testing.assert_allclose(found["probabilities"], right, rtol=1e-4, atol=1e-5)
    asked["inputs"][0]["data"] = [data[0], "?"]
    assert "image 1: " in refused(server.post("/v2/models/animals/infer", json=asked))


def test_options_are_parameters(server: ServerProcess) -> None:
    file = base64.b64encode(encoded(photograph("coffee"))).decode()
    asked = {
        "inputs": [{"name": "images", "shape": [1], "datatype": "BYTES", "data": [file]}],
        "parameters": {"top_k": 3, "threshold": 1.0}, "outputs": [{"name": "labels"}, {"name": "recognised"}],
    }  # fmt: skip
    labels, recognised = server.post("/v2/models/animals/infer", json=asked).json()["outputs"]
    assert (labels["shape"], len(labels["data"]), recognised["data"]) == ([1, 3], 3, [False])
    for odd in ({"top_k": 0}, {"top_k": True}, {"threshold": 2}, {"timeout": -1}, {"timeout": "soon"}):
        refused(server.post("/v2/models/animals/infer", json={**asked, "parameters": odd}))


def test_numbers_that_are_not_finite_are_null_and_counted(server: ServerProcess) -> None:
    tensors = arrays({**ROWS, "a": [[3e38, 3e38, 3e38, 3e38], [1, 2, 3, 4]]})
    answer = server.post(INFER, json=document(tensors))
    scores = answer.json()["outputs"][1]["data"]
    assert int(answer.headers["X-Nonfinite-Outputs"]) == scores.count(None) > 0
    assert server.post(INFER, json=document(tensors)).headers["Server-Timing"].startswith("queue;dur=")
    values = {"inputs": [{"name": "input", "datatype": "BYTES", "shape": [3], "data": ["1e308", "1", "-1e308"]}]}
    answer = server.post("/v2/models/double/infer", json=values)
    assert answer.json()["outputs"][0]["data"] == ["null", "2.0", "null"]
    assert answer.headers["X-Nonfinite-Outputs"] == "2"


# Refusals


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "missing required field"),
        ([], "Expected `object`"),
        ({"inputs": []}, "has no input"),
        (changed(datatype="FP8"), "datatype"),
        (changed(datatype="FP64"), "must be float32"),
        (changed(datatype="BF16"), "no JSON form"),
        (changed(datatype="INT32"), "no list of INT32"),
        (changed(data=[1, 2]), "8 of its shape"),
        (changed(data=[1.0] * 9), "8 of its shape"),
        (changed(data=[[1.0] * 8]), "not nested"),
        (changed(data=[["x"] * 4] * 2), "no list of FP32"),
        (changed(data=[[1e39] * 4] * 2), "too large for FP32"),
        (changed(data="0123456789abcdef"), "is not a list"),
        (changed(shape=[2, -4]), "the size -4"),
        (changed(shape=[2**40, 4]), "the size"),
        (changed(shape=[2**31 - 1, 2**31 - 1]), "fewer numbers"),
        (changed(shape=[1] * 33), "33 dimensions"),
        (changed(shape=[8]), "not nested"),
        (changed(shape=[8], data=[1.0] * 8), "must be float32"),
        (changed(shape=[0, 4], data=[]), "the size 0"),
        (changed(shape=[0, 2**31 - 1, 2**31 - 1], data=[[]]), "the size 0"),
        (changed(name="c"), "there is no input 'c'"),
        (changed(name="b"), "more than once"),
        (changed(parameters={"binary_data_size": 0}), "both data and binary_data_size"),
        ({**document(arrays()), "outputs": [{"name": "x"}]}, "there is no output 'x'"),
        ({**document(arrays()), "outputs": [{"name": "sums"}] * 2}, "more than once"),
        ({**document(arrays()), "outputs": [{"name": "sums", "parameters": {"classification": -1}}]}, "whole number"),
        ({**document(arrays()), "parameters": {"x": []}}, "not understood"),
        ({**document(arrays()), "parameters": {"binary_data_output": "yes"}}, "must be true or false, not 'yes'"),
        ({**document(arrays()), "outputs": [{"name": "sums", "parameters": {"binary_data": 1}}]}, "true or false"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_told_why(server: ServerProcess, body: Any, says: str) -> None:
    assert says in refused(server.post(INFER, data=json.dumps(body)))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace(b"1.5", b"NaN", 1),
        lambda text: text.replace(b"], [", b"] [", 1),
        lambda text: text.replace(b"1.5, 1.5]", b"1.5 [,1.5]", 1),
        lambda text: text.replace(b"1.5, 1.5]", b"1.5]1.5,", 1),
        lambda text: text.replace(b"1.5,", b",", 1),
        lambda text: text.replace(b"1.5,", b"1.5,,", 1),
        lambda text: text.replace(b"1.5,", b'1.5,"x",', 1),
        lambda text: text.replace(b"1.5,", b"true,", 1),
        lambda text: text.replace(b"1.5]]", b"1.5],]", 1),
        lambda text: text.replace(b'"data": [[', b'"data": [[,', 1),
        lambda text: with_another(text, b"[1," * 9000 + b"1" + b"]" * 9000),
        lambda text: with_another(text, b"[" + b"1," * 20000 + b"1]"),
    ],
    ids=range(12),
)  # fmt: skip
@pytest.mark.parametrize("rows", [2, 5000])
def test_json_that_is_cut_up_is_read_as_strictly(server: ServerProcess, damage: Any, rows: int) -> None:
    tensors = {"a": np.full((rows, 4), 1.5, np.float32), "b": np.ones((rows, 2, 3), np.int64)}
    text = damage(json.dumps(document(tensors)).encode())
    assert len(text) > 16 * 1024 or rows == 2
    refused(server.post(INFER, data=text))


def test_binary_sizes_are_compared_with_what_is_there(server: ServerProcess) -> None:
    headers, body = binary(arrays())
    length = int(headers[LENGTH])
    assert "unexpected additional input data" in refused(server.post(INFER, data=body + b"x", headers=headers))
    assert "unexpected size for input 'b'" in refused(server.post(INFER, data=body[:-1], headers=headers))
    for odd in ("-1", "x", "", "1.5", str(len(body) + 1), "9" * 30, "0x10", "\u0661"):
        sentence = refused(server.post(INFER, data=body, headers={LENGTH: odd.encode()}))
        assert LENGTH in sentence or "JSON" in sentence
    for size in (31, 33, 2**40, -1, True, 1.5, "32"):
        text = body[:length].replace(b'"binary_data_size": 32', b'"binary_data_size": ' + json.dumps(size).encode())
        answer = server.post(INFER, data=text + body[length:], headers={LENGTH: str(len(text))})
        assert ("unexpected" if type(size) is int else "must be a whole number") in refused(answer)


def test_bf16_is_taken_for_fp32(server: ServerProcess, models: Served) -> None:
    tensors = arrays()
    halves = narrowed(tensors["a"])
    text = json.dumps(
        {
            "inputs": [
                {"name": "a", "shape": [2, 4], "datatype": "BF16", "parameters": {"binary_data_size": 16}},
                {"name": "b", "shape": [2, 2, 3], "datatype": "INT64", "data": ROWS["b"]},
            ]
        }
    ).encode()
    answer = server.post(INFER, data=text + halves.tobytes(), headers={LENGTH: str(len(text))})
    assert_right(models, {**tensors, "a": widened(halves).reshape(2, 4)}, answer)


# Compression


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress), ("DEFLATE", deflated)],
)
@pytest.mark.parametrize("rows", [1, 3000])
def test_compressed_bodies_are_unpacked(
    server: ServerProcess, models: Served, encoding: str, pack: Any, rows: int
) -> None:
    tensors = {
        "a": np.random.default_rng(0).standard_normal((rows, 4)).astype(np.float32),
        "b": np.ones((rows, 2, 3), np.int64),
    }
    headers, body = binary(tensors)
    answer = server.post(INFER, data=pack(body), headers={**headers, "Content-Encoding": encoding})
    assert_right(models, tensors, answer)


@pytest.mark.long
def test_what_unpacks_to_too_much_is_refused_early(server: ServerProcess) -> None:
    bomb = gzip.compress(b"\0" * (50 * MAX_BODY))
    assert len(bomb) < MAX_BODY // 10
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(server.post, INFER, data=bomb, headers={"Content-Encoding": "gzip"}) for _ in range(16)]
        assert {each.result().status_code for each in answers} <= {413, 503}
    assert time.monotonic() - began < 10
    assert "unpacks to more than" in refused(server.post(INFER, data=bomb, headers={"Content-Encoding": "gzip"}), 413)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_damaged_compression_is_refused(server: ServerProcess, encoding: str) -> None:
    whole = gzip.compress(b"{}" * 50) if encoding == "gzip" else zlib.compress(b"{}" * 50)
    for body in (whole[:-5], whole + b"x", b"\x1f\x8b" + whole[5:], b"{}", whole * 2):
        refused(server.post(INFER, data=body, headers={"Content-Encoding": encoding}))
    assert "are not supported" in refused(server.post(INFER, data=whole, headers={"Content-Encoding": "br"}), 415)


def test_an_answer_is_packed_for_who_names_one_encoding(server: ServerProcess, models: Served) -> None:
    for accept, given in (
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate", None),
        ("gzip;q=0", None),
        ("br", None),
    ):
        answer = server.post(INFER, json=document(arrays()), headers={"Accept-Encoding": accept})
        assert answer.headers.get("Content-Encoding") == given
        assert_right(models, arrays(), answer)


# Everything else


def test_health_is_open_and_says_so(server: ServerProcess) -> None:
    assert server.get("/v2/health/live").json() == {"live": True}
    assert server.get("/v2/health/ready").json() == {"ready": True}
    assert server.get("/v2/models/several/ready").json() == {"name": "several", "ready": True}
    assert server.get("/v2/models").json() == {"models": ["animals", "double", "line", "several"]}
    assert server.get("/v2/").json() == server.get("/v2").json()
    assert refused(server.get("/v2/models/several/versions/9/ready"), 404) == (
        "the model has no such version ('9'): several has 1"
    )


def test_only_those_that_are_ready_are_listed_on_request(server: ServerProcess) -> None:
    listed = server.post("/v2/repository/index", json={"ready": True}).json()
    assert {(each["name"], each["version"], each["state"]) for each in listed} == {
        (name, "1", "READY") for name in ("several", "animals", "double", "line")
    }
    assert server.post("/v2/repository/index").json() == listed
    refused(server.post("/v2/repository/index", data="[]"))


def test_requests_are_counted_by_protocol(server: ServerProcess) -> None:
    server.post(INFER, json=document(arrays()))
    server.post(INFER, data="{}")
    text = server.get("/metrics").text
    assert 'flambeau_requests_total{model="several",protocol="v2",status="200",version="1"}' in text
    assert 'flambeau_requests_total{model="several",protocol="v2",status="400",version="1"}' in text


def test_a_long_json_tensor_does_not_stop_the_others(server: ServerProcess) -> None:
    """What a request of three megabytes of JSON costs everybody else: less than the house allows a document."""
    body = json.dumps(
        document({"a": np.random.default_rng(0).standard_normal((30_000, 4)).astype(np.float32)})
    ).encode()
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            assert "is missing" in refused(server.post(INFER, data=body))  # it is read as a whole before

    with ThreadPoolExecutor(1) as pool:
        flooding = pool.submit(flood)
        session, waits = requests.Session(), []
        for _ in range(60):
            began = time.monotonic()
            session.get(server.url + "/v2/health/live", timeout=30)
            waits.append(time.monotonic() - began)
        stop.set()
        flooding.result()
    assert sorted(waits)[len(waits) // 2] < 0.1


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("path", [INFER, "/v1/models/double:predict"])
def test_hostile_documents_hold_up_nobody(server: ServerProcess, name: str, path: str) -> None:
    body = HOSTILE[name] if path == INFER else HOSTILE[name].replace(b'"inputs": [', b'"instances": [', 1)
    assert len(body) < MAX_BODY
    began = time.monotonic()
    answer = server.post(path, data=body)
    assert 400 <= answer.status_code < 500
    assert len(answer.text) < 1000
    assert time.monotonic() - began < 2


V1 = "/v1/models/double:predict"


@pytest.mark.parametrize(
    ("method", "path", "status", "more"),
    [
        ("GET", INFER, 405, {}),
        ("DELETE", "/v1/models/double", 405, {}),
        ("POST", "/v2/models/several/nothing", 404, {}),
        ("POST", INFER, 413, {"data": b"x" * (MAX_BODY + 1)}),
        ("POST", V1, 413, {"data": b"x" * (MAX_BODY + 1)}),
        ("POST", INFER, 400, {"data": b"{}", "headers": {"Host": "evil.example.org"}}),
        ("POST", V1, 403, {"data": b"{}", "headers": {"Sec-Fetch-Site": "cross-site"}}),
        ("POST", INFER, 400, {"data": b"{}", "headers": {"Content-Length": "2", "Transfer-Encoding": "chunked"}}),
    ],
)
def test_refusals_before_the_route_have_the_protocols_form(
    server: ServerProcess, method: str, path: str, status: int, more: dict[str, Any]
) -> None:
    answer = requests.request(method, server.url + path, timeout=30, **more)
    assert refused(answer, status)
    assert answer.headers["X-Request-ID"]
    native = requests.request(method, server.url + "/predict/nothing/at/all", timeout=30, **more)
    assert "code" in native.json()
    if status == 405:
        assert "POST" in answer.headers["Allow"] or "GET" in answer.headers["Allow"]


def test_a_free_axis_follows_from_the_length(server: ServerProcess) -> None:
    """A body without JSON: the one free axis of a network with one input is as long as the bytes allow."""
    headers, path = {LENGTH: "0"}, "/v2/models/line/infer"
    for numbers in ([1.0, 2.0], [1.0, 2.0, 3.5, 4.0, 5.0]):
        answer = server.post(path, data=np.array(numbers, "<f4").tobytes(), headers=headers)
        assert np.frombuffer(answer.content[int(answer.headers[LENGTH]) :], "<f4").tolist() == [sum(numbers)]
    assert "unexpected size" in refused(server.post(path, data=b"x" * 15, headers=headers))
