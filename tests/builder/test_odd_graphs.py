"""Programs and graphs that compute, and cannot be served: each is told in a sentence that is true of it."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from flambeau.bundle import storage
from tests.support.warm import run_with_torch

pytestmark = pytest.mark.timeout(300)  # they build, and the machine may have other work


def graph(file: Path, nodes: list[onnx.NodeProto], outputs: list[onnx.ValueInfoProto], rows: int | str = 1) -> Path:
    """An ONNX graph of one input x, (rows, 4), and weights W, (4, 3)."""
    weights = np.arange(12, dtype=np.float32).reshape(4, 3)
    initial = [numpy_helper.from_array(weights, "W"), numpy_helper.from_array(np.array([3]), "three")]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 4])
    made = helper.make_graph(nodes, "graph", [given], outputs, initial)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    model = helper.make_model(made, opset_imports=imports)
    model.ir_version = 8
    onnx.save(model, file)
    return file


def refused(file: Path, *arguments: object) -> str:
    """What `flambeau build` says when it refuses."""
    ended = run_with_torch("build", file, *arguments, "-o", file.parent / "bundle")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "failed unexpectedly" not in ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stderr.strip().splitlines()[-1]


def test_a_graph_that_loses_its_row_is_told_so(tmp_path: Path) -> None:
    """It was made for one row, and answers without the row's axis. There is no PyTorch that it could disagree with."""
    nodes = [helper.make_node("MatMul", ["x", "W"], ["y"]), helper.make_node("Reshape", ["y", "three"], ["z"])]
    file = graph(tmp_path / "flat.onnx", nodes, [helper.make_tensor_value_info("z", TensorProto.FLOAT, [3])])
    said = refused(file)
    assert "answers 1 row with [3]" in said
    assert "keep the first axis" in said
    assert "PyTorch" not in said


@pytest.mark.long
def test_a_small_output_beside_large_ones_may_depend_on_strangers_too_w6(tmp_path: Path) -> None:
    """A million times smaller: what is nothing beside the others is all that there is of it."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["y"]),
        helper.make_node("Constant", [], ["scales"], value_floats=[1e6, 1e6, 1]),
        helper.make_node("Constant", [], ["third"], value_floats=[0.0, 0.0, 1.0]),
        helper.make_node("ReduceMean", ["y"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Mul", ["y", "scales"], ["scaled"]),
        helper.make_node("Mul", ["mean", "third"], ["strangers"]),
        helper.make_node("Add", ["scaled", "strangers"], ["z"]),
    ]
    answer = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["rows", 3])
    file = graph(tmp_path / "mixed.onnx", nodes, [answer], rows="rows")
    ended = run_with_torch("build", file, "-o", tmp_path / "bundle")
    assert ended.returncode == 0, ended.stderr
    assert "is given one row at a time" in ended.stderr
    assert storage.read(tmp_path / "bundle").manifest.one_row is not None


def test_the_probabilities_of_scikit_learn_are_no_tensor(tmp_path: Path) -> None:
    """`--output-name` of an output that is there was said to have no effect on a graph with one output."""
    classifier = helper.make_node(
        "LinearClassifier", ["x"], ["label", "scores"], domain="ai.onnx.ml",
        coefficients=[1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0], intercepts=[0.0, 0, 0], classlabels_ints=[0, 1, 2],
    )  # fmt: skip
    zipped = helper.make_node(
        "ZipMap", ["scores"], ["chances"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]
    )  # fmt: skip
    chance = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
        helper.make_value_info("chances", helper.make_sequence_type_proto(chance)),
    ]
    file = graph(tmp_path / "trees.onnx", [classifier, zipped], outputs, rows="N")
    said = refused(file, "--output-name", "chances")
    assert "not a tensor but a sequence" in said
    assert "zipmap=False" in said


class Loops(nn.Module):
    """As many rounds as its input asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 4)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        for _ in range(int(rows.abs().max())):
            rows = torch.tanh(self.line(rows))
        return rows


class Doubles(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 4).double()

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.line(rows)
        return result


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("network", "says"),
    [(Loops, "ONNX Runtime cannot compute the export.*--arch file.py:Class"), (Doubles, "dtype")],
)
def test_a_program_that_cannot_be_served_is_told_in_a_line(network: type[nn.Module], says: str, tmp_path: Path) -> None:
    """An export that ONNX Runtime does not take ended the build "unexpectedly"; TorchScript's errors are 20 lines."""
    torch.jit.script(network()).save(tmp_path / "net.pt")
    said = refused(tmp_path / "net.pt", "--allow-code", "--input-shape", "4")
    assert said.startswith("flambeau: ")
    assert re.search(says, said), said
