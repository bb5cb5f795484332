"""Numbers that are missing: null, an empty cell and NaN go to networks that say what they make of them, and to no
other."""

import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import flambeau
from flambeau.bundle.storage import Bundle
from flambeau.errors import RequestError
from tests.support.server import ServerProcess
from tests.support.warm import run_with_torch

pytestmark = pytest.mark.usefixtures("warm_builds")

Built = Callable[..., Bundle]


def trees(*, tracks: int, values: str = "x", to: str = "y") -> onnx.NodeProto:
    """A tree that asks whether number 0 is at most 0.5: then 1, else 2. A missing one is if it `tracks`."""
    return helper.make_node(
        "TreeEnsembleRegressor", [values], [to], domain="ai.onnx.ml", n_targets=1,
        nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[0, 0, 0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_values=[0.5, 0.0, 0.0],
        nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0], nodes_missing_value_tracks_true=[tracks, 0, 0],
        target_treeids=[0, 0], target_nodeids=[1, 2], target_ids=[0, 0], target_weights=[1.0, 2.0],
    )  # fmt: skip


def imputer(replaced: float, to: str) -> onnx.NodeProto:
    """What equals `replaced` becomes 0."""
    return helper.make_node(
        "Imputer", ["x"], [to], domain="ai.onnx.ml", imputed_value_floats=[0.0], replaced_value_float=replaced
    )


def saved(file: Path, *nodes: onnx.NodeProto) -> Path:
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", None])
    graph = helper.make_graph(list(nodes), "trees", [given], [answer])
    operations = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=operations, ir_version=9), file)
    return file


SAYS = {
    "trees": [trees(tracks=1)],
    "behind a cast": [helper.make_node("Cast", ["x"], ["z"], to=TensorProto.FLOAT), trees(tracks=1, values="z")],
    "imputer": [imputer(math.nan, "z"), trees(tracks=0, values="z")],
}
SAYS_NOT = {
    "trees": [trees(tracks=0)],
    "computed with first": [helper.make_node("Neg", ["x"], ["z"]), trees(tracks=1, values="z")],
    "an imputer of zeros": [imputer(0.0, "z"), trees(tracks=1, values="z")],
    "other trees beside": [
        trees(tracks=1, to="a"), trees(tracks=0, to="b"), helper.make_node("Add", ["a", "b"], ["y"])
    ],
}  # fmt: skip


def first_of(graphs: dict[str, list[onnx.NodeProto]]) -> list[Any]:
    """Their names; the first alone is of `make test`."""
    first, *others = graphs
    return [first, *(pytest.param(each, marks=pytest.mark.long) for each in others)]


@pytest.mark.parametrize("kind", first_of(SAYS))
def test_null_is_a_missing_number_where_the_graph_says_what_it_makes_of_it(
    built: Built, cache: Path, tmp_path: Path, kind: str
) -> None:
    with flambeau.load(built(saved(tmp_path / "net.onnx", *SAYS[kind])).path) as model:
        assert model.predict([None, None]) == [1.0]
        rows: list[list[float | None]] = [[None, 3.0], [0.25, None], [0.75, None]]
        assert model.predict(rows) == [[1.0], [1.0], [2.0]]
        assert model.predict(rows * 300) == [[1.0], [1.0], [2.0]] * 300
        assert model.predict(np.array([math.nan, 1])) == [1.0]
        with pytest.raises(RequestError, match="out of range for float32"):
            model.predict([1e300, 1])


@pytest.mark.parametrize("kind", first_of(SAYS_NOT))
def test_null_is_refused_where_it_says_nothing_of_missing_numbers(
    built: Built, cache: Path, tmp_path: Path, kind: str
) -> None:
    made = built(saved(tmp_path / "net.onnx", *SAYS_NOT[kind]))
    told = r"null where a number belongs, .* as binary data over KServe v2"
    with flambeau.load(made.path) as model, pytest.raises(RequestError, match=told):
        model.predict([None, 1.0])


@pytest.mark.long
def test_an_empty_cell_is_a_missing_number(built: Built, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(",3\n0.75,\nnan,NA\nx,1\n")
    for kind, expected in (("trees", [1.0, 2.0, 1.0, None]), ("none", [None] * 4)):
        nodes = SAYS["trees"] if kind == "trees" else SAYS_NOT["trees"]
        made = built(saved(tmp_path / f"{kind}.onnx", *nodes))
        done = run_with_torch("predict", made.path, tmp_path / "in.csv", "-o", tmp_path / f"{kind}.jsonl")
        assert done.returncode == 3, done.stderr
        rows = [json.loads(line) for line in (tmp_path / f"{kind}.jsonl").read_text().splitlines()]
        assert [row["output"] and row["output"][0] for row in rows] == expected
        assert rows[3]["error"] == "column 1 holds 'x', which is not a number"


def test_nan_goes_as_binary_data_to_any_network(
    built: Built, cache: Path, tmp_path: Path, serve: Callable[..., AbstractContextManager[ServerProcess]]
) -> None:
    says = built(saved(tmp_path / "says.onnx", *SAYS["trees"])).path
    says_not = built(saved(tmp_path / "says_not.onnx", *SAYS_NOT["trees"])).path
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32"}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": 8}}]}).encode()
    sent = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    nothing: Any = np.array([[math.nan, 1]], np.float32)
    with serve(f"says={says}", f"says_not={says_not}") as server:
        for name, expected in (("says", 1.0), ("says_not", 2.0)):
            asked = f"/v2/models/{name}/infer"
            answer = server.post(asked, data=head + nothing.tobytes(), headers=sent).json()
            assert answer["outputs"][0]["data"] == [expected]
            for data, told in (("[null, 1]", "NaN is sent as binary data"), ("[NaN, 1]", "binary data over KServe v2")):
                body = json.dumps({"inputs": [{**tensor, "data": 0}]}).replace('"data": 0', f'"data": {data}')
                assert told in server.post(asked, data=body).json()["error"]
        csv = {"headers": {"Content-Type": "text/csv"}, "data": ",1\n"}
        assert server.post("/endpoints/says/invocations", **csv).json() == [[1.0]]
        assert server.post("/endpoints/says_not/invocations", **csv).status_code == 400
