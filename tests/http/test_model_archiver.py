"""Archives that the real `torch-model-archiver` made, served without a line of their code, against eager PyTorch."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import torch
from PIL import Image

from flambeau.architectures import torchvision_compat
from flambeau.checkpoints import model_archive
from tests.support.photographs import encoded, photograph
from tests.support.server import FLAMBEAU, ServerProcess, started

pytestmark = pytest.mark.slow
pytest.importorskip("model_archiver", reason="torch-model-archiver makes the archives")

LABELS = ("cat", "dog", "cow", "fox", "owl", "bee")
CLASS = """
from torchvision.models.resnet import BasicBlock, ResNet


class ImageClassifier(ResNet):
    def __init__(self):
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=6)
"""
FORMATS = {"default": "net.mar", "zip-store": "net.mar", "tgz": "net.tar.gz", "no-archive": "net"}
SERVED = ("default", "no-archive")


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torchvision_compat.declare_missing()
    from torchvision import models

    torch.manual_seed(1)
    return models.resnet18(num_classes=6).eval()


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory, network: torch.nn.Module) -> dict[str, Path]:
    """The same model in every format of the archiver."""
    folder = tmp_path_factory.mktemp("archiver")
    torch.save(network.state_dict(), folder / "net.pth")
    (folder / "model.py").write_text(CLASS)
    names = ", ".join(f'"{index}": ["id{index}", "{label}"]' for index, label in enumerate(LABELS))
    (folder / "index_to_name.json").write_text(f"{{{names}}}")
    (folder / "c.yaml").write_text("minWorkers: 1\nmaxWorkers: 1\nbatchSize: 2\n")
    made = {}
    for form, name in FORMATS.items():
        target = folder / form
        target.mkdir()
        subprocess.run(
            [sys.executable, "-c", "from model_archiver.model_packaging import generate_model_archive as g; g()",
             "--model-name", "net", "--version", "1.0", "--model-file", "model.py", "--serialized-file", "net.pth",
             "--handler", "image_classifier", "--extra-files", "index_to_name.json", "-c", "c.yaml",
             "--export-path", str(target), "--archive-format", form],
            cwd=folder, check=True,
        )  # fmt: skip
        made[form] = target / name
    return made


@pytest.fixture(scope="module")
def server(archives: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    named = [f"{form}={archives[form]}" for form in SERVED]
    with started([*FLAMBEAU, "serve", *named, "--replicas", "1"], tmp_path_factory.mktemp("server")) as found:
        yield found


def test_every_format_says_the_same(archives: dict[str, Path]) -> None:
    found = [model_archive.read(path) for path in archives.values()]
    assert all(each is not None and set(each.names) == set(found[0].names) for each in found if found[0] is not None)
    assert {(each.name, each.version, each.weights) for each in found if each} == {("net", "1.0", "net.pth")}


@pytest.mark.parametrize("form", SERVED)
@pytest.mark.parametrize("picture", ["chelsea", "coffee"])
def test_it_answers_as_eager_pytorch(server: ServerProcess, network: torch.nn.Module, form: str, picture: str) -> None:
    from torchvision import transforms

    image: Image.Image = photograph(picture)
    prepare = transforms.Compose([
        transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ])  # fmt: skip
    with torch.no_grad():
        shares, classes = torch.softmax(network(prepare(image)[None]), 1)[0].topk(5)
    expected = {LABELS[index]: share for index, share in zip(classes.tolist(), shares.tolist(), strict=True)}
    found = requests.post(f"{server.url}/predictions/{form}/1.0", files={"data": encoded(image)}, timeout=60).json()
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, abs=1e-3)
