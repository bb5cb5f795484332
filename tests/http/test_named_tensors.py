"""A network with several named inputs and outputs, served: JSON, the OpenAPI document, the page, `flambeau predict`."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs as jsonschema
import numpy as np
import pytest

import flambeau
from flambeau.client import Client
from tests.support.server import Serve, ServerProcess
from tests.support.tensor_bundles import Several, several
from tests.support.warm import run_with_torch

ONE = {"a": [0.5, -1.0, 2.0, 0.25], "b": [[1, 2, 3], [4, 5, 6]]}
TWO = {"a": [ONE["a"], [1.0, 2.0, 3.0, 4.0]], "b": [ONE["b"], [[0, 1, 0], [1, 0, 1]]]}
DECIMAL = "it has a decimal number where a whole number belongs"
WANTED = 'input must be an object with "a", "b"'


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Several:
    return several(tmp_path_factory.mktemp("several"))


@pytest.fixture(scope="module")
def server(serve: Serve, network: Several) -> Iterator[ServerProcess]:
    with serve(network.bundle.path, "--replicas", "1") as running:
        yield running


def expected(network: Several, rows: dict[str, Any]) -> dict[str, Any]:
    """torch's own numbers for a list of rows of each."""
    return network.answers({"a": np.array(rows["a"], np.float32), "b": np.array(rows["b"], np.int64)})


def assert_right(found: dict[str, Any], right: dict[str, Any]) -> None:
    assert list(found) == ["sums", "scores"]
    assert found["sums"] == right["sums"].tolist()
    np.testing.assert_allclose(found["scores"], right["scores"], rtol=1e-5)


def test_rows_are_answered_with_rows_and_a_row_with_a_row(server: ServerProcess, network: Several) -> None:
    answer = server.post(json={"input": TWO})
    assert list(answer.json()) == ["outputs"]
    assert_right(answer.json()["outputs"], expected(network, TWO))
    alone = server.post(json={"input": ONE}).json()["outputs"]
    right = expected(network, {name: [row] for name, row in ONE.items()})
    assert_right({name: [row] for name, row in alone.items()}, right)


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        ([1, 2, 3, 4], WANTED),
        ({"a": ONE["a"]}, f'{WANTED}, but it has no "b"'),
        ({**ONE, "c": 1}, f"{WANTED}, and nothing else: it has 'c'"),
        ({**ONE, "a": [1, 2]}, "input 'a' must be a list of 4 numbers, or a list of such lists, but its shape is [2]"),
        (
            {**ONE, "b": [[1, 2, 3], [4, 5, 6.5]]},
            f"input 'b' must be nested lists of shape [2, 3], or a list of those, but {DECIMAL}",
        ),
        (
            {**ONE, "b": TWO["b"]},
            "'a' is one row, and 'b' is a list of 2 rows: send one row of each, or lists of equal length",
        ),
        (
            {"a": TWO["a"], "b": [ONE["b"]]},
            "'a' is a list of 2 rows, and 'b' is a list of 1 rows: send one row of each, or lists of equal length",
        ),
    ],
)
def test_what_does_not_fit_names_the_input(server: ServerProcess, sent: Any, sentence: str) -> None:
    answer = server.post(json={"input": sent})
    assert (answer.status_code, answer.json()["code"], answer.json()["error"]) == (400, "invalid_tensor", sentence)


@pytest.mark.parametrize("name", ["a", "\\u0061"])
def test_an_input_that_is_there_twice_is_refused(server: ServerProcess, name: str) -> None:
    """T-22: readers differ in which one counts."""
    text = '{"input": {"a": [1, 2, 3, 4], "b": [[1, 2, 3], [4, 5, 6]], "NAME": [5, 6, 7, 8]}}'.replace("NAME", name)
    answer = server.post(data=text, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_json")
    assert "more than once" in answer.json()["error"]


def test_a_long_document_is_read_in_the_replica(server: ServerProcess, network: Several) -> None:
    rows = 900
    many = {"a": np.random.default_rng(2).normal(size=(rows, 4)).tolist(), "b": [ONE["b"]] * rows}
    assert len(json.dumps(many)) > 64 * 1024
    assert_right(server.post(json={"input": many}).json()["outputs"], expected(network, many))


def test_the_document_describes_what_is_taken_and_given(server: ServerProcess) -> None:
    paths = server.get("/openapi.json").json()["paths"]["/predict"]["post"]
    taken = paths["requestBody"]["content"]["application/json"]["schema"]
    given = paths["responses"]["200"]["content"]["application/json"]["schema"]
    for sent in (ONE, TWO):
        jsonschema.validate(taken, {"input": sent})
        jsonschema.validate(given, server.post(json={"input": sent}).json())
    for wrong in ({"a": ONE["a"]}, {**ONE, "c": 1}, ONE["a"]):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(taken, {"input": wrong})


def test_the_page_shows_how_the_inputs_are_named_and_answers_them(server: ServerProcess) -> None:
    assert "{&#34;a&#34;: […], &#34;b&#34;: […]}" in server.get("/").text
    page = server.post("/", files={"input": (None, json.dumps(ONE))})
    assert page.status_code == 200
    assert "scores" in page.text


def test_clients_in_python_get_all_outputs(server: ServerProcess, network: Several) -> None:
    right = expected(network, TWO)
    with Client(server.url) as client:
        assert_right(dict(client.predict(TWO).outputs), right)
    with flambeau.load(network.bundle.path) as model:
        assert_right(model.predict(TWO), right)


@pytest.mark.long
def test_rows_of_a_table_have_a_column_for_each_output(network: Several, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ONE) + "\n" + json.dumps({"input": TWO}) + "\n" + '{"a": 1}\n')
    right = expected(network, TWO)
    lines = run_with_torch("predict", network.bundle.path, "rows.jsonl", "--format", "jsonl", cwd=tmp_path)
    first, second, bad = map(json.loads, lines.stdout.splitlines())
    assert list(first) == ["input", "output.sums", "output.scores", "error", "code"]
    assert first["output.sums"] == right["sums"][0].tolist()
    np.testing.assert_allclose(second["output.scores"], right["scores"], rtol=1e-5)
    assert (bad["code"], bad["output.sums"]) == ("invalid_tensor", None)
    table = run_with_torch("predict", network.bundle.path, "rows.jsonl", "--format", "csv", cwd=tmp_path)
    rows = list(csv.DictReader(io.StringIO(table.stdout)))
    assert json.loads(rows[0]["output.sums"]) == right["sums"][0].tolist()
