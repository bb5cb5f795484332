"""A4, A5, A14: ONNX files that would never end, that ask for a machine's memory, or that hide a part of themselves."""

import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from flambeau import checkpoints
from flambeau.errors import SetupError
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache
from tests.support import forge, warm

GIGABYTE = 10**9


def model(*nodes: onnx.NodeProto, weights: tuple[onnx.TensorProto, ...] = (), **more: Any) -> onnx.ModelProto:
    """A graph from `x` to `y`, rows of four numbers."""
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    answered = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    made = helper.make_graph(list(nodes), "made", [given], [answered], list(weights))
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.example", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=9, **more)


def number(name: str, *values: int) -> onnx.TensorProto:
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


def loop(rounds: int, *, begins_with: str) -> onnx.ModelProto:
    """`y` is the value after so many changes of its sign; of a constant, it is folded when it is opened."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Neg", ["v"], ["v2"])], "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("c2", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v2", TensorProto.FLOAT, None),
        ],
    )  # fmt: skip
    zero = numpy_helper.from_array(np.zeros((1, 4), np.float32), "zero")
    weights = (
        helper.make_tensor("rounds", TensorProto.INT64, [], [rounds]),
        helper.make_tensor("go", TensorProto.BOOL, [], [True]), zero,
    )  # fmt: skip
    return model(
        helper.make_node("Loop", ["rounds", "go", begins_with], ["looped"], body=body),
        helper.make_node("Add", ["x", "looped"], ["y"]), weights=weights,
    )  # fmt: skip


def filled(count: int) -> onnx.ModelProto:
    """`y` is `x` and the sum of so many ones."""
    return model(
        helper.make_node("ConstantOfShape", ["shape"], ["ones"], value=numpy_helper.from_array(np.ones(1, np.float32))),
        helper.make_node("ReduceSum", ["ones"], ["sum"], keepdims=0), helper.make_node("Add", ["x", "sum"], ["y"]),
        weights=(number("shape", count),),
    )  # fmt: skip


def refusal_of_build(file: Path, tmp_path: Path) -> str:
    with pytest.raises(SetupError) as caught:
        build_cache.build_into(SourceOptions(source=str(file)), tmp_path / "bundle", progress=lambda event: None)
    return str(caught.value)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("begins_with", [pytest.param("x", marks=pytest.mark.slow), "zero"])
@pytest.mark.usefixtures("warm_build")
def test_a_loop_without_an_end_ends_the_build_and_says_so_a14(tmp_path: Path, begins_with: str) -> None:
    onnx.save(loop(2**62, begins_with=begins_with), tmp_path / "loop.onnx")
    said = refusal_of_build(tmp_path / "loop.onnx", tmp_path)
    assert re.search(rf"loop\.onnx does not come to an end: .* more than {warm.FEW_CPU_SECONDS} s", said)
    assert [path.name for path in tmp_path.iterdir()] == ["loop.onnx"]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_graph_that_asks_for_all_memory_is_refused_with_the_number_a14(tmp_path: Path) -> None:
    onnx.save(filled(8 * 2**30), tmp_path / "large.onnx")
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert "large.onnx asks for more than 2.1 GB" in refusal_of_build(tmp_path / "large.onnx", tmp_path)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < max(before * 1024, 3 * GIGABYTE)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_loop_and_a_large_constant_that_are_honest_are_served_a14(tmp_path: Path) -> None:
    for name, made in (("loop", loop(20, begins_with="x")), ("filled", filled(10_000_000))):
        onnx.save(made, tmp_path / f"{name}.onnx")
        options = SourceOptions(source=str(tmp_path / f"{name}.onnx"))
        notes: list[object] = []
        build_cache.build_into(options, tmp_path / name, progress=notes.append)
        assert any("in a sandbox first" in str(note) for note in notes)


@pytest.mark.usefixtures("warm_build")
def test_operators_of_others_are_named_with_their_domain_a19(tmp_path: Path) -> None:
    node = helper.make_node("Sharpen", ["x"], ["y"], domain="com.example")
    onnx.save(model(node), tmp_path / "own.onnx")
    assert checkpoints.examine(tmp_path / "own.onnx").facts["operators of others"] == "com.example::Sharpen"
    said = refusal_of_build(tmp_path / "own.onnx", tmp_path)
    assert "com.example::Sharpen" in said
    assert "export it without" in said


OUTSIDE = forge.protobuf((1, b"location"), (2, b"../../etc/passwd"))
TENSOR = forge.protobuf((8, b"w"), (13, OUTSIDE))
GRAPH_OF_TENSOR = forge.protobuf((5, TENSOR))


def attribute(field: int, value: bytes) -> bytes:
    """A graph of one node with one attribute."""
    return forge.protobuf((1, forge.protobuf((4, b"Constant"), (5, forge.protobuf((1, b"value"), (field, value))))))


NODE_OF_TENSOR = forge.protobuf((5, forge.protobuf((5, TENSOR))))
HIDDEN: dict[str, bytes] = {
    "initializer": forge.onnx(GRAPH_OF_TENSOR),
    "sparse initializer": forge.onnx(forge.protobuf((15, forge.protobuf((1, TENSOR))))),
    "constant": forge.onnx(attribute(5, TENSOR)),
    "list of tensors": forge.onnx(attribute(10, TENSOR)),
    "sparse constant": forge.onnx(attribute(22, forge.protobuf((2, TENSOR)))),
    "subgraph": forge.onnx(attribute(6, GRAPH_OF_TENSOR)),
    "subgraph of a subgraph": forge.onnx(attribute(11, attribute(6, GRAPH_OF_TENSOR))),
    "first of two graphs": forge.protobuf(
        (1, 8), (2, b"x"), (7, GRAPH_OF_TENSOR), (7, forge.protobuf((2, b"g"))), (8, forge.protobuf((2, 17)))
    ),
    "function": forge.onnx(b"") + forge.protobuf((25, forge.protobuf((7, NODE_OF_TENSOR)))),
    "training": forge.onnx(b"") + forge.protobuf((20, forge.protobuf((2, GRAPH_OF_TENSOR)))),
    "location given twice": forge.onnx(
        forge.protobuf((5, forge.protobuf((13, OUTSIDE), (13, forge.protobuf((1, b"location"), (2, b"beside"))))))
    ),
}  # fmt: skip


@pytest.mark.parametrize("place", HIDDEN)
@pytest.mark.usefixtures("warm_build")
def test_weights_outside_the_folder_are_seen_wherever_they_are_named_a5(tmp_path: Path, place: str) -> None:
    (tmp_path / "hidden.onnx").write_bytes(HIDDEN[place])
    (tmp_path / "beside").write_bytes(b"")
    report = checkpoints.examine(tmp_path / "hidden.onnx")
    assert report.verdict == "refused"
    assert "outside its own folder" in report.reason


@pytest.mark.usefixtures("warm_build")
def test_a_graph_in_two_parts_is_their_sum_a5(tmp_path: Path) -> None:
    """As protobuf has it: inputs and outputs of both."""
    whole = model(helper.make_node("Neg", ["x"], ["y"]))
    first, second = onnx.GraphProto(), onnx.GraphProto()
    first.input.extend(whole.graph.input)
    second.CopyFrom(whole.graph)
    del second.input[:]
    data = forge.protobuf(
        (1, 9), (2, b"two"), (7, first.SerializeToString()), (7, second.SerializeToString()),
        (8, forge.protobuf((2, 18))),
    )  # fmt: skip
    (tmp_path / "two.onnx").write_bytes(data)
    read = onnx.load_model_from_string(data)
    facts = checkpoints.examine(tmp_path / "two.onnx").facts
    assert (facts["inputs"], facts["outputs"]) == ("x float32[n, 4]", "y float32[n, 4]")
    assert [value.name for value in (*read.graph.input, *read.graph.output)] == ["x", "y"]
    build_cache.build_into(
        SourceOptions(source=str(tmp_path / "two.onnx")), tmp_path / "made", progress=lambda event: None
    )


def kept_outside(folder: Path) -> Path:
    """A graph whose weight lies in `weights.bin` beside it."""
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    made = model(helper.make_node("MatMul", ["x", "w"], ["y"]), weights=(weight,))
    onnx.save(made, folder / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    return folder / "m.onnx"


def _symlink(folder: Path) -> None:
    (folder / "weights.bin").rename(folder / "real.bin")
    (folder / "weights.bin").symlink_to("real.bin")


def _missing(folder: Path) -> None:
    (folder / "weights.bin").unlink()


def _folder(folder: Path) -> None:
    (folder / "weights.bin").unlink()
    (folder / "weights.bin").mkdir()


def _long(folder: Path) -> None:
    found = onnx.load(folder / "m.onnx", load_external_data=False)
    found.graph.initializer[0].external_data[0].value = "w" * 5000
    onnx.save(found, folder / "m.onnx")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_symlink, "which is a symbolic link"),
        (_missing, "No such file"),
        (_folder, "which is not a file"),
        (_long, "5,000 characters"),
    ],
)
@pytest.mark.usefixtures("warm_build")
def test_inspect_and_build_judge_weights_beside_a_graph_alike_a5(
    tmp_path: Path, change: Callable[[Path], None], words: str
) -> None:
    file = kept_outside(tmp_path)
    assert checkpoints.examine(file).verdict == "data"
    change(tmp_path)
    report = checkpoints.examine(file)
    assert (report.verdict, words in report.reason) == ("refused", True), report.reason
    assert words in refusal_of_build(file, tmp_path)


@pytest.mark.usefixtures("warm_build")
def test_the_suffix_of_an_onnx_file_decides_nothing_a5(tmp_path: Path) -> None:
    """onnx would read a name.json as JSON, and a name.onnxtxt as text."""
    made = model(helper.make_node("Neg", ["x"], ["y"]))
    (tmp_path / "graph.onnxtxt").write_bytes(made.SerializeToString())
    assert checkpoints.examine(tmp_path / "graph.onnxtxt").verdict == "data"
    options = SourceOptions(source=str(tmp_path / "graph.onnxtxt"))
    build_cache.build_into(options, tmp_path / "made", progress=lambda event: None)
