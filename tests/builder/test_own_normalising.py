"""Networks that normalise their images themselves: asked about, for Flambeau would normalise them by ImageNet first."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

import flambeau
from flambeau.bundle.storage import Bundle
from flambeau.errors import SourceError
from flambeau.sources.inspection import inspect
from flambeau.types import Classification

pytestmark = pytest.mark.usefixtures("warm_builds")

CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.line = nn.Conv2d(3, 4, 3, stride=8), nn.Linear(4, 3)

    def scores(self, images):
        return self.line(self.conv(images).relu().mean((2, 3)))

    def forward(self, images):
        {forward}
"""
MEAN = "torch.tensor([0.4, 0.5, 0.6])[:, None, None]"
ASKED = r"normalise them before.*--mean 0,0,0 --std 1,1,1 if it takes colours from 0 to 1"
SIDE = 32


def weights() -> tuple[dict[str, torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]:
    """Those of a `Net`, and its scores."""
    torch.manual_seed(2)
    conv, line = nn.Conv2d(3, 4, 3, stride=8), nn.Linear(4, 3)
    layers = (("conv", conv), ("line", line))
    found = {f"{name}.{key}": each for name, layer in layers for key, each in layer.state_dict().items()}
    return found, lambda images: line(conv(images).relu().mean((2, 3)))


def saved(folder: Path, forward: str) -> dict[str, Any]:
    """The source and the options of a network with that forward pass."""
    (folder / "net.py").write_text(CODE.format(forward=forward))
    torch.save(weights()[0], folder / "net.pth")
    arch = f"{folder / 'net.py'}:Net"
    return {"source": folder / "net.pth", "arch": arch, "allow_code": True, "input_shape": (3, SIDE, SIDE)}


@pytest.mark.parametrize(
    "forward",
    [
        f"return self.scores((images - {MEAN}) / 0.25)",
        "return self.scores(images.float() / 255)",
        "return self.scores(images * 2 - 1)",
        "images = images.clone(); images[:, 0].sub_(0.4); return self.scores(images)",
        "return self.scores(nn.functional.interpolate(images, size=(16, 16), mode='bilinear') * 2 - 1)",
    ],
)
def test_a_class_that_normalises_is_asked_about(
    built: Callable[..., Bundle], cache: Path, tmp_path: Path, forward: str
) -> None:
    with pytest.raises(SourceError, match=ASKED):
        built(**saved(tmp_path, forward))


def test_what_is_told_answers_as_the_network_does(built: Callable[..., Bundle], cache: Path, tmp_path: Path) -> None:
    """A photograph from 0 to 1 goes into the network, which takes it from there."""
    asked = saved(tmp_path, f"return self.scores((images - {MEAN}) / 0.25)")
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        mean = torch.tensor([0.4, 0.5, 0.6])[:, None, None]
        expected = weights()[1]((images - mean) / 0.25).softmax(1)[0].tolist()
    made = built(**asked, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    with flambeau.load(made.path, allow_code=True) as model:
        found = model.predict(file.getvalue())
    assert isinstance(found, Classification)
    assert found.probabilities == pytest.approx(expected, abs=1e-4)


def graph(file: Path, *first: str) -> Path:
    """An ONNX graph of a convolution and a linear layer, after these operations with a constant."""
    state = {key.replace(".", "_"): each.numpy() for key, each in weights()[0].items()}
    state["constant"] = np.full((1, 3, 1, 1), 0.5, np.float32)
    nodes, last = [], "images"
    for operation in first:
        nodes.append(helper.make_node(operation, [last, "constant"], [f"after_{last}"]))
        last = f"after_{last}"
    nodes += [
        helper.make_node("Conv", [last, "conv_weight", "conv_bias"], ["maps"], strides=[8, 8]),
        helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "line_weight", "line_bias"], ["scores"], transB=1),
    ]
    taken = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])
    given = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])
    initial = [numpy_helper.from_array(each, name) for name, each in state.items()]
    made = helper.make_model(
        helper.make_graph(nodes, "net", [taken], [given], initial), opset_imports=[helper.make_opsetid("", 17)]
    )
    made.ir_version = 8
    onnx.save(made, file)
    return file


@pytest.mark.long
def test_a_graph_that_normalises_is_asked_about_and_another_is_not(
    built: Callable[..., Bundle], cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=ASKED):
        built(graph(tmp_path / "own.onnx", "Sub", "Div"))
    assert re.search(ASKED, inspect(tmp_path / "own.onnx").needs)
    assert not inspect(graph(tmp_path / "plain.onnx")).needs
    assert built(graph(tmp_path / "plain.onnx")).manifest.task == "classification"


@pytest.mark.parametrize(
    ("forward", "asked"),
    [
        ("return self.scores(images)", False),
        ("return self.scores(images + self.conv(images).mean())", False),
        ("return self.scores((images - images.mean()) / images.std())", False),
        ("return self.scores(images / 255)", True),
    ],
)
def test_only_constants_before_the_first_layer_count(tmp_path: Path, forward: str, asked: bool) -> None:
    from flambeau.builder import recording

    space: dict[str, Any] = {}
    exec(CODE.format(forward=forward), space)  # the code of this test
    network = space["Net"]().eval()
    assert recording.scales(network, torch.zeros(1, 3, SIDE, SIDE)) is asked
    scripted = torch.jit.trace(network, torch.zeros(1, 3, SIDE, SIDE))
    assert recording.scales(scripted, torch.zeros(1, 3, SIDE, SIDE)) is asked
    frozen = torch.jit.freeze(scripted)
    assert recording.scales(frozen, torch.zeros(1, 3, SIDE, SIDE)) is asked
