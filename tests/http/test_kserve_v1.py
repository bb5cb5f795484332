"""KServe v1: instances to predictions, for numbers, images and Python models; events; what is refused."""

import base64
import gzip
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import requests

from tests.support.kserve_models import Served
from tests.support.photographs import encoded, photograph
from tests.support.server import Serve, ServerProcess

A = [[0.5, -1.0, 2.0, 0.25], [1.0, 2.0, 3.0, 4.0]]
B = [[[1, 2, 3], [4, 5, 6]], [[0, 1, 0], [1, 0, 1]]]
ROWS = [{"a": a, "b": b} for a, b in zip(A, B, strict=True)]


@pytest.fixture(scope="module")
def server(serve: Serve, models: Served) -> Iterator[ServerProcess]:
    with serve(models.folder, "--allow-code", "--replicas", "1") as running:
        yield running


def predict(server: ServerProcess, model: str, body: Any, **more: Any) -> requests.Response:
    return server.post(f"/v1/models/{model}:predict", json=body, **more)


def refused(answer: requests.Response, status: int = 400) -> str:
    assert (answer.status_code, list(answer.json())) == (status, ["error"]), answer.text
    return str(answer.json()["error"])


def test_models_are_listed_and_ready(server: ServerProcess) -> None:
    assert server.get("/v1/models").json() == {"models": ["animals", "double", "line", "several"]}
    assert server.get("/v1/models/several").json() == {"name": "several", "ready": True}
    assert server.get("/v1/models/several/versions/1").json() == {"name": "several", "ready": True}
    assert refused(server.get("/v1/models/nobody"), 404) == (
        "there is no model of that name ('nobody'): name one of animals, double, line, several"
    )


def test_rows_are_answered_by_row_and_columns_by_column(server: ServerProcess, models: Served) -> None:
    right = models.several.answers({"a": np.array(A, np.float32), "b": np.array(B, np.int64)})
    for body in ({"instances": ROWS}, {"inputs": ROWS}):
        found = predict(server, "several", body).json()["predictions"]
        assert [each["sums"] for each in found] == right["sums"].tolist()
        np.testing.assert_allclose([each["scores"] for each in found], right["scores"], rtol=1e-5)
    found = predict(server, "several", {"inputs": {"a": A, "b": B}}).json()["outputs"]
    assert found["sums"] == right["sums"].tolist()
    one = server.post("/v1/models/several/versions/1:predict", json={"instances": ROWS[:1]}).json()["predictions"]
    assert [each["sums"] for each in one] == right["sums"].tolist()[:1]


def test_a_network_with_one_input_takes_rows_as_they_are(server: ServerProcess) -> None:
    for body in ({"instances": [[1, 2, 3], [4, 5, 6]]}, {"instances": [{"x": [1, 2, 3]}, {"x": [4, 5, 6]}]}):
        assert predict(server, "line", body).json() == {"predictions": [[6.0], [15.0]]}
    assert predict(server, "line", {"inputs": {"x": [[1, 2, 3]]}}).json() == {"outputs": [[6.0]]}
    assert predict(server, "line", {"instances": [[1, 2, 3]]}).json() == {"predictions": [[6.0]]}
    # one row is no list of rows: it would be answered as another request than was meant
    assert "nested 0 deep" in refused(predict(server, "line", {"instances": [1, 2, 3]}))
    assert "nested 0 deep" in refused(predict(server, "line", {"instances": [{"x": 1}, {"x": 2}]}))


def test_long_documents_are_read_in_the_replica(server: ServerProcess) -> None:
    rows = np.arange(30_000).reshape(1000, 30).tolist()
    found = predict(server, "line", {"instances": rows}).json()["predictions"]
    assert found == [[float(sum(row))] for row in rows]


def test_images_are_answered_as_predict_answers_them(server: ServerProcess) -> None:
    files = [encoded(photograph(name)) for name in ("chelsea", "coffee", "rocket")]
    texts = [base64.b64encode(each).decode() for each in files]
    native = [server.post("/predict/animals", files={"file": each}).json() for each in files]
    for instances in (
        texts, [{"b64": each} for each in texts], [{"image_bytes": {"b64": each}} for each in texts],
        [{"data": each, "target": 0} for each in texts], [{"image": {"b64": each}} for each in texts],
    ):  # fmt: skip
        assert predict(server, "animals", {"instances": instances}).json() == {"predictions": native}
    ranked = predict(server, "animals", {"instances": texts[:1], "parameters": {"top_k": 2, "threshold": 0}}).json()
    assert len(ranked["predictions"][0]["predictions"]) == 2
    assert "instance 1: " in refused(predict(server, "animals", {"instances": [texts[0], "?", texts[1]]}))


def test_a_python_model_gets_each_instance(server: ServerProcess) -> None:
    assert predict(server, "double", {"instances": [1, 2.5]}).json() == {"predictions": [2.0, 5.0]}
    assert predict(server, "double", {"inputs": [4]}).json() == {"predictions": [8.0]}
    assert "instance 1: input must be a number" in refused(predict(server, "double", {"instances": [1, "x"]}))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the body is empty"),
        ("{", "not JSON"),
        ("[]", "not understood"),
        ("{}", '"instances" or "inputs"'),
        ('{"instances": [1], "inputs": [1]}', "one of them"),
        ('{"instances": [1], "instances": [2]}', "more than once"),
        ('{"instances": 1}', "not a list"),
        ('{"instances": []}', "no instance"),
        ('{"instances": [NaN]}', "NaN"),
        ('{"instances": [1], "parameters": {"top_k": 0}}', "top_k"),
        ('{"instances": [1], "parameters": {"threshold": 7}}', "threshold"),
        ('{"instances": ' + "[" * 500 + "]" * 500 + "}", "levels deep"),
    ],
)
def test_a_wrong_document_is_told_why(server: ServerProcess, text: str, says: str) -> None:
    assert says in refused(server.post("/v1/models/double:predict", data=text))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"instances": [A[0]]}, 'each instance must be an object with "a", "b"'),
        ({"instances": [ROWS[0], A[0]]}, "instance 1 is not an object"),
        ({"instances": [ROWS[0], {"a": A[0]}]}, "instance 1 lacks the input 'b'"),
        ({"instances": [{**ROWS[0], "c": 1}]}, "instance 0 has 'c'"),
        ({"instances": [{**ROWS[0], "a": A}]}, "nested 2 deep"),
        ({"instances": [ROWS[0], {**ROWS[1], "a": [1]}]}, "input 'a'"),
        ({"inputs": {"a": A}}, "'b'"),
        ({"inputs": {"a": A, "b": B[:1]}}, "equal length"),
    ],
)
def test_instances_that_do_not_fit_are_told_why(server: ServerProcess, body: Any, says: str) -> None:
    text = refused(predict(server, "several", body))
    assert says in text or says.replace("'", '"') in text


def test_a_name_that_is_there_twice_in_an_instance_is_refused(server: ServerProcess) -> None:
    """T-22: readers differ in which one counts."""
    text = json.dumps({"instances": ROWS}).replace('{"a": [0.5', '{"a": [9, 9, 9, 9], "a": [0.5', 1)
    assert "more than once" in refused(server.post("/v1/models/several:predict", data=text))


def test_too_many_instances_are_refused(server: ServerProcess) -> None:
    assert "the most is 64" in refused(predict(server, "double", {"instances": [1] * 65}))


def test_explanations_are_not_there(server: ServerProcess) -> None:
    assert "explanations are not supported" in refused(server.post("/v1/models/double:explain", json={}), 501)
    refused(server.post("/v1/models/nobody:explain", json={}), 404)
    refused(server.post("/v1/models/nobody:predict", json={}), 404)


def test_an_event_is_answered_with_an_event(server: ServerProcess) -> None:
    event = {"ce-id": "7", "ce-source": "shop", "ce-type": "order", "ce-specversion": "1.0", "ce-tenant": "x"}
    headers = predict(server, "double", {"instances": [1]}, headers={**event, "X-Request-ID": "mine"}).headers
    assert {name: value for name, value in headers.items() if name.lower().startswith("ce-")} == {
        "ce-id": "mine", "ce-source": "io.kserve.inference.double", "ce-type": "io.kserve.inference.response",
        "ce-specversion": "1.0", "ce-tenant": "x",
    }  # fmt: skip
    plain = predict(server, "double", {"instances": [1]}, headers={"ce-tenant": "x"}).headers
    assert not [name for name in plain if name.lower().startswith("ce-")]


def test_bodies_may_be_compressed_and_requests_are_counted(server: ServerProcess) -> None:
    headers = {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}
    answer = server.post("/v1/models/double:predict", data=gzip.compress(b'{"instances": [3]}'), headers=headers)
    assert (answer.json(), answer.headers["Content-Encoding"]) == ({"predictions": [6.0]}, "gzip")
    assert answer.headers["Server-Timing"].startswith("queue;dur=")
    counted = 'flambeau_requests_total{model="double",protocol="v1",status="200",version="1"}'
    assert counted in server.get("/metrics").text
