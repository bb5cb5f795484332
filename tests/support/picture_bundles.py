"""A small network that makes pictures, as a bundle: it makes negatives, and enlarges them if told. Nothing is built."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from flambeau.bundle import storage
from flambeau.bundle.storage import Activation, Bundle, DenseConfig, Manifest, Source
from flambeau.items import FREE
from flambeau.types import TensorSpec


def write_graph(file: Path, *, enlarge: int, planes: int) -> None:
    held = [
        numpy_helper.from_array(np.array(1, np.float32), "one"),
        numpy_helper.from_array(np.array([1, 1, enlarge, enlarge], np.float32), "scales"),
        numpy_helper.from_array(np.arange(planes, dtype=np.int64), "kept"),
    ]
    nodes = [
        helper.make_node("Sub", ["one", "image"], ["negative"]),
        helper.make_node("Gather", ["negative", "kept"], ["few"], axis=1),
        helper.make_node("Resize", ["few", "", "scales"], ["picture"], mode="nearest"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "negative", [value("image", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [value("picture", TensorProto.FLOAT, [1, planes, "high", "wide"])], held,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)


def negative(folder: Path, *, enlarge: int = 1, planes: int = 3, **config: Any) -> Bundle:
    """Write it as a build would. Of one plane, each picture's least number is black; else 0 is."""
    folder.mkdir(parents=True, exist_ok=True)
    write_graph(folder / storage.ONNX, enlarge=enlarge, planes=planes)
    picture = np.random.default_rng(0).random((1, 3, 32, 36), np.float32)
    answer = (1 - picture)[:, :planes].repeat(enlarge, 2).repeat(enlarge, 3)
    save_file({"input.image": picture, "output.picture": np.ascontiguousarray(answer)}, folder / storage.PROBES)
    config = {"levels": (0.0, 1.0) if planes == 3 else None, "large": "tile", "overlap": 32, **config}
    pipeline = DenseConfig(mean=(0.0,) * 3, std=(1.0,) * 3, multiple=4, scale=(enlarge, 1), **config)
    manifest = Manifest(
        format=storage.FORMAT, name="negative", flambeau="0", source=Source(kind="checkpoint", name="negative.pth"),
        pipeline=pipeline, engine="onnxruntime", inputs=(TensorSpec("image", "float32", (3, FREE, FREE)),),
        outputs=(TensorSpec("picture", "float32", (planes, FREE, FREE)),), task="image-to-image",
        activation=Activation("none", by="network", known="said"), one_row="pictures keep sizes of their own",
    )  # fmt: skip
    storage.write_manifest(folder, manifest)
    return storage.read(folder)
