"""ONNX graphs that take or give texts beside numbers, as scikit-learn's converter writes them."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

import flambeau
from flambeau.bundle.storage import Bundle
from flambeau.errors import SourceError
from flambeau.sources.inspection import inspect

pytestmark = pytest.mark.usefixtures("warm_builds")

_ML = "ai.onnx.ml"


def classifier(file: Path, *, takes_texts: bool = False, gives: tuple[str, ...] = ("label", "scores")) -> Path:
    """A graph that names the larger of two numbers, `no` or `yes`; `takes_texts`: of a word, which is either."""
    kinds = {"label": TensorProto.STRING, "scores": TensorProto.FLOAT}
    shapes: dict[str, list[str | int]] = {"label": ["n"], "scores": ["n", 2]}
    given = helper.make_tensor_value_info("row", TensorProto.FLOAT, ["n", 2])
    nodes = [
        helper.make_node("Identity", ["row"], ["scores"]),
        helper.make_node("ArgMax", ["row"], ["place"], axis=1, keepdims=0),
        helper.make_node(
            "LabelEncoder", ["place"], ["label"], domain=_ML, keys_int64s=[0, 1], values_strings=["no", "yes"]
        ),
    ]
    if takes_texts:
        given = helper.make_tensor_value_info("row", TensorProto.STRING, ["n", 1])
        nodes = [
            helper.make_node(
                "LabelEncoder", ["row"], ["scores"], domain=_ML, keys_strings=["no", "yes"], values_floats=[0.0, 1.0]
            )
        ]
        gives, shapes = ("scores",), {"scores": ["n", 1]}
    outputs = [helper.make_tensor_value_info(name, kinds[name], shapes[name]) for name in gives]
    graph = helper.make_graph(nodes, "classifier", [given], outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(_ML, 2)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), file)
    return file


def test_the_output_that_the_question_proposes_is_one_of_numbers(
    built: Callable[..., Bundle], cache: Path, tmp_path: Path
) -> None:
    file = classifier(tmp_path / "classifier.onnx")
    assert inspect(file).needs == "its output label is text, and numbers are served: say --output-name scores"
    with pytest.raises(SourceError, match=r"label is text, and numbers are served; .* such as --output-name scores"):
        built(file)
    with flambeau.load(built(file, output_name="scores").path) as model:
        assert model.predict([1.0, 4.0]) == [1.0, 4.0]


@pytest.mark.parametrize("takes_texts", [False, True])
def test_the_python_model_that_inspect_prints_serves_texts(
    built: Callable[..., Bundle], cache: Path, tmp_path: Path, takes_texts: bool
) -> None:
    file = classifier(tmp_path / "classifier.onnx", takes_texts=takes_texts, gives=("label",))
    with pytest.raises(
        SourceError, match="is STRING" if takes_texts else "no output .* is a tensor of numbers"
    ) as told:
        built(file)
    assert f"flambeau inspect {file} prints a Python model that serves it" in str(told.value)
    found = inspect(file)
    assert found.serve is None
    assert "save the Python model below as file.py" in found.needs
    (tmp_path / "file.py").write_text(found.example)
    with flambeau.load(f"{tmp_path / 'file.py'}:Model", allow_code=True) as model:
        item = {"row": [["yes"], ["no"]] if takes_texts else [[1.0, 4.0]]}
        assert model.predict(item) == ({"scores": [[1.0], [0.0]]} if takes_texts else {"label": ["yes"]})
