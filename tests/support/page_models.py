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

from flambeau.bundle import storage
from flambeau.bundle.storage import Bundle
from flambeau.http.access import open_access
from flambeau.http.flask_app import make_app
from flambeau.serving.service import BlockingService, Service
from flambeau.settings.service import Settings
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache
from flambeau.types import Label, TensorSpec
from tests.support import detector_bundles, picture_bundles, segmenter_bundles

DOUBLE = '''
import flambeau


class Double(flambeau.PythonModel):
    """The third recipe: twice the number."""

    def load(self):
        self.factor = 2.0

    def predict(self, batch):
        return [self.answer(item) for item in batch]

    def answer(self, item):
        if isinstance(item, bool) or not isinstance(item, (int, float)):
            return flambeau.InvalidInput(f"input must be a number, not {type(item).__name__}")
        return item * self.factor
'''
HOSTILE = "<img src=x onerror=alert(1)>"
CAT = 285  # the index of the Egyptian cat


def open_several(default: Bundle, double_py: Path, folder: Path) -> BlockingService:
    """A running service with a model for each form of answer; `efficientnet_lite0` is the default."""
    from tests.support import task_models  # brings torch with it, which most suites do without

    double = build_cache.open_source(
        SourceOptions(source=f"{double_py}:Double", allow_code=True), progress=lambda event: None
    )
    bundles = [
        default, hostile(default, folder / "hostile"), numbers("iris", folder / "iris", (4,)),
        numbers("wide", folder / "wide", (8, 8)), double,
        task_models.sigmoid_outside(folder / "findings").bundle, task_models.embedding(folder / "features").bundle,
        task_models.regression(folder / "age").bundle, task_models.regression(folder / "ages", 3).bundle,
        detector_bundles.detector(folder / "detector"),
        detector_bundles.detector(folder / "masks", task="instance-segmentation", name="masks"),
        detector_bundles.detector(folder / "points", task="keypoint-detection", name="points"),
        segmenter_bundles.segmenter(folder / "segmenter"), picture_bundles.negative(folder / "negative", enlarge=2),
    ]  # fmt: skip
    settings = Settings(runner="threads", replicas=1, threads=1, allow_code=True)
    return BlockingService(lambda: Service(bundles, settings))


def application(service: BlockingService) -> Flask:
    """The whole application over a running service."""
    return make_app(service, open_access(service.service.settings, ours=False))


def hostile(default: Bundle, folder: Path) -> Bundle:
    """The default model, whose cat is called like a piece of HTML."""
    shutil.copytree(default.path, folder)
    labels = list(default.labels() or ())
    labels[CAT] = Label(HOSTILE, HOSTILE)
    storage.write_labels(folder, tuple(labels))
    storage.write_manifest(folder, msgspec.structs.replace(default.manifest, name="hostile"))
    return storage.read(folder)


def numbers(name: str, folder: Path, shape: tuple[int, ...]) -> Bundle:
    """A network that doubles its numbers."""
    folder.mkdir()
    sizes: list[str | int | None] = ["rows", *shape]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, sizes)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / storage.ONNX)
    rows = np.arange(2 * math.prod(shape), dtype=np.float32).reshape(2, *shape)
    save_file({"input.x": rows, "output.y": rows + rows}, folder / storage.PROBES)
    manifest = storage.Manifest(
        format=storage.FORMAT, name=name, flambeau="0", source=storage.Source(kind="onnx", name=f"{name}.onnx"),
        pipeline=storage.TensorConfig(), engine="onnxruntime",
        inputs=(TensorSpec("x", "float32", shape),), outputs=(TensorSpec("y", "float32", shape),),
    )  # fmt: skip
    storage.write_manifest(folder, manifest)
    return storage.read(folder)
