"""A small detector as a bundle: it finds more boxes the brighter a picture is. It may have masks or keypoints, too.
Nothing is built.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from flambeau.answers.boxes import BOXES, KEYPOINT_SCORES, KEYPOINTS, LABELS, MASKS, SCORES
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
POINTS = ("tip", "middle", "end")
DISCS = (np.hypot(*(np.indices((28, 28)) - 13.5)) < np.linspace(4, 14, MOST)[:, None, None]).astype(np.float32)
"""The mask of each rank: a disc in the middle of its box, the larger the weaker."""
PLACED = (TABLE[:, None, :2] + np.arange(3, dtype=np.float32)[None, :, None]).astype(np.float32)
LOGITS = np.tile(np.array([3.5, 0.25, -2], np.float32), (MOST, 1))
BASE = {BOXES: TABLE, SCORES: STRENGTHS, LABELS: CLASSES}
KINDS = {
    "object-detection": BASE,
    "instance-segmentation": {**BASE, MASKS: DISCS},
    "keypoint-detection": {**BASE, KEYPOINTS: PLACED, KEYPOINT_SCORES: LOGITS},
}
"""What a detector of each task has of every rank."""


def answers(picture: np.ndarray, task: str = "object-detection") -> dict[str, np.ndarray]:
    """What it finds in a picture, float32 (1, 3, height, width): one box for each 1/300 of brightness."""
    count = int(np.float32(picture.mean(dtype=np.float64)) * np.float32(MOST))
    return {name: each[None, :count] for name, each in KINDS[task].items()}


def write_graph(file: Path, task: str = "object-detection") -> None:
    tables = KINDS[task]
    held: dict[str, np.ndarray] = {
        **{f"{name}.all": each for name, each in tables.items()}, "most": np.array([MOST], np.float32),
        "zero": np.array([0], np.int64), "one": np.array([1], np.int64),
    }  # fmt: skip
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["brightness"], keepdims=0),
        helper.make_node("Mul", ["brightness", "most"], ["number"]),
        helper.make_node("Cast", ["number"], ["count"], to=TensorProto.INT64),
    ]
    for name in tables:
        nodes.append(helper.make_node("Slice", [f"{name}.all", "zero", "count", "zero"], [f"{name}.found"]))
        nodes.append(helper.make_node("Unsqueeze", [f"{name}.found", "zero"], [name]))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "detector", [value("image", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [
            value(name, helper.np_dtype_to_tensor_dtype(each.dtype), [1, "n", *each.shape[1:]])
            for name, each in tables.items()
        ],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)


def detector(
    folder: Path,
    *,
    labels: tuple[str, ...] | None = NAMES,
    most_pixels: int = 12_500_000,
    task: str = "object-detection",
    name: str = "detector",
) -> Bundle:
    """Write it as a build would."""
    folder.mkdir(parents=True, exist_ok=True)
    write_graph(folder / storage.ONNX, task)
    picture = np.full((1, 3, 20, 30), 0.025, np.float32)
    probes = {"input.image": picture} | {f"output.{name}": each for name, each in answers(picture, task).items()}
    save_file({name: np.ascontiguousarray(each) for name, each in probes.items()}, folder / storage.PROBES)
    if labels is not None:
        storage.write_labels(folder, tuple(Label(str(index), name) for index, name in enumerate(labels)))
    manifest = Manifest(
        format=storage.FORMAT, name=name, flambeau="0", source=Source(kind="checkpoint", name="detector.pth"),
        pipeline=PictureConfig(
            classes=3, least=0.05, most=MOST, most_pixels=most_pixels,
            keypoints=POINTS if task == "keypoint-detection" else (),
        ),
        engine="onnxruntime",
        inputs=(TensorSpec("image", "float32", (3, FREE, FREE)),),
        outputs=tuple(
            TensorSpec(name, str(each.dtype), (FREE, *each.shape[1:]), least=0) for name, each in KINDS[task].items()
        ),
        task=task, activation=Activation("none", known="architecture"), one_row="each has its own boxes",
    )  # fmt: skip
    storage.write_manifest(folder, manifest)
    return storage.read(folder)
