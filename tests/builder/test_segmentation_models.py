"""Weights of segmentation_models_pytorch: found by the names of their tensors, served by its own network."""

import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import flambeau
from flambeau import identify
from flambeau.checkpoints.report import TensorInfo
from flambeau.identify import index, segmentation_models
from flambeau.types import SemanticSegmentation
from tests.support.server import FLAMBEAU, run_flambeau

LIBRARY = segmentation_models.LIBRARY
DECODERS = {  # a decoder by a tensor that it alone has, as the library names it
    "Unet": "blocks.0.conv1.0", "UnetPlusPlus": "blocks.x_0_0.conv1.0", "FPN": "p5", "Linknet": "blocks.0.block.0.0",
    "DeepLabV3Plus": "aspp.0.convs.0.0", "PSPNet": "psp.blocks.0.pool.1.0", "MAnet": "blocks.0.hl_conv.0.0",
}  # fmt: skip


def tensors(decoder: str, encoder: str = "resnet18", prefix: str = "", classes: int = 5) -> dict[str, TensorInfo]:
    number, _ = index.facts("torchvision").architectures[encoder]
    body = index.shapes("torchvision").of(number)
    shapes = {f"encoder.{key}": shape for key, shape in body.items() if not key.startswith("fc.")}
    taken = (256, 512 if encoder in ("resnet18", "resnet34") else 2048, 3, 3)
    shapes[f"decoder.{DECODERS[decoder]}.weight"] = taken
    if decoder == "MAnet":
        shapes[f"decoder.{DECODERS['Unet']}.weight"] = taken
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
        assert "with an encoder that flambeau does not tell by its tensors: say which it was in training" in told
        fit = identify.detect(tensors("FPN", encoder), args={"encoder_name": encoder}).fit
        assert fit is not None
        assert fit.architecture.args["encoder_name"] == encoder
    assert "classes in --arch-args" not in identify.detect(tensors("FPN"), args={"classes": 5}).advice
    assert "leave classes out" in identify.detect(tensors("FPN"), args={"classes": 4}).advice


@pytest.mark.long
def test_the_network_may_be_named_with_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`--arch-args` without `--arch` is refused, and a name of this library was no architecture: there was no way."""
    monkeypatch.setattr(segmentation_models, "installed", lambda: True)
    given = tensors("FPN", "resnext50_32x4d")
    asked = identify.detect(given).advice
    assert """--arch FPN --arch-args '{"encoder_name": "vgg16"}'""" in asked
    for name in ("FPN", f"{LIBRARY}/FPN"):
        fit = identify.detect(given, wanted=name, args={"encoder_name": "resnext50_32x4d"}).fit
        assert fit is not None
        assert fit.architecture.args["encoder_name"] == "resnext50_32x4d"
    assert f"the weights are those of {LIBRARY}'s FPN" in identify.detect(given, wanted="Unet").advice
    others = {"fc.weight": TensorInfo("float32", (3, 4))}
    assert "have not the names of" in identify.detect(others, wanted="Unet").advice
    file = tmp_path / "net.safetensors"
    save_file({key: np.zeros(info.shape, np.float32) for key, info in others.items()}, file)
    words = ("build", file, "--arch", "Unet", "--arch-args", '{"encoder_name": "vgg16"}', "-o", tmp_path / "made")
    told = run_flambeau(*words).stderr
    assert f"the weights have not the names of {LIBRARY}'s Unet" in told


def test_the_depth_of_another_encoder_is_not_read_off_a_resnets_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three stages of a VGG have 512 channels, a ResNet's last one: its PSPNet was computed with two stages more."""
    monkeypatch.setattr(segmentation_models, "installed", lambda: True)
    taken = {"encoder.features.0.weight": (64, 3, 3, 3), f"decoder.{DECODERS['PSPNet']}.weight": (128, 512, 1, 1)}
    head = {"segmentation_head.0.weight": (5, 512, 3, 3), "segmentation_head.0.bias": (5,)}
    infos = {key: TensorInfo("float32", shape) for key, shape in (taken | head).items()}
    found = identify.detect(infos, args={"encoder_name": "vgg16"})
    assert found.fit is not None
    assert "encoder_depth" not in found.fit.architecture.args
    assert "the depth of an encoder that is no ResNet" in found.notes[0]


def test_channels_are_those_of_the_first_convolution_whatever_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors has its tensors by name, and then a convolution by channels comes before the first."""
    monkeypatch.setattr(segmentation_models, "installed", lambda: True)
    encoder = {"encoder._blocks.0._depthwise_conv.weight": (32, 1, 3, 3), "encoder._conv_stem.weight": (32, 3, 3, 3)}
    infos = {key: TensorInfo("float32", shape) for key, shape in encoder.items()}
    infos |= {key: info for key, info in tensors("Unet").items() if not key.startswith("encoder.")}
    fit = identify.detect(infos, args={"encoder_name": "efficientnet-b0"}).fit
    assert fit is not None
    assert fit.architecture.args["in_channels"] == 3


NORMALISES = {f"model.{name}": TensorInfo("float32", (1, 3, 1, 1)) for name in ("mean", "std")}


def test_a_training_modules_normalisation_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples of the library divide images of 0 to 255 by ImageNet's deviation, and others images of 0 to 1."""
    monkeypatch.setattr(segmentation_models, "installed", lambda: True)
    fit = identify.detect(tensors("Unet", prefix="model.net.") | NORMALISES).fit
    assert fit is not None
    assert fit.normalises == fit.aside == ("model.mean", "model.std")
    told = segmentation_models.question(fit, (0.5, 0.25, 0), (0.5, 1, 2))
    assert "--mean 0.5,0.25,0 --std 0.5,1,2 for 0 to 1, or --mean 0.00196078431,0.000980392157,0 --std 0.0019" in told
    assert "its own --mean and --std" in segmentation_models.question(fit, (0, 0, 0), (1, 1, 1))
    for numbers in (((0, 0, 0), (0, 1, 1)), ((float("nan"), 0, 0), (1, 1, 1)), ((), ())):
        assert "say --mean and --std as numbers for images of 0 to 1" in segmentation_models.question(fit, *numbers)


def test_other_tensors_beside_the_network_are_refused_with_a_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation_models, "installed", lambda: True)
    info = TensorInfo("float32", (7, 3))
    for more in (
        {"other.weight": info}, {"model.other.weight": info}, {"model.mean": info, "model.std": info},
        {"mean": NORMALISES["model.mean"]},
    ):  # fmt: skip
        found = identify.detect(tensors("Unet", prefix="model.") | more)
        assert found.fit is None
        assert f"the file has {len(more)} more: {next(iter(more))}" in found.advice
        assert "torch.save(module.model.state_dict(), 'net.pth')" in found.advice


# With the library itself


OWN_WIDTHS = """
import json, sys, warnings

import torch

from flambeau import identify
from flambeau.architectures import torchvision_compat
from flambeau.checkpoints.report import TensorInfo

warnings.simplefilter("ignore")
torchvision_compat.declare_missing()
import segmentation_models_pytorch as library

def made(name, **args):
    with torch.device("meta"):
        return {key: tuple(each.shape) for key, each in getattr(library, name)(**args).state_dict().items()}

for name, encoder, args in json.loads(sys.argv[1]):
    shapes = made(name, encoder_name=encoder, encoder_weights=None, classes=3, **args)
    found = identify.detect({f"model.{key}": TensorInfo("float32", shape) for key, shape in shapes.items()})
    assert found.fit is not None, (name, args, found.advice)
    assert found.fit.architecture.name == name, (name, args)
    used = {ours: shapes[theirs.removeprefix("model.")] for theirs, ours in found.fit.keys.items()}
    assert made(name, **found.fit.architecture.args) == used, (name, args, found.fit.architecture.args)
"""

CHANGED: list[tuple[str, dict[str, Any]]] = [
    ("Unet", {"encoder_depth": 4, "decoder_channels": [64, 32, 16, 8]}), ("Unet", {"decoder_use_norm": False}),
    ("Unet", {"decoder_attention_type": "scse", "in_channels": 1}),
    ("Unet", {"decoder_use_norm": {"type": "instancenorm", "affine": True}}),
    ("UnetPlusPlus", {"encoder_depth": 3, "decoder_channels": [64, 32, 16], "decoder_attention_type": "scse"}),
    ("MAnet", {"decoder_channels": [128, 64, 64, 16, 16], "decoder_pab_channels": 32}),
    ("FPN", {"decoder_pyramid_channels": 64, "decoder_segmentation_channels": 32, "decoder_merge_policy": "cat"}),
    ("FPN", {"encoder_depth": 4}), ("DeepLabV3Plus", {"decoder_channels": 128, "encoder_depth": 4}),
    ("DeepLabV3Plus", {"decoder_aspp_separable": False}), ("Linknet", {"encoder_depth": 4, "decoder_use_norm": False}),
    ("PSPNet", {"psp_out_channels": 64, "encoder_depth": 5}),
]  # fmt: skip


SCRIPT = """
import sys
from pathlib import Path
from typing import Any

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
def test_what_is_read_from_the_shapes_makes_the_same_network(environment: dict[str, str]) -> None:
    """Else `inspect` says that the file is served, and the build refuses it."""
    cases = [(name, encoder, args) for name, args in CHANGED for encoder in ("resnet18", "resnet50")]
    command = [sys.executable, "-c", OWN_WIDTHS, json.dumps(cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run(environment: dict[str, str], folder: Path, *command: object, refused: bool = False) -> str:
    """What a command in the folder prints; with its errors, where it is to be refused."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) is refused, done.stderr
    return done.stdout + done.stderr if refused else done.stdout


def train(environment: dict[str, str], folder: Path, script: str, name: str, encoder: str) -> None:
    """A network of the library in the folder, by the script, with a picture and the classes of its pixels."""
    noise = np.random.default_rng(0).integers(0, 255, (4, 6, 3)).astype(np.uint8)
    Image.fromarray(noise).resize((192, 128), Image.Resampling.BICUBIC).save(folder / "soft.png")
    run(environment, folder, sys.executable, "-W", "ignore", "-c", script, name, encoder, folder)


def assert_answers_as_trained(folder: Path, **options: Any) -> None:
    """The bundle `made` finds the classes that the network found."""
    with flambeau.load(folder / "made", **options) as model:
        answer = model.predict((folder / "soft.png").read_bytes())
    assert isinstance(answer, SemanticSegmentation)
    with Image.open(io.BytesIO(answer.picture())) as picture:
        classes = np.asarray(picture)
    expected = np.load(folder / "expected.npy")
    assert (classes == expected).mean() > 0.999
    assert len(np.unique(expected)) > 1


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
    train(environment, tmp_path, SCRIPT, name, encoder)
    told = run(environment, tmp_path, *FLAMBEAU, "inspect", "net.pth")
    assert f"the weights are those of {LIBRARY}'s {name} with the encoder {encoder} and 3 classes: so their" in told
    assert f"semantic-segmentation: {name} says of each pixel which of 3 classes it has" in told
    run(environment, tmp_path, *FLAMBEAU, "build", "net.pth", "-o", "made")
    assert_answers_as_trained(tmp_path, deadline=3600)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("scale", [1, 255])
def test_a_lightning_checkpoint_is_served_as_its_module_computed(
    environment: dict[str, str], tmp_path: Path, scale: int
) -> None:
    """Its numbers for the normalisation are told for both scales, and the one that was meant gives the same masks."""
    script = SCRIPT.replace("/ 255", f"/ 255 * {scale}") + (
        "state = {f'model.{key}': value for key, value in network.state_dict().items()}\n"
        "state |= {'mean': torch.tensor(mean)[None], 'std': torch.tensor(std)[None]}\n"
        "saved = {'state_dict': state, 'epoch': 1, 'pytorch-lightning_version': '2.5.0', 'hyper_parameters': {}}\n"
        "torch.save(saved, folder / 'net.ckpt')\n"
    )
    train(environment, tmp_path, script, "FPN", "resnet18")
    told = run(environment, tmp_path, *FLAMBEAU, "inspect", "net.ckpt", refused=True)
    assert "the file has mean and std, by which its training normalised images" in told
    assert "flambeau serve" not in told
    build = (*FLAMBEAU, "build", "net.ckpt", "-o", "made")
    asked = run(environment, tmp_path, *build, refused=True)
    ways = re.findall(r"--mean (\S+) --std (\S+) for 0 to (\d+)", asked)
    assert [way[2] for way in ways] == ["1", "255"], asked
    mean, std, _ = next(way for way in ways if way[2] == str(scale))
    run(environment, tmp_path, *build, "--mean", mean, "--std", std)
    assert_answers_as_trained(tmp_path)
