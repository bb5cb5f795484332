"""Weights of segmentation_models_pytorch: found by the names of their tensors, served by its own network."""

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import flambeau
from flambeau import identify
from flambeau.architectures import torchvision_compat
from flambeau.checkpoints.report import TensorInfo
from flambeau.identify import segmentation_models
from flambeau.types import SemanticSegmentation
from tests.support.server import FLAMBEAU

LIBRARY = segmentation_models.LIBRARY
DECODERS = {  # a decoder by a tensor that it alone has, as the library names it
    "Unet": "blocks.0.conv1.0", "UnetPlusPlus": "blocks.x_0_0.conv1.0", "FPN": "p5", "Linknet": "blocks.0.block.0.0",
    "DeepLabV3Plus": "aspp.0.convs.0.0", "PSPNet": "psp.blocks.0.pool.1.0", "MAnet": "blocks.0.hl_conv.0.0",
}  # fmt: skip


def tensors(decoder: str, encoder: str = "resnet18", prefix: str = "", classes: int = 5) -> dict[str, TensorInfo]:
    torchvision_compat.declare_missing()
    from torchvision.models import get_model

    with torch.device("meta"):
        body = get_model(encoder, weights=None).state_dict()
    shapes = {f"encoder.{key}": tuple(each.shape) for key, each in body.items() if not key.startswith("fc.")}
    shapes[f"decoder.{DECODERS[decoder]}.weight"] = (256, 512, 3, 3)
    if decoder == "MAnet":
        shapes[f"decoder.{DECODERS['Unet']}.weight"] = (256, 512, 3, 3)
    shapes |= {"segmentation_head.0.weight": (classes, 16, 3, 3), "segmentation_head.0.bias": (classes,)}
    return {f"{prefix}{key}": TensorInfo("float32", shape) for key, shape in shapes.items()}


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_library_is_named_where_it_is_not_installed(decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation_models, "installed", lambda: False)
    found = identify.detect(tensors(decoder, "resnet34", "model."))
    assert found.fit is None
    assert found.advice == (
        f"the weights are those of {LIBRARY}'s {decoder} with the encoder resnet34 and 5 classes, and that library is "
        "not installed: pip install segmentation-models-pytorch, and run the same again"
    )


def test_the_encoder_the_classes_and_the_channels_are_read_from_the_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation_models, "installed", lambda: True)
    for encoder in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"):
        fit = identify.detect(
            tensors("FPN", encoder) | {"classification_head.3.weight": TensorInfo("float32", (2, 9))}
        ).fit
        assert fit is not None
        assert (fit.architecture.registry, fit.architecture.name, fit.task) == (LIBRARY, "FPN", "semantic-segmentation")
        assert fit.architecture.args == {
            "encoder_name": encoder, "encoder_weights": None, "in_channels": 3, "classes": 5
        }  # fmt: skip
        assert fit.aside == ("classification_head.3.weight",)
    for encoder in ("resnext50_32x4d", "wide_resnet50_2"):
        told = identify.detect(tensors("FPN", encoder)).advice
        assert "with an encoder that flambeau does not tell by its tensors: write its name for null and --arch" in told
        fit = identify.detect(tensors("FPN", encoder), args={"encoder_name": encoder}).fit
        assert fit is not None
        assert fit.architecture.args["encoder_name"] == encoder
    assert "classes in --arch-args" not in identify.detect(tensors("FPN"), args={"classes": 5}).advice
    assert "leave classes out" in identify.detect(tensors("FPN"), args={"classes": 4}).advice


# With the library itself


SCRIPT = """
import sys
from pathlib import Path

import numpy
import torch
from PIL import Image

from flambeau.architectures import torchvision_compat

torchvision_compat.declare_missing()
import segmentation_models_pytorch as library

name, encoder, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
torch.manual_seed(3)
network = getattr(library, name)(encoder, encoder_weights=None, classes=3).eval()
pixels = torch.from_numpy(numpy.array(Image.open(folder / "soft.png"))).permute(2, 0, 1)[None].float() / 255
mean, std = ([[[each]] for each in numbers] for numbers in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
image = (pixels - torch.tensor(mean)) / torch.tensor(std)
with torch.inference_mode():
    network.segmentation_head[0].bias -= network(image)[0].mean((1, 2))  # so that each class has pixels
    classes = network(image)[0].argmax(0)
torch.save(network.state_dict(), folder / "net.pth")
numpy.save(folder / "expected.npy", classes.numpy())
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One that has the library, which needs torch, torchvision and timm, and these are here."""
    folder = tmp_path_factory.mktemp("library")
    wheels = Path(os.environ.get("TEST_WHEELS", folder))
    if "TEST_WHEELS" not in os.environ:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), LIBRARY]
        subprocess.run(command, capture_output=True, check=False)
    found = sorted(wheels.glob(f"{LIBRARY}-*.whl"))
    if not found:
        pytest.skip(f"{LIBRARY} cannot be fetched here")
    zipfile.ZipFile(found[0]).extractall(folder / "site")
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder / "site"), os.environ.get("PYTHONPATH", "")))}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("name", "encoder"),
    [("Unet", "resnet18"), ("FPN", "resnet34"), ("DeepLabV3Plus", "resnet18"), ("Linknet", "resnet18"),
     ("PSPNet", "resnet34"), ("UnetPlusPlus", "resnet18"), ("MAnet", "resnet18")],
)  # fmt: skip
def test_a_network_of_the_library_is_served_by_path_alone(
    environment: dict[str, str], tmp_path: Path, name: str, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(environment["PYTHONPATH"].partition(os.pathsep)[0])  # PyTorch itself serves PSPNet
    noise = np.random.default_rng(0).integers(0, 255, (4, 6, 3)).astype(np.uint8)
    Image.fromarray(noise).resize((192, 128), Image.Resampling.BICUBIC).save(tmp_path / "soft.png")

    def run(*command: object) -> str:
        words = [str(word) for word in command]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(sys.executable, "-W", "ignore", "-c", SCRIPT, name, encoder, tmp_path)
    told = run(*FLAMBEAU, "inspect", "net.pth")
    assert f"the weights are those of {LIBRARY}'s {name} with the encoder {encoder} and 3 classes: so their" in told
    assert f"semantic-segmentation: {name} says of each pixel which of 3 classes it has" in told
    run(*FLAMBEAU, "build", "net.pth", "-o", "made")
    with flambeau.load(tmp_path / "made", deadline=3600) as model:
        answer = model.predict((tmp_path / "soft.png").read_bytes())
    assert isinstance(answer, SemanticSegmentation)
    with Image.open(io.BytesIO(answer.picture())) as picture:
        classes = np.asarray(picture)
    expected = np.load(tmp_path / "expected.npy")
    assert (classes == expected).mean() > 0.999
    assert len(np.unique(expected)) > 1
