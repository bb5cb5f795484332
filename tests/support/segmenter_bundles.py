"""A small segmenter as a bundle: the class of a pixel is its strongest channel. Nothing is built."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from flambeau.bundle import storage
from flambeau.bundle.storage import Activation, Bundle, DenseConfig, Manifest, Source
from flambeau.items import FREE
from flambeau.types import Label, TensorSpec

NAMES = ("background", "grass", "sky")
"""Red, green and blue."""

_STRENGTH = 20.0


def write_graph(file: Path) -> None:
    held = [numpy_helper.from_array(np.array(_STRENGTH, np.float32), "strength")]
    node = helper.make_node("Mul", ["image", "strength"], ["logits"])
    value = helper.make_tensor_value_info
    ends = [value(name, TensorProto.FLOAT, [1, 3, "h", "w"]) for name in ("image", "logits")]
    graph = helper.make_graph([node], "segmenter", [ends[0]], [ends[1]], held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)


def segmenter(folder: Path, *, labels: tuple[str, ...] | None = NAMES, most_pixels: int = 1_048_576) -> Bundle:
    """Write it as a build would."""
    folder.mkdir(parents=True, exist_ok=True)
    write_graph(folder / storage.ONNX)
    picture = np.random.default_rng(0).random((1, 3, 32, 36), np.float32)
    save_file({"input.image": picture, "output.logits": picture * np.float32(_STRENGTH)}, folder / storage.PROBES)
    if labels is not None:
        storage.write_labels(folder, tuple(Label(str(index), name) for index, name in enumerate(labels)))
    config = DenseConfig(mean=(0.0,) * 3, std=(1.0,) * 3, multiple=4, classes=3, most_pixels=most_pixels)
    manifest = Manifest(
        format=storage.FORMAT, name="segmenter", flambeau="0", source=Source(kind="checkpoint", name="segmenter.pth"),
        pipeline=config, engine="onnxruntime", inputs=(TensorSpec("image", "float32", (3, FREE, FREE)),),
        outputs=(TensorSpec("logits", "float32", (3, FREE, FREE)),), task="semantic-segmentation",
        activation=Activation("softmax", known="architecture"), one_row="pictures keep sizes of their own",
    )  # fmt: skip
    storage.write_manifest(folder, manifest)
    return storage.read(folder)
