"""A graph of four numbers that multiplies them, and what a bundle of it answers."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import flambeau
from flambeau.bundle.storage import Bundle


def scaled(file: Path, by: float, *, outside: bool = False) -> Path:
    """An ONNX graph: four numbers times `by`, which may lie in `weights.bin` beside it."""
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])], "scaled", [value("x", TensorProto.FLOAT, ["n", 4])],
        [value("y", TensorProto.FLOAT, ["n", 4])], [numpy_helper.from_array(np.full(4, by, np.float32), "w")],
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, file, save_as_external_data=outside, location="weights.bin" if outside else None, size_threshold=0)
    return file


def answered(opened: Bundle) -> float:
    """What it makes of ones."""
    with flambeau.load(str(opened.path)) as model:
        return float(np.ravel(model.predict([1.0, 1.0, 1.0, 1.0]))[0])
