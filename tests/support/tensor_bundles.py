"""Small bundles over numbers: one with two named inputs and outputs, and torch's own numbers; and one that doubles."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from flambeau.bundle import storage
from flambeau.bundle.storage import Activation, Bundle, Manifest, Source, TensorConfig
from flambeau.errors import RequestError
from flambeau.types import Tensors, TensorSpec

WEIGHTS = np.random.default_rng(5).standard_normal((4, 3)).astype(np.float32)


@dataclass(frozen=True)
class Several:
    """`a` float32 [N, 4] and `b` int64 [N, 2, 3] to `sums` int64 [N, 2] and `scores` float32 [N, 3]."""

    bundle: Bundle

    def answers(self, tensors: Tensors) -> Tensors:
        """What torch makes of the inputs."""
        return answers(tensors)


def answers(tensors: Tensors) -> Tensors:
    a, b = torch.from_numpy(tensors["a"]), torch.from_numpy(tensors["b"])
    scores = (a @ torch.from_numpy(WEIGHTS)) * b.sum((1, 2), keepdim=False)[:, None].float()
    return {"sums": b.sum(2).numpy(), "scores": scores.numpy()}


def write_graph(file: Path) -> None:
    nodes = [
        helper.make_node("ReduceSum", ["b", "last"], ["sums"], keepdims=0),
        helper.make_node("ReduceSum", ["sums", "one"], ["total"], keepdims=1),
        helper.make_node("Cast", ["total"], ["factor"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["a", "w"], ["product"]),
        helper.make_node("Mul", ["product", "factor"], ["scores"]),
    ]
    held = [onnx.numpy_helper.from_array(array, name) for name, array in (
        ("w", WEIGHTS), ("last", np.array([2], np.int64)), ("one", np.array([1], np.int64)),
    )]  # fmt: skip
    graph = helper.make_graph(
        nodes, "several",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", 4]),
         helper.make_tensor_value_info("b", TensorProto.INT64, ["n", 2, 3])],
        [helper.make_tensor_value_info("sums", TensorProto.INT64, ["n", 2]),
         helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])],
        held,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)


def several(folder: Path) -> Several:
    """Write it as a build would."""
    folder.mkdir(parents=True, exist_ok=True)
    write_graph(folder / storage.ONNX)
    numbers = np.random.default_rng(1)
    given: dict[str, np.ndarray] = {
        "a": numbers.standard_normal((4, 4)).astype(np.float32),
        "b": numbers.integers(0, 5, (4, 2, 3)).astype(np.int64),
    }
    probes = {f"input.{name}": each for name, each in given.items()}
    probes |= {f"output.{name}": np.ascontiguousarray(each) for name, each in answers(given).items()}
    save_file(probes, folder / storage.PROBES)
    manifest = Manifest(
        format=storage.FORMAT, name="several", flambeau="0", source=Source(kind="onnx", name="several.onnx"),
        pipeline=TensorConfig(), engine="onnxruntime",
        inputs=(TensorSpec("a", "float32", (4,)), TensorSpec("b", "int64", (2, 3))),
        outputs=(TensorSpec("sums", "int64", (2,)), TensorSpec("scores", "float32", (3,))),
        task="tensor", activation=Activation("none"),
    )  # fmt: skip
    storage.write_manifest(folder, manifest)
    return Several(storage.read(folder))


def doubling(folder: Path) -> Path:
    """A bundle that doubles three numbers: `input` float32 [N, 3] to `output`."""
    given = np.arange(12, dtype=np.float32).reshape(4, 3)
    return _one_node(folder, helper.make_node("Add", ["input", "input"], ["output"], "doubling"), given, given * 2)


def echoing(folder: Path, dtypes: dict[str, str], name: str) -> Path:
    """A bundle that gives back each of its inputs, of shape [N, 3], by its name and `_out`."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {each: np.arange(12).reshape(4, 3).astype(dtype) for each, dtype in dtypes.items()}
    kinds = {each: helper.np_dtype_to_tensor_dtype(array.dtype) for each, array in given.items()}
    graph = helper.make_graph(
        [helper.make_node("Identity", [each], [f"{each}_out"]) for each in given], name,
        [helper.make_tensor_value_info(each, kind, ["n", 3]) for each, kind in kinds.items()],
        [helper.make_tensor_value_info(f"{each}_out", kind, ["n", 3]) for each, kind in kinds.items()],
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / storage.ONNX
    )
    probes = {f"input.{each}": array for each, array in given.items()}
    save_file(probes | {f"output.{each}_out": array for each, array in given.items()}, folder / storage.PROBES)
    manifest = Manifest(
        format=storage.FORMAT, name=name, flambeau="0", source=Source(kind="onnx", name=f"{name}.onnx"),
        pipeline=TensorConfig(), engine="onnxruntime",
        inputs=tuple(TensorSpec(each, array.dtype.name, (3,)) for each, array in given.items()),
        outputs=tuple(TensorSpec(f"{each}_out", array.dtype.name, (3,)) for each, array in given.items()),
        task="tensor", activation=Activation("none"),
    )  # fmt: skip
    storage.write_manifest(folder, manifest)
    return folder


TENTHS = np.arange(5, dtype=np.float32) / 10


def looking_up(folder: Path) -> Path:
    """A bundle that looks a place up in `TENTHS`: `input` int64 [N, 1] to `output`. The graph fails on any other."""
    given = np.array([[3], [0], [4], [1]], np.int64)
    return _one_node(folder, helper.make_node("Gather", ["table", "input"], ["output"], "places"), given, TENTHS[given],
                     table=TENTHS)  # fmt: skip


def _one_node(folder: Path, node: onnx.NodeProto, given: np.ndarray, made: np.ndarray, **weights: np.ndarray) -> Path:
    """A bundle of one node, called as that node, with the rows that it is tried with."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {"input": given, "output": made}
    values = {
        name: helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), ["n", *array.shape[1:]]
        ) for name, array in told.items()
    }  # fmt: skip
    held = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph([node], node.name, [values["input"]], [values["output"]], held)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / storage.ONNX
    )
    save_file({"input.input": given, "output.output": made}, folder / storage.PROBES)
    specs = {name: TensorSpec(name, array.dtype.name, array.shape[1:]) for name, array in told.items()}
    manifest = Manifest(
        format=storage.FORMAT, name=node.name, flambeau="0", source=Source(kind="onnx", name=f"{node.name}.onnx"),
        pipeline=TensorConfig(), engine="onnxruntime", inputs=(specs["input"],), outputs=(specs["output"],),
        task="tensor", activation=Activation("none"),
    )  # fmt: skip
    storage.write_manifest(folder, manifest)
    return folder


def alike(found: Any, expected: torch.Tensor) -> None:
    np.testing.assert_allclose(np.array(found), expected.numpy(), rtol=1e-4, atol=1e-5)


def save(file: Path, nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], **weights: Any) -> Path:
    def told(name: str, shape: Any) -> Any:
        kind = TensorProto.INT64 if name in ("sr", "tokens") else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(
        nodes, "made", [told(*each) for each in inputs.items()], [told(*each) for each in outputs.items()],
        [numpy_helper.from_array(np.asarray(each), name) for name, each in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)
    return file


def unlike(model: Any, rows: Any) -> str:
    with pytest.raises(RequestError) as caught:
        model.predict(rows)
    assert caught.value.code == "invalid_tensor"
    return caught.value.message
