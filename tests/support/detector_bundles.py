"""A small detector as a bundle: it finds more boxes the brighter a picture is. Nothing is built."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from flambeau.answers.boxes import BOXES, LABELS, SCORES
from flambeau.bundle import storage
from flambeau.bundle.storage import Activation, Bundle, Manifest, PictureConfig, Source
from flambeau.items import FREE
from flambeau.types import Label, TensorSpec

MOST = 300
PLACES = np.arange(MOST, dtype=np.float32)
TABLE = np.stack([PLACES / 10, PLACES / 20, PLACES / 10 + 30, PLACES / 20 + 20], axis=1)
"""The box of each rank: xmin, ymin, xmax, ymax."""
STRENGTHS = np.linspace(0.99, 0.51, MOST, dtype=np.float32)
CLASSES = (1 + np.arange(MOST) % 2).astype(np.int64)
NAMES = ("background", "cat", "dog")


def answers(picture: np.ndarray) -> dict[str, np.ndarray]:
    """What it finds in a picture, float32 (1, 3, height, width): one box for each 1/300 of brightness."""
    count = int(np.float32(picture.mean(dtype=np.float64)) * np.float32(MOST))
    return {BOXES: TABLE[None, :count], SCORES: STRENGTHS[None, :count], LABELS: CLASSES[None, :count]}


def write_graph(file: Path) -> None:
    held: dict[str, np.ndarray] = {
        "table": TABLE, "strengths": STRENGTHS, "classes": CLASSES, "most": np.array([MOST], np.float32),
        "zero": np.array([0], np.int64), "one": np.array([1], np.int64),
    }  # fmt: skip
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["brightness"], keepdims=0),
        helper.make_node("Mul", ["brightness", "most"], ["number"]),
        helper.make_node("Cast", ["number"], ["count"], to=TensorProto.INT64),
    ]
    for name, taken in ((BOXES, "table"), (SCORES, "strengths"), (LABELS, "classes")):
        nodes.append(helper.make_node("Slice", [taken, "zero", "count", "zero"], [f"{name}.found"]))
        nodes.append(helper.make_node("Unsqueeze", [f"{name}.found", "zero"], [name]))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "detector", [value("image", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [value(BOXES, TensorProto.FLOAT, [1, "n", 4]), value(SCORES, TensorProto.FLOAT, [1, "n"]),
         value(LABELS, TensorProto.INT64, [1, "n"])],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)


def detector(folder: Path, *, labels: tuple[str, ...] | None = NAMES, most_pixels: int = 12_500_000) -> Bundle:
    """Write it as a build would."""
    folder.mkdir(parents=True, exist_ok=True)
    write_graph(folder / storage.ONNX)
    picture = np.full((1, 3, 20, 30), 0.025, np.float32)
    probes = {"input.image": picture} | {f"output.{name}": each for name, each in answers(picture).items()}
    save_file({name: np.ascontiguousarray(each) for name, each in probes.items()}, folder / storage.PROBES)
    if labels is not None:
        storage.write_labels(folder, tuple(Label(str(index), name) for index, name in enumerate(labels)))
    manifest = Manifest(
        format=storage.FORMAT, name="detector", flambeau="0", source=Source(kind="checkpoint", name="detector.pth"),
        pipeline=PictureConfig(classes=3, least=0.05, most=MOST, most_pixels=most_pixels), engine="onnxruntime",
        inputs=(TensorSpec("image", "float32", (3, FREE, FREE)),),
        outputs=(TensorSpec(BOXES, "float32", (FREE, 4), least=0), TensorSpec(SCORES, "float32", (FREE,), least=0),
                 TensorSpec(LABELS, "int64", (FREE,), least=0)),
        task="object-detection", activation=Activation("none", known="architecture"), one_row="each has its own boxes",
    )  # fmt: skip
    storage.write_manifest(folder, manifest)
    return storage.read(folder)
