"""Agreement of outputs that are unlike in size: one of small numbers cannot hide beside one of large numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import flambeau
from flambeau.answers.agreement import measure
from flambeau.bundle import storage
from flambeau.bundle.storage import PROBES, Bundle
from flambeau.errors import EngineError
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache

pytestmark = pytest.mark.usefixtures("warm_builds")

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(4, 32)
        self.price = nn.Linear(32, 1)
        self.share = nn.Linear(32, 1)

    def forward(self, x):
        x = torch.relu(self.trunk(x))
        wrong = {wrong} if torch.compiler.is_exporting() else 1.0
        return torch.cat([self.price(x) * 1e4, self.share(x) * 1e-2 * wrong], dim=1)
"""


def built(folder: Path, wrong: float) -> Bundle:
    """The bundle of a network whose export gives another share, `wrong` times as large."""
    (folder / "net.py").write_text(NETWORK.format(wrong=wrong))
    space: dict[str, type[torch.nn.Module]] = {}
    exec(NETWORK.format(wrong=wrong), space)
    torch.manual_seed(0)
    torch.save(space["Net"]().state_dict(), folder / "net.pth")
    options = SourceOptions(
        source=str(folder / "net.pth"), arch=f"{folder / 'net.py'}:Net", input_shape=(4,), allow_code=True
    )
    return build_cache.build_into(options, folder / "bundle", progress=lambda event: None)


@pytest.mark.long
def test_an_export_whose_small_output_is_wrong_is_not_served(tmp_path: Path) -> None:
    manifest = built(tmp_path, 1.1).manifest
    assert manifest.engine == "eager"
    assert "the export disagrees with PyTorch" in str(manifest.export_error)


def test_an_engine_whose_small_output_is_wrong_does_not_load(tmp_path: Path) -> None:
    made = built(tmp_path, 1.0)
    assert made.manifest.engine == "onnxruntime"
    probes = load_file(made.path / PROBES)
    [output] = [name for name in probes if name.startswith("output.")]
    probes[output][:, 1] *= 1.1
    save_file(probes, made.path / PROBES)
    storage.write_manifest(made.path, made.manifest)
    with pytest.raises(EngineError, match="does not reproduce the answers it was built with"):
        flambeau.load(str(made.path))


def holds(expected: np.ndarray, found: np.ndarray) -> bool:
    return measure(expected.astype(np.float32), found.astype(np.float32), classes=False, each=True).holds


def test_rounding_is_not_taken_for_a_wrong_output() -> None:
    random = np.random.default_rng(0)
    scores = random.standard_normal((2, 16))
    assert holds(scores, scores + 1e-6 * random.standard_normal(scores.shape))
    one = np.array([[1.0, 1e-4]])  # of a single sample an output may be near zero by chance
    assert holds(one, one + 1e-5)
    nothing = np.array([[1e4, 1e-7], [2e4, -1e-7]])  # what is left of numbers that cancel
    assert holds(nothing, nothing * [1, -1])


def test_one_minus_a_share_near_one_may_be_some_roundings_apart() -> None:
    step = np.float32(2.0**-24)
    share = np.array([1 - 2 * step, 1 - 3 * step], np.float32)
    other = np.array([1 - 4 * step, 1 - 2 * step], np.float32)
    assert holds(np.stack([share, 1 - share], axis=1), np.stack([other, 1 - other], axis=1))
