"""Networks that make pictures, from a user's class to a PNG: sizes, black and white, tiles, and what is asked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import flambeau
from flambeau.answers.activation import Activation
from flambeau.architectures import single_output
from flambeau.builder import dense_task, tile_trial
from flambeau.builder.filled import Filled
from flambeau.bundle.storage import Bundle, DenseConfig
from flambeau.errors import SourceError
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache
from flambeau.sources.request import Note
from flambeau.types import ImageToImage, TensorSpec
from tests.networks import unet
from tests.support.photographs import encoded, photograph

pytestmark = [pytest.mark.usefixtures("warm_builds"), pytest.mark.timeout(600)]


def build(network: torch.nn.Module, folder: Path, notes: list[str], **options: Any) -> Bundle:
    def hear(event: object) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    torch.save({"params": {}, "params_ema": network.state_dict()}, folder / "weights.pth")
    told: dict[str, Any] = {
        "task": "image-to-image",
        "arch": f"{Path(unet.__file__)}:{type(network).__name__}",
        "allow_code": True,
    }
    source = SourceOptions(source=str(folder / "weights.pth"), **(told | options))
    return build_cache.open_source(source, progress=hear)


def test_a_network_that_enlarges_makes_what_pytorch_makes(tmp_path: Path, cache: Path) -> None:
    torch.manual_seed(0)
    network = unet.Sharper().eval()
    notes: list[str] = []
    made = build(network, tmp_path, notes)
    config = made.manifest.pipeline
    assert isinstance(config, DenseConfig)
    assert (config.scale, config.levels, config.large, config.overlap) == ((2, 1), (0.0, 1.0), "tile", 48)
    assert (made.manifest.task, made.manifest.engine != "eager") == ("image-to-image", True)
    assert made.manifest.activation == Activation("none", by="network", known="said")
    said = "\n".join(notes)
    assert "0 is black and 1 is white (assumed, for its numbers for photographs are between" in said
    assert "cut into tiles that overlap by 48 pixels" in said
    picture = photograph("coffee").resize((101, 64))
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        expected = (network(pixels)[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    with flambeau.load(made.path, allow_code=True) as model:
        answer = model.predict(encoded(picture))
    assert isinstance(answer, ImageToImage)
    assert (answer.width, answer.height) == (202, 128)
    assert np.abs(answer.pixels.astype(int) - expected).max() <= 1


@pytest.mark.slow
def test_a_map_has_its_own_levels_and_an_instance_norm_takes_no_tiles(tmp_path: Path, cache: Path) -> None:
    torch.manual_seed(0)
    depth = build(unet.Depth(), tmp_path, []).manifest.pipeline
    assert isinstance(depth, DenseConfig)
    assert (depth.levels, depth.multiple) == (None, 4)
    notes: list[str] = []
    styled = build(unet.Styled(), tmp_path, notes).manifest.pipeline
    assert isinstance(styled, DenseConfig)
    assert (styled.levels, styled.large) == ((-1.0, 1.0), "refuse")
    assert any("tiles would show seams" in note for note in notes)


def filled(levels: str | None = None) -> Filled:
    spec = TensorSpec("image", "float32", (3, -1, -1))
    return Filled(
        network=abs, name="Net", architecture=None, pipeline=DenseConfig(mean=(0.0,) * 3, std=(1.0,) * 3),
        inputs=(spec,), levels=levels,
    )  # fmt: skip


def answers(low: float, high: float, planes: int = 3) -> list[np.ndarray]:
    return [np.random.default_rng(0).uniform(low, high, (1, planes, 20, 30)).astype(np.float32)]


@pytest.mark.parametrize(
    ("ending", "numbers", "levels"),
    [
        ("a sigmoid", answers(0, 1), (0, 1)),
        ("a tanh", answers(0, 1), (-1, 1)),
        ("a convolution", answers(-0.1, 1.1), (0, 1)),
        ("a convolution", answers(3, 9, planes=1), None),
    ],
)
def test_black_and_white_are_found(ending: str, numbers: list[np.ndarray], levels: tuple[float, float] | None) -> None:
    assert dense_task.picture(filled(), numbers, ending)[0] == levels


@pytest.mark.parametrize("numbers", [answers(-1, 1), answers(0, 255), answers(0.5, 0.51), answers(-3, 4)])
def test_black_and_white_are_asked_for(numbers: list[np.ndarray]) -> None:
    with pytest.raises(SourceError, match="say which of them are black and white with --levels"):
        dense_task.picture(filled(), numbers, "a convolution")
    assert dense_task.picture(filled("0,255"), numbers, "a convolution")[0] == (0, 255)


def test_five_numbers_for_each_pixel_are_no_picture() -> None:
    with pytest.raises(SourceError, match="answers with 5 numbers for each pixel, and a picture has 1 or 3"):
        dense_task.picture(filled("0,1"), answers(0, 1, planes=5), "a convolution")


@pytest.mark.parametrize("text", ["", "1", "0,0", "a,b", "0,1,2", "nan,1", "0,inf"])
def test_what_is_no_black_and_white_is_refused(text: str) -> None:
    with pytest.raises(SourceError, match="is not two numbers such as 0,255, nor own"):
        dense_task.levels_of(text)


def overlap(network: torch.nn.Module, **told: Any) -> int:
    photo = np.asarray(photograph("chelsea").resize((192, 192)), np.float32).transpose(2, 0, 1)[None] / 255

    def compute(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            return {"out": single_output.pick(network(torch.from_numpy(inputs["in"])), "").numpy()}

    facts: dict[str, Any] = {"scale": 1.0, "multiple": 1, "span": 1.0}
    return tile_trial.overlap(photo, compute, ("in", "out"), **(facts | told))


def blur(reach: int) -> torch.nn.Module:
    """Each number is the mean of those around it, up to `reach` away."""
    sizes = [(2 * reach + 1, 1), (1, 2 * reach + 1)]
    layers = [torch.nn.Conv2d(3, 3, size, padding="same", groups=3, bias=False) for size in sizes]
    for layer in layers:
        torch.nn.init.constant_(layer.weight, 1 / (2 * reach + 1))
    return torch.nn.Sequential(*layers)


def test_tiles_overlap_by_as_much_as_the_network_sees() -> None:
    assert overlap(blur(9)) == 48
    assert overlap(blur(25)) == 80
    assert overlap(blur(25), multiple=64) == 128
    assert overlap(blur(60)) == 0
    assert overlap(torch.nn.InstanceNorm2d(3)) == 0


class CountsColumns(torch.nn.Module):
    """Makes a picture darker to the right, by the number of the column: each tile would begin anew."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image * (1 - torch.arange(image.shape[3]) / 400)


def test_a_network_that_counts_from_the_edge_takes_no_tiles() -> None:
    assert overlap(CountsColumns()) == 0
