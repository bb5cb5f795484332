"""Several models behind one page: every task over pictures, a hostile class, numbers, and own code."""

import math
import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
from flask import Flask
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from flambeau import bundle, sources
from flambeau.bundle import Bundle
from flambeau.config import Settings
from flambeau.orders import SourceOptions
from flambeau.service import BlockingService, Service
from flambeau.types import Label, TensorSpec
from flambeau.web.access.gate import open_gate
from flambeau.web.app import make_app

HOSTILE = "<img src=x onerror=alert(1)>"
CAT = 285  # the index of the Egyptian cat


def open_several(default: Bundle, double_py: Path, folder: Path) -> BlockingService:
    """A running service with a model for each form of answer; `efficientnet_lite0` is the default."""
    import task_models  # brings torch with it, which most suites do without

    double = sources.open_source(
        SourceOptions(source=f"{double_py}:Double", allow_code=True), progress=lambda event: None
    )
    bundles = [
        default, hostile(default, folder / "hostile"), numbers("iris", folder / "iris", (4,)),
        numbers("wide", folder / "wide", (8, 8)), double,
        task_models.sigmoid_outside(folder / "findings").bundle, task_models.embedding(folder / "features").bundle,
        task_models.regression(folder / "age").bundle, task_models.regression(folder / "ages", 3).bundle,
    ]  # fmt: skip
    settings = Settings(runner="threads", replicas=1, threads=1, allow_code=True)
    return BlockingService(lambda: Service(bundles, settings))


def application(service: BlockingService) -> Flask:
    """The whole application over a running service."""
    return make_app(service, open_gate(service.service.settings, ours=False))


def hostile(default: Bundle, folder: Path) -> Bundle:
    """The default model, whose cat is called like a piece of HTML."""
    shutil.copytree(default.path, folder)
    labels = list(default.labels() or ())
    labels[CAT] = Label(HOSTILE, HOSTILE)
    bundle.write_labels(folder, tuple(labels))
    bundle.write_manifest(folder, msgspec.structs.replace(default.manifest, name="hostile"))
    return bundle.read(folder)


def numbers(name: str, folder: Path, shape: tuple[int, ...]) -> Bundle:
    """A network that doubles its numbers."""
    folder.mkdir()
    sizes = ["rows", *shape]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, sizes)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / bundle.ONNX)
    rows = np.arange(2 * math.prod(shape), dtype=np.float32).reshape(2, *shape)
    save_file({"input.x": rows, "output.y": rows + rows}, folder / bundle.PROBES)
    manifest = bundle.Manifest(
        format=bundle.FORMAT, name=name, flambeau="0", source=bundle.Source(kind="onnx", name=f"{name}.onnx"),
        pipeline=bundle.TensorPipeline(), engine="onnxruntime",
        inputs=(TensorSpec("x", "float32", shape),), outputs=(TensorSpec("y", "float32", shape),),
    )  # fmt: skip
    bundle.write_manifest(folder, manifest)
    return bundle.read(folder)
