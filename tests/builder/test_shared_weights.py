"""One copy of the weights in a bundle: the graph takes them from the file that PyTorch reads."""

import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from torch import nn

from flambeau import engines
from flambeau.answers import agreement
from flambeau.architectures.registries import TORCHVISION
from flambeau.builder import shared_weights
from flambeau.builder.quantise import quantise
from flambeau.builder.shared_weights import scale_of
from flambeau.bundle import storage
from flambeau.bundle.storage import (
    INT8_ONNX,
    INT8_PROBES,
    ONNX,
    OPTIMISED_ONNX,
    WEIGHTS,
    Bundle,
    Optimised,
    split_probes,
)
from flambeau.engines.onnxruntime import open_session
from flambeau.errors import BundleError
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache
from flambeau.types import Tensors

pytestmark = pytest.mark.long


def trained(network: nn.Module) -> nn.Module:
    """The network as training leaves it: no batch norm does nothing."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return network.eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-18 of 47 MB."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("checkpoint") / "resnet18.pth"
    torch.save(trained(TORCHVISION.constructor("resnet18")()).state_dict(), file)
    return file


@pytest.fixture(scope="module")
def built(checkpoint: Path, cache: Path, warm_builds: None) -> Bundle:
    folder = checkpoint.parent / "bundle"
    return build_cache.build_into(SourceOptions(source=str(checkpoint)), folder, progress=lambda event: None)


def answers(opened: Bundle, engine: str, inputs: Tensors) -> Tensors:
    loaded = engines.load(opened, engine, device="cpu", threads=1, allow_code=False)
    found = loaded.run(inputs)
    loaded.close()
    return found


def elsewhere(opened: Bundle, folder: Path) -> Bundle:
    """The bundle as another machine sees it."""
    shutil.copytree(opened.path, folder)
    there = msgspec.structs.replace(opened.manifest, optimised=Optimised(onnxruntime="1.0", processor="another"))
    storage.write_manifest(folder, there)
    return storage.read(folder)


def test_u18_the_weights_are_there_once_and_as_the_engine_maps_them(checkpoint: Path, built: Bundle) -> None:
    sizes = {file.name: file.stat().st_size for file in built.path.iterdir()}
    mapped = sum(size for name, size in sizes.items() if name.startswith(OPTIMISED_ONNX))
    whole, weights = sum(sizes.values()), checkpoint.stat().st_size
    probes = sizes["probes.safetensors"]
    assert whole - mapped - probes < 1.01 * weights
    assert whole < 2.1 * weights


def test_a_small_graph_with_its_weights_elsewhere_counts_as_large(built: Bundle) -> None:
    """Which engines are tried, and whether a lone image gets all cores, follows from the size of what is computed."""
    assert (built.path / storage.ONNX).stat().st_size < 10_000_000
    assert storage.graph_bytes(built.path) >= (built.path / storage.WEIGHTS).stat().st_size


@pytest.mark.parametrize("engine", ["onnxruntime", "eager"])
@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_u18_every_engine_answers_from_that_copy(built: Bundle, tmp_path: Path, engine: str, where: str) -> None:
    opened = built if where == "here" else elsewhere(built, tmp_path / "elsewhere")
    inputs, expected = split_probes(opened.probes())
    found = answers(opened, engine, inputs)
    for name, rows in expected.items():
        assert agreement.measure(rows, found[name], classes=True).holds


def test_the_graph_can_be_quantised(built: Bundle, tmp_path: Path) -> None:
    folder = elsewhere(built, tmp_path / "copied").path
    inputs, _ = split_probes(built.probes())
    given = [{name: array[i : i + 1] for name, array in inputs.items()} for i in (0, 1)]
    before = {file.name for file in folder.iterdir()}
    found = quantise(folder, given, compute=lambda rows: answers(built, "onnxruntime", rows), classes=True)
    assert found.difference < 0.2
    assert {file.name for file in folder.iterdir()} == before | {INT8_ONNX, INT8_PROBES}


def test_a_graph_is_not_taken_with_weights_that_were_changed(built: Bundle, tmp_path: Path) -> None:
    elsewhere(built, tmp_path / "copied")
    contents = bytearray((tmp_path / "copied" / WEIGHTS).read_bytes())
    contents[-1] ^= 1
    (tmp_path / "copied" / WEIGHTS).write_bytes(contents)
    opened = storage.read(tmp_path / "copied", whole=False)
    with pytest.raises(BundleError, match=r"weights\.safetensors of bundle .* was changed since it was built"):
        opened.member(ONNX)


class Various(nn.Module):
    """Kernels before batch norms, a matrix that is turned, one that is used twice, and numbers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 256, 3, stride=4, bias=False), nn.BatchNorm2d(256), nn.ReLU(),
            nn.Conv2d(256, 256, 3, groups=256), nn.BatchNorm2d(256),
            nn.ConvTranspose2d(256, 64, 2), nn.BatchNorm2d(64),
        )  # fmt: skip
        self.linear = nn.Linear(64, 512)
        self.twice = nn.Linear(512, 512)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.features(x).flatten(2).transpose(1, 2)
        return self.twice(torch.relu(self.twice(self.linear(rows)))).mean(dim=1) + torch.arange(512) * 0.01


def exported(network: nn.Module, folder: Path, *, sharing: bool) -> Path:
    folder.mkdir()
    program = torch.onnx.export(network, (torch.randn(2, 3, 32, 32),), dynamo=True, verbose=False)
    assert program is not None
    if sharing:
        shared_weights.refer(program.model, shared_weights.store(network, folder / WEIGHTS))
    program.save(folder / ONNX)
    return folder / ONNX


@pytest.mark.filterwarnings("ignore")  # PyTorch's exporter uses what PyTorch has deprecated
def test_the_graph_makes_of_them_what_the_exporter_made_to_the_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = trained(Various())
    plain = exported(network, tmp_path / "plain", sharing=False)
    ours = exported(network, tmp_path / "ours", sharing=True)
    rows = torch.randn(2, 3, 32, 32).numpy()
    found, expected = (open_session(each).run(None, {open_session(each).get_inputs()[0].name: rows})[0]
                       for each in (ours, plain))  # fmt: skip
    np.testing.assert_array_equal(found, expected)
    model = onnx.load(ours, load_external_data=False)
    assert {"Mul", "Transpose"} <= {node.op_type for node in model.graph.node}
    onnx.checker.check_model(str(ours))
    assert ours.stat().st_size < plain.stat().st_size / 2


def test_a_scale_is_one_only_where_it_gives_the_same_bits() -> None:
    random = np.random.default_rng(0)
    kernel = random.standard_normal((64, 32, 3, 3), np.float32)
    factors = random.standard_normal((64, 1, 1, 1), np.float32)
    factors[3], kernel[5] = 0, 0
    scale = scale_of(kernel, kernel * factors)
    assert scale is not None
    np.testing.assert_array_equal(kernel * scale, kernel * factors)
    other = kernel * factors
    other[7, 1, 1, 1] = np.nextafter(other[7, 1, 1, 1], np.float32(9))
    assert scale_of(kernel, other) is None
    assert scale_of(kernel, random.standard_normal(kernel.shape, np.float32)) is None
