"""Bundles of small networks over images, one for each task and activation, with PyTorch's own numbers beside them.

A bundle is written as a build would write it, with probes of eager PyTorch, so that nothing here waits for a build.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file
from torch import nn

from flambeau.bundle import storage
from flambeau.bundle.storage import Activation, Bundle, ImageConfig, Manifest, Source
from flambeau.pipelines.image import decode, normalise, resize_and_crop
from flambeau.tasks import TaskName
from flambeau.types import Label, TensorSpec

SIDE = 32
NAMES = ("atelectasis", "effusion", "nodule", "mass", "pneumonia")
PREPARATION = ImageConfig(resize=SIDE, crop=SIDE, threshold=0.5)


def network(outputs: int, *tail: nn.Module, seed: int = 0) -> nn.Sequential:
    """A network over images with so many outputs, whose numbers lie well apart, and what it ends in."""
    torch.manual_seed(seed)
    features = [nn.Conv2d(3, 8, 5, stride=3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    last = nn.Linear(32, outputs)
    with torch.no_grad():
        last.weight *= 12
    return nn.Sequential(*features, last, *tail).eval()


class Strangers(nn.Module):
    """W6: batch statistics at inference, so that the answer to a row depends on the rows beside it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Conv2d(3, 8, 5, stride=3)
        self.norm = nn.BatchNorm2d(8, track_running_stats=False)
        self.last = nn.Linear(8, 3)
        with torch.no_grad():
            self.last.weight *= 8

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(self.norm(self.first(rows)).relu().mean((2, 3)))
        return found


@dataclass(frozen=True)
class Made:
    """A network with its bundle. `answers` are PyTorch's own numbers for the bytes of an image, shape (outputs,)."""

    bundle: Bundle
    network: nn.Module
    pipeline: ImageConfig = field(default=PREPARATION)

    def pixels(self, data: bytes) -> torch.Tensor:
        """The image as the network is given it, shape (1, 3, side, side)."""
        pipeline = self.pipeline
        image = resize_and_crop(
            decode(data, max_pixels=10**8), pipeline.resize, pipeline.crop, resampling=Image.Resampling.BILINEAR
        )
        mean, std = np.array(pipeline.mean, np.float32), np.array(pipeline.std, np.float32)
        return torch.from_numpy(normalise(image, mean, std))

    def answers(self, data: bytes) -> torch.Tensor:
        with torch.inference_mode():
            found: torch.Tensor = self.network(self.pixels(data))[0]
        return found


def make(
    folder: Path,
    net: nn.Module,
    *,
    task: TaskName | None,
    activation: Activation | None,
    labels: Sequence[str] | None = None,
    pipeline: ImageConfig = PREPARATION,
    one_row: str | None = None,
    older: bool = True,
    **fields: Any,
) -> Made:
    """Write the bundle of a network. `task` and `activation` are absent from an old one.

    `older`: it is exported by the exporter that knows less, and needs less time.
    """
    folder.mkdir()
    torch.manual_seed(1)
    rows = torch.randn(4, 3, pipeline.crop, pipeline.crop)
    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["output"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter says that it is one: it needs a tenth of the other's time
        if older:
            axes = {"input": {0: "rows"}, "output": {0: "rows"}}
            torch.onnx.export(net, (rows[:2],), folder / storage.ONNX, dynamic_axes=axes, dynamo=False, **names)
        else:
            shapes = ({0: torch.export.Dim.DYNAMIC},)
            torch.onnx.export(
                net, (rows[:2],), folder / storage.ONNX, dynamic_shapes=shapes, dynamo=True, verbose=False,
                external_data=False, **names,
            )  # fmt: skip
    with torch.inference_mode():
        eager = torch.cat([net(row[None]) for row in rows]).numpy()
    save_file({"input.input": rows.numpy(), "output.output": eager}, folder / storage.PROBES)
    if labels is not None:
        storage.write_labels(folder, tuple(Label(str(index), name) for index, name in enumerate(labels)))
    manifest = Manifest(
        format=storage.FORMAT, name=folder.name, flambeau="0", source=Source(kind="onnx", name=f"{folder.name}.onnx"),
        pipeline=pipeline, engine="onnxruntime",
        inputs=(TensorSpec("input", "float32", (3, pipeline.crop, pipeline.crop)),),
        outputs=(TensorSpec("output", str(eager.dtype), tuple(eager.shape[1:])),),
        task=task, activation=activation, one_row=one_row, **fields,
    )  # fmt: skip
    storage.write_manifest(folder, manifest)
    return Made(storage.read(folder), net, pipeline)


BY_NETWORK = {"by": "network", "known": "graph"}


def softmax_inside(folder: Path) -> Made:
    """W2: the graph ends in a softmax."""
    return make(
        folder, network(5, nn.Softmax(1)), task="classification", labels=NAMES,
        activation=Activation("softmax", **BY_NETWORK), pipeline=ImageConfig(resize=SIDE, crop=SIDE),  # type: ignore[arg-type]
    )  # fmt: skip


def log_softmax_inside(folder: Path) -> Made:
    """W2: the graph ends in a LogSoftmax."""
    return make(
        folder, network(5, nn.LogSoftmax(1)), task="classification", labels=NAMES,
        activation=Activation("softmax", logarithm=True, **BY_NETWORK),  # type: ignore[arg-type]
        pipeline=ImageConfig(resize=SIDE, crop=SIDE),
    )  # fmt: skip


def sigmoid_inside(folder: Path) -> Made:
    """W3: five findings, and the graph ends in a sigmoid."""
    return make(
        folder, network(5, nn.Sigmoid()), task="multi-label", labels=NAMES,
        activation=Activation("sigmoid", **BY_NETWORK),  # type: ignore[arg-type]
    )  # fmt: skip


def sigmoid_outside(folder: Path) -> Made:
    """W4: five findings as logits, trained with BCEWithLogits."""
    return make(folder, network(5), task="multi-label", labels=NAMES, activation=Activation("sigmoid", known="said"))


def embedding(folder: Path, dimensions: int = 512) -> Made:
    """W5: features."""
    return make(folder, network(dimensions), task="embedding", activation=Activation("none", known="architecture"))


def regression(folder: Path, outputs: int = 1) -> Made:
    """One number, or several."""
    return make(folder, network(outputs), task="regression", activation=Activation("none", known="said"))


def strangers(folder: Path, **fields: Any) -> Made:
    """W6: a classifier whose rows are not independent."""
    return make(
        folder, Strangers().train(False), task="classification", labels=("cat", "dog", "bird"),
        activation=Activation("softmax"), pipeline=ImageConfig(resize=SIDE, crop=SIDE), older=False, **fields,
    )  # fmt: skip


MAKERS = {
    "softmax-inside": softmax_inside,
    "log-softmax-inside": log_softmax_inside,
    "sigmoid-inside": sigmoid_inside,
    "sigmoid-outside": sigmoid_outside,
    "assumed": lambda folder: make(
        folder, network(5), task="classification", activation=Activation("softmax"), labels=NAMES
    ),
    "embedding": embedding,
    "regression": regression,
    "regressions": lambda folder: regression(folder, 3),
}


def close(found: Any, expected: torch.Tensor, apart: float = 2e-5) -> bool:
    """Whether the served numbers are PyTorch's: convolutions summed in another order are apart by about 1e-6."""
    return bool(np.allclose(np.array(found, np.float64), expected.double().numpy(), rtol=apart, atol=apart))
