"""ONNX graphs of several inputs and outputs: names, dtypes and shapes are their own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

import flambeau
from flambeau.bundle.storage import Bundle
from flambeau.errors import RequestError, SourceError
from flambeau.types import TensorSpec
from tests.support import tensor_bundles
from tests.support.tensor_bundles import save, unlike
from tests.support.warm import run_with_torch

pytestmark = [pytest.mark.usefixtures("warm_builds"), pytest.mark.timeout(600)]


Built = Callable[..., Bundle]


LEFT = [[0.5, -1.0, 2.0, 0.25], [1.0, 3.0, -2.0, 0.0]]


# ONNX


def test_a_graph_tells_names_dtypes_and_shapes_of_its_own(built: Built, tmp_path: Path) -> None:
    tensor_bundles.write_graph(tmp_path / "several.onnx")
    bundle = built(tmp_path / "several.onnx")
    assert bundle.manifest.inputs == (TensorSpec("a", "float32", (4,)), TensorSpec("b", "int64", (2, 3)))
    given: dict[str, np.ndarray] = {"a": np.array(LEFT, np.float32), "b": np.arange(12).reshape(2, 2, 3)}
    expected = tensor_bundles.answers(given)
    with flambeau.load(bundle.path) as model:
        found = model.predict({name: each.tolist() for name, each in given.items()})
    assert found["sums"] == expected["sums"].tolist()
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-5)


@pytest.mark.long
def test_an_input_that_is_one_for_all_rows_is_given_with_every_row(
    built: Built, notes: list[str], tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("Cast", ["sr"], ["rate"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "rate"], ["y"]),
    ]
    bundle = built(save(tmp_path / "rate.onnx", nodes, {"x": ["n", 2], "sr": []}, {"y": ["n", 2]}))
    assert any("one row at a time, because its input sr is one for all rows" in note for note in notes)
    with flambeau.load(bundle.path) as model:
        assert model.predict({"x": [[1, 2], [3, 4]], "sr": [10, 100]}) == [[10, 20], [300, 400]]
        assert model.predict({"x": [1, 2], "sr": 3}) == [3, 6]


@pytest.mark.long
@pytest.mark.parametrize("batch", ["n", None], ids=["a word", "no word"])
def test_a_state_with_its_layers_first_goes_in_and_comes_out_by_rows(
    built: Built, notes: list[str], tmp_path: Path, batch: str | None
) -> None:
    """Beside a rate that the graph knows: with any other, its numbers are not finite."""
    nodes = [
        helper.make_node("Equal", ["sr", "rate"], ["known"]),
        helper.make_node("Cast", ["known"], ["one"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["input", "one"], ["sound"]),
        helper.make_node("Unsqueeze", ["sound", "zero"], ["layer"]),
        helper.make_node("Add", ["state", "layer"], ["stateN"]),
        helper.make_node("ReduceSum", ["sound", "axis"], ["y"], keepdims=0),
    ]
    inputs = {"input": [batch, 3], "state": [2, batch, 3], "sr": []}
    outputs = {"y": [batch], "stateN": [None, None, None]}
    weights = {"rate": np.array(16000), "zero": np.array([0]), "axis": np.array([1])}
    file = save(tmp_path / "stream.onnx", nodes, inputs, outputs, **weights)
    assert "serve         flambeau serve" in run_with_torch("inspect", file).stdout
    bundle = built(file)
    assert bundle.manifest.inputs[1:] == (
        TensorSpec("state", "float32", (2, 3)), TensorSpec("sr", "int64", (), known=(16000,)),
    )  # fmt: skip
    assert any("the rows of state are axis 1; in requests they come first" in note for note in notes)
    state = np.arange(6, dtype=np.float32).reshape(2, 3)
    with flambeau.load(bundle.path) as model:
        for _ in range(3):
            answer = model.predict({"input": [1, 2, 3], "state": state.tolist(), "sr": 16000})
            state += [1, 2, 3]
            assert answer == {"y": 6, "stateN": state.tolist()}
        two: dict[str, list[Any]] = {"input": [[1, 2, 3], [4, 5, 6]], "state": [state.tolist()] * 2, "sr": [16000] * 2}
        assert model.predict(two)["stateN"] == [(state + each).tolist() for each in two["input"]]
        with pytest.raises(RequestError, match=r"input 'state' must be nested lists of shape \[2, 3\]"):
            model.predict({"input": [1, 2, 3], "state": [[each] for each in state.tolist()], "sr": 16000})


@pytest.mark.long
def test_steps_before_the_rows_are_told_by_the_word_of_the_rows(built: Built, tmp_path: Path) -> None:
    """As PyTorch exports an LSTM without `batch_first`: a row is a sequence, not a step of all sequences."""
    numbers = np.random.default_rng(4)
    weights = {name: numbers.standard_normal((1, 16, size), np.float32) for name, size in (("W", 5), ("R", 4))}
    nodes = [helper.make_node("LSTM", ["x", "W", "R", "", "", "h", "c"], ["y", "hn", "cn"], hidden_size=4)]
    state: list[Any] = [1, "batch_size", 4]
    inputs = {"x": ["steps", "batch_size", 5], "h": state, "c": state}
    file = save(tmp_path / "steps.onnx", nodes, inputs, {"y": [None] * 4, "hn": state, "cn": state}, **weights)
    given = {name: numbers.standard_normal(shape, np.float32) for name, shape in (("x", (6, 3, 5)), ("h", (1, 3, 4)))}
    given["c"] = -given["h"]
    expected = dict(zip(["y", "hn", "cn"], onnxruntime.InferenceSession(file).run(None, given), strict=True))
    with flambeau.load(built(file).path) as model:
        found = model.predict({name: each.swapaxes(0, 1).tolist() for name, each in given.items()})
        one = model.predict({name: each[:, 1].tolist() for name, each in given.items()})
    np.testing.assert_allclose(found["y"], expected["y"].transpose(2, 0, 1, 3), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["hn"], expected["hn"].swapaxes(0, 1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one["cn"], expected["cn"][:, 1], rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_an_axis_that_only_may_have_the_rows_is_not_taken_if_they_have_other_answers_together(
    built: Built, tmp_path: Path
) -> None:
    nodes = [helper.make_node("ReduceSum", ["boxes", "both"], ["sum"], keepdims=0),
             helper.make_node("Mul", ["x", "sum"], ["y"])]  # fmt: skip
    inputs: dict[str, list[Any]] = {"x": ["n", 5], "boxes": [4, "number"]}
    file = save(tmp_path / "boxes.onnx", nodes, inputs, {"y": ["n", 5]}, both=np.array([0, 1]))
    with pytest.raises(SourceError, match=r"does not say which axis of its input boxes has the rows, and they are not"):
        built(file)


@pytest.mark.long
def test_a_state_that_is_an_output_unchanged_cannot_be_turned(built: Built, tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceSum", ["state", "zero"], ["sum"], keepdims=0),
             helper.make_node("Add", ["x", "sum"], ["y"])]  # fmt: skip
    state: list[Any] = [2, "n", 5]
    outputs = {"y": ["n", 5], "state": state}
    file = save(tmp_path / "same.onnx", nodes, {"x": ["n", 5], "state": state}, outputs, zero=np.array([0]))
    with pytest.raises(SourceError, match=r"the input state of same\.onnx is its output as well: take another with"):
        built(file)
    with flambeau.load(built(file, output_name="y").path) as model:
        assert model.predict({"x": [1] * 5, "state": [[1] * 5, [2] * 5]}) == [4] * 5


@pytest.mark.long
def test_an_output_may_have_other_axes_than_the_graph_says(built: Built, tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["state", "x"], ["stateN"])]
    inputs: dict[str, list[Any]] = {"x": ["n", 2], "state": [3, "n", 2]}
    file = save(tmp_path / "wrong.onnx", nodes, inputs, {"stateN": []})
    with flambeau.load(built(file).path) as model:
        assert model.predict({"x": [1, 2], "state": [[0, 0], [1, 1], [2, 2]]}) == [[1, 2], [2, 3], [3, 4]]


@pytest.mark.long
def test_only_numbers_that_an_input_can_have_are_tried(built: Built, tmp_path: Path) -> None:
    constants = {"a": np.inf, "b": np.nan, "c": 0.5, "d": 1e30, "e": 3}
    nodes = [helper.make_node("Cast", ["sr"], ["number"], to=TensorProto.FLOAT)]
    for place, name in enumerate(constants):
        nodes += [
            helper.make_node("Greater", ["number", name], [f"{name} less"]),
            helper.make_node("Cast", [f"{name} less"], [f"{name} counted"], to=TensorProto.FLOAT),
            helper.make_node("Add", [f"sum {place}" if place else "x", f"{name} counted"], [f"sum {place + 1}"]),
        ]
    nodes.append(helper.make_node("Identity", [f"sum {len(constants)}"], ["y"]))
    weights = {name: np.array(number, np.float32) for name, number in constants.items()}
    bundle = built(save(tmp_path / "numbers.onnx", nodes, {"x": ["n", 2], "sr": []}, {"y": ["n", 2]}, **weights))
    assert bundle.manifest.inputs[1].known == (3,)
    with flambeau.load(bundle.path) as model:
        assert model.predict({"x": [[0, 1]] * 3, "sr": [0, 3, 4]}) == [[0, 1], [1, 2], [2, 3]]


def test_token_ids_of_any_length_are_a_graphs_own_affair(built: Built, tmp_path: Path) -> None:
    table = np.random.default_rng(3).standard_normal((50, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["vectors"]),
        helper.make_node("ReduceMean", ["vectors"], ["mean"], axes=[1], keepdims=0),
    ]
    outputs = {"vectors": ["n", "length", 4], "mean": ["n", 4]}
    file = save(tmp_path / "tokens.onnx", nodes, {"tokens": ["n", "length"]}, outputs, table=table)
    bundle = built(file)
    assert bundle.manifest.inputs == (TensorSpec("tokens", "int64", (-1,)),)
    assert [spec.shape for spec in bundle.manifest.outputs] == [(-1, 4), (4,)]
    with flambeau.load(bundle.path) as model:
        for tokens in ([3, 14, 15, 49, 6], [7], list(range(40))):
            found = model.predict(tokens)
            np.testing.assert_allclose(found["mean"], table[tokens].mean(0), rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(found["vectors"], table[tokens], rtol=1e-6)


@pytest.mark.long
def test_axes_of_one_word_in_a_graph_have_one_length(built: Built, tmp_path: Path) -> None:
    """ONNX Runtime itself computes rows of unlike lengths where one of them is 1."""
    nodes = [
        helper.make_node("Mul", ["x", "mask"], ["marked"]),
        helper.make_node("ReduceSum", ["marked", "axis"], ["y"], keepdims=0),
    ]
    inputs = {"x": ["n", "t"], "mask": ["n", "t"]}
    bundle = built(save(tmp_path / "masked.onnx", nodes, inputs, {"y": ["n"]}, axis=np.array([1])))
    assert [spec.words for spec in bundle.manifest.inputs] == [("t",), ("t",)]
    with flambeau.load(bundle.path) as model:
        assert float(model.predict({"x": [1, 2, 3], "mask": [1, 0, 1]})) == 4
        sentence = "the length 't' is 3 in the input 'x', and 1 in 'mask': it has to be the same"
        assert unlike(model, {"x": [1, 2, 3], "mask": [1]}) == sentence


@pytest.mark.long
def test_a_graph_of_a_free_length_may_be_held_to_one(built: Built, tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceSum", ["x", "axis"], ["y"], keepdims=0)]
    file = save(tmp_path / "sum.onnx", nodes, {"x": ["n", "t", 2]}, {"y": ["n", 2]}, axis=np.array([1]))
    assert built(file, input_shape=(3, 2)).manifest.inputs[0].shape == (3, 2)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    with flambeau.load(built(file).path) as model:
        for length in (1, 3, 70_000):
            rows = np.random.default_rng(length).standard_normal((1, length, 2)).astype(np.float32)
            expected = session.run(None, {"x": rows})[0]
            np.testing.assert_allclose(model.predict(rows.tolist()), expected, rtol=1e-3, atol=1e-3)
        wrong: list[Any]
        for wrong in ([], [[]], [[1, 2], [3]], [[1, 2, 3]], [[[[1, 2]]]], [[[1, 2]], [[1, 2], [3, 4]]]):
            with pytest.raises(RequestError, match=r"input must be nested lists of shape \[any, 2\]") as caught:
                model.predict(wrong)
            assert caught.value.code == "invalid_tensor"
