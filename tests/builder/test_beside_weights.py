"""What a file keeps beside the weights of a network, and what the network is made of: asked about, or told."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flambeau.architectures.registries import TORCHVISION
from flambeau.bundle.storage import Bundle
from flambeau.errors import SourceError
from flambeau.sources.inspection import inspect
from tests.networks import number_nets
from tests.support.number_networks import saved

pytestmark = pytest.mark.usefixtures("warm_builds")


@pytest.mark.parametrize(
    "beside",
    [
        {"x_mean": torch.zeros(3), "x_std": torch.ones(3)},
        {"scaler": {"mean_": [1.0, 2.0, 3.0], "scale_": [1.0, 1.0, 2.0]}},
        {"data": {"min": [0, 0, 0], "max": [1, 9, 9]}},
    ],
)
def test_constants_beside_the_weights_are_told(
    built: Callable[..., Bundle], notes: list[str], cache: Path, tmp_path: Path, beside: dict[str, Any]
) -> None:
    state = {"state_dict": number_nets.Decides().state_dict(), "epoch": 3, "lr_min": 0.1, "lr_max": 1.0, **beside}
    _, given = saved(tmp_path, "Decides", state=state)
    built(**given, input_shape=(3,))
    [told] = [note for note in notes if "beside the weights" in note]
    [(key, value)] = [*beside.items()][:1]
    assert (f"{key}.{next(iter(value))}" if isinstance(value, dict) else key) in told
    assert "are not applied" in told
    assert "lr_min" not in told


IMAGES = """

class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.line = nn.Conv2d(3, 4, 3, stride=8), nn.Linear(4, 3)
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("std", torch.ones(1))

    def forward(self, images):
        return self.line(self.conv(images).relu().mean((2, 3)))
"""


def images(folder: Path, beside: dict[str, Any]) -> dict[str, Any]:
    state = {
        "conv.weight": torch.randn(4, 3, 3, 3), "conv.bias": torch.zeros(4), "line.weight": torch.randn(3, 4),
        "line.bias": torch.zeros(3), "mean": torch.zeros(1), "std": torch.ones(1),
    }  # fmt: skip
    _, given = saved(folder, "Images", state={"model": state, **beside}, code=IMAGES)
    return {**given, "input_shape": (3, 32, 32)}


@pytest.mark.parametrize(
    ("beside", "asked"),
    [
        ({"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}, r"say --mean 0.5,0.5,0.5 and --std 0.25,0.25,0.25 if"),
        (
            {"config": {"mean": [127.5], "std": [51.0]}},
            r"config.mean and config.std .* --mean 0.5,0.5,0.5 and --std 0.2,",
        ),
        ({"img_mean": torch.zeros(3), "img_std": torch.ones(3)}, r"img_mean and img_std .* say --mean and --std"),
        ({"mean": [math.nan] * 3, "std": [0.0] * 3}, r"say --mean and --std, as images were normalised$"),
        ({"best": {"mean": 0.9, "std": 0.02}}, r"if images were normalised by them, else --mean 0.485,0.456,0.406 and"),
    ],
)
def test_constants_of_images_are_asked_about(
    built: Callable[..., Bundle], cache: Path, tmp_path: Path, beside: dict[str, Any], asked: str
) -> None:
    given = images(tmp_path, beside)
    with pytest.raises(SourceError, match=asked):
        built(**given)
    assert built(**given, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)).manifest.task == "classification"


def test_a_known_network_is_asked_about_too_and_inspect_says_so(
    built: Callable[..., Bundle], cache: Path, tmp_path: Path
) -> None:
    file = tmp_path / "resnet.pth"
    state = TORCHVISION.constructor("resnet18")(num_classes=3).state_dict()
    torch.save({"state_dict": state, "mean": [0.5] * 3, "std": [0.5] * 3}, file)
    found = inspect(file)
    assert found.serve is None
    assert "say --mean 0.5,0.5,0.5 and --std 0.5,0.5,0.5 if" in found.needs
    with pytest.raises(SourceError, match=r"say --mean 0\.5,0\.5,0\.5 and"):
        built(file)


def test_the_constants_that_would_be_taken_anyway_are_not_asked_about(
    built: Callable[..., Bundle], cache: Path, tmp_path: Path
) -> None:
    beside = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "acc_mean": 0.9, "acc_std": 0.1}
    assert built(**images(tmp_path, beside)).manifest.task == "classification"


def test_weights_of_another_size_name_the_arguments_of_the_class(
    built: Callable[..., Bundle], cache: Path, tmp_path: Path
) -> None:
    made = "    def __init__(self, hidden=3, bias=True):\n        super().__init__(hidden, 2, bias)\n"
    code = f"\n\nclass Wide(nn.Linear):\n{made}"
    _, given = saved(tmp_path, "Wide", state={"weight": torch.zeros(2, 5), "bias": torch.zeros(2)}, code=code)
    told = r"do not fit Wide: 1 of another shape: .*--arch-args, such as {\"hidden\": \"...\"}.* takes hidden, bias"
    with pytest.raises(SourceError, match=told):
        built(**given)
    assert built(**given, arch_args={"hidden": 5}, input_shape=(5,)).manifest.outputs[0].shape == (2,)


def test_weights_of_float64_are_told(
    built: Callable[..., Bundle], notes: list[str], cache: Path, tmp_path: Path
) -> None:
    state = {key: each.double() for key, each in number_nets.Decides().state_dict().items()}
    _, given = saved(tmp_path, "Decides", state=state)
    built(**given, input_shape=(3,))
    assert any("the weights are float64, and Decides computes in float32" in note for note in notes)


def test_what_forward_does_without_is_told(
    built: Callable[..., Bundle], notes: list[str], cache: Path, tmp_path: Path
) -> None:
    line = "    def forward(self, rows, mask=None):\n        return super().forward(rows)\n"
    code = f"\n\nclass Masked(OverTheRows):\n{line}"
    _, given = saved(tmp_path, "Masked", state=dict(number_nets.OverTheRows().state_dict()), code=code)
    built(**given, input_shape=(3, 2))
    assert any("forward() of Masked is called without mask" in note for note in notes)
    with pytest.raises(SourceError, match=r"names mask, which Masked does without .* whose forward.. needs it"):
        built(**given, input_shape={"rows": (3, 2), "mask": (3,)})
