"""A repository of four models for the tests of KServe's protocols: numbers, images, and code."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from flambeau.bundle import storage
from flambeau.bundle.storage import Activation, Manifest, Source, TensorConfig
from flambeau.items import FREE
from flambeau.types import TensorSpec
from tests.support import page_models, task_models
from tests.support.task_models import Made
from tests.support.tensor_bundles import Several, several


@dataclass(frozen=True)
class Served:
    """`several`: two named inputs and outputs. `animals`: a classifier over images. `double`: a Python model.
    `line`: the sum of a row of any length."""

    folder: Path
    several: Several
    animals: Made


def write(folder: Path) -> Served:
    """Write the repository."""
    for name in ("several", "animals", "double", "line"):
        (folder / name).mkdir(parents=True)
    numbers = several(folder / "several" / "1")
    labels = ("cat", "dog", "bird", "fish", "horse")
    images = task_models.make(
        folder / "animals" / "1", task_models.network(5), task="classification", labels=labels,
        activation=Activation("softmax", known="said"), pipeline=task_models.PREPARATION,
    )  # fmt: skip
    _line(folder / "line" / "1")
    code = folder / "double" / "1"
    code.mkdir()
    (code / "double.py").write_text(page_models.DOUBLE)
    (code / "model.toml").write_text('source = "double.py:Double"\n')
    return Served(folder, numbers, images)


def _line(folder: Path) -> None:
    folder.mkdir()
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x", "axis"], ["sum"], keepdims=1)], "line",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "m"])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["n", 1])],
        [onnx.numpy_helper.from_array(np.array([1], np.int64), "axis")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / storage.ONNX)
    rows = np.arange(24, dtype=np.float32).reshape(3, 8)
    save_file({"input.x": rows, "output.sum": rows.sum(1, keepdims=True)}, folder / storage.PROBES)
    manifest = Manifest(
        format=storage.FORMAT, name="line", flambeau="0", source=Source(kind="onnx", name="line.onnx"),
        pipeline=TensorConfig(), engine="onnxruntime", inputs=(TensorSpec("x", "float32", (FREE,)),),
        outputs=(TensorSpec("sum", "float32", (1,)),), task="tensor", activation=Activation("none"),
    )  # fmt: skip
    storage.write_manifest(folder, manifest)
