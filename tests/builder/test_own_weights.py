"""The weights of a user's own class, as training tools save them: found, or refused with a way out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flambeau.bundle.storage import Bundle, ImageConfig
from flambeau.errors import SourceError
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache
from flambeau.sources.request import Note

pytestmark = pytest.mark.usefixtures("warm_builds")

CODE = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, row):
        return self.last(self.norm(self.first(row)).relu())
"""
Weights = dict[str, torch.Tensor]


@pytest.fixture
def notes() -> list[str]:
    """What the build said."""
    return []


def weights(seed: int = 0) -> Weights:
    torch.manual_seed(seed)
    first, norm, last = torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3)
    layers = {"first": first, "norm": norm, "last": last}
    return {f"{name}.{key}": value for name, layer in layers.items() for key, value in layer.state_dict().items()}


PICTURES = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, images):
        return self.last(self.first(images).relu().mean((2, 3)))
"""


def below(prefix: str, found: Weights) -> Weights:
    return {prefix + key: value for key, value in found.items()}


def built(
    folder: Path, saved: Any, notes: list[str], code: str = CODE, shape: tuple[int, ...] = (4,), **options: Any
) -> Bundle:
    (folder / "net.py").write_text(code)
    torch.save(saved, folder / "saved.ckpt")

    def hear(event: object) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    source, arch = str(folder / "saved.ckpt"), f"{folder / 'net.py'}:Net"
    asked = SourceOptions(source=source, arch=arch, allow_code=True, input_shape=shape, **options)
    return build_cache.open_source(asked, progress=hear)


def assert_holds(made: Bundle, expected: Weights) -> None:
    stored = load_file(made.path / "weights.safetensors")
    assert all(torch.equal(stored[key], value) for key, value in expected.items())


@pytest.mark.long
@pytest.mark.parametrize(
    ("saved", "taken", "said"),
    [
        ({"state_dict": below("net.", weights()), "epoch": 3}, 0, ""),
        (below("module._orig_mod.", weights()), 0, ""),
        ({"state_dict": {**below("net.", weights()), "loss.weight": torch.zeros(3)}}, 0, "set aside"),
        ({**weights(), "criterion.weight": torch.zeros(3)}, 0, "criterion.weight"),
        (
            {"state_dict": {**below("net.", weights()), **below("ema_net.", weights(1))}},
            1,
            "the averaged ones at ema_net",
        ),
    ],
    ids=["lightning", "wrapped twice", "a loss beside", "a loss within", "averaged"],
)
def test_weights_are_found_below_what_a_tool_puts_before_them(
    tmp_path: Path, cache: Path, notes: list[str], saved: Any, taken: int, said: str
) -> None:
    made = built(tmp_path, saved, notes)
    assert_holds(made, weights(taken))
    assert said in "\n".join(notes)


@pytest.mark.parametrize(
    ("saved", "why"),
    [
        (
            {"state_dict": {**below("net.", weights()), "mean": torch.zeros(4), "std": torch.ones(4)}},
            r"below 'net\.', but beside them the file has 2 more \(mean, std\).*torch\.save\(module\.net\.state_dict",
        ),
        ({**below("one.", weights()), **below("two.", weights(1))}, r"beside them the file has 8 more \(two\.first"),
        (
            below("net.", {key: value for key, value in weights().items() if key != "last.bias"}),
            "1 missing: last.bias: name the class as it was",
        ),
    ],
    ids=["what normalises", "two of them", "one is missing"],
)
def test_what_may_belong_to_the_computation_is_refused(
    tmp_path: Path, cache: Path, notes: list[str], saved: Any, why: str
) -> None:
    with pytest.raises(SourceError, match=why):
        built(tmp_path, saved, notes)


@pytest.mark.long
def test_of_images_the_user_may_say_how_they_are_normalised(tmp_path: Path, cache: Path, notes: list[str]) -> None:
    layers = {"first": torch.nn.Conv2d(3, 4, 3), "last": torch.nn.Linear(4, 3)}
    own = {f"{name}.{key}": value for name, layer in layers.items() for key, value in layer.state_dict().items()}
    saved = {**below("net.", own), "mean": torch.full((3,), 0.5), "std": torch.full((3,), 0.25)}
    with pytest.raises(SourceError, match="of images, --mean and --std say it too"):
        built(tmp_path, saved, notes, PICTURES, (3, 32, 32))
    said = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    made = built(tmp_path, saved, notes, PICTURES, (3, 32, 32), **said)
    pipeline = made.manifest.pipeline
    assert isinstance(pipeline, ImageConfig)
    assert (pipeline.mean, pipeline.std) == (said["mean"], said["std"])
    assert "mean and std are left out: --mean and --std say how images are normalised" in notes
