"""Detectors from a file of weights to boxes: found by the file alone, exported, and the same as PyTorch's."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image, ImageOps

import flambeau
from flambeau import architectures
from flambeau.answers.boxes import compare
from flambeau.bundle.storage import Bundle, PictureConfig
from flambeau.checkpoints.report import TensorInfo
from flambeau.errors import LabelsError, SourceError
from flambeau.identify import detect
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache
from flambeau.sources.inspection import inspect
from flambeau.sources.request import Note
from flambeau.types import ObjectDetection
from tests.support import detectors
from tests.support.photographs import encoded, photograph

pytestmark = [pytest.mark.usefixtures("warm_builds"), pytest.mark.timeout(600)]

SSDLITE = "ssdlite320_mobilenet_v3_large"
MOBILENET = "fasterrcnn_mobilenet_v3_large_fpn"
SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"
OTHERS = (
    SMALL, MOBILENET, "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn", "ssd300_vgg16",
)  # fmt: skip

SECONDS = 3600
"""A test's limit and a picture's deadline, on a machine with much other work."""


SPREADS: dict[str, dict[str, Any]] = {
    "fasterrcnn_mobilenet_v3_large_fpn": {"spread": 1.0},
    "fasterrcnn_resnet50_fpn": {"spread": 1.0},
    "fasterrcnn_resnet50_fpn_v2": {"spread": 0.5},
}
"""Made twice as strong, their scores are so steep that rounding alone moves some of 300 by 0.0011 in boxes that overlap
by 0.9997, more than the 0.001 that scores may be apart. So does PyTorch's own: for `fasterrcnn_resnet50_fpn` of 91
classes, float32 and float64 are up to 0.0016 apart (0.6354 and 0.6371), and the graph and float32 0.0018. For
`fasterrcnn_resnet50_fpn_v2` of 3 classes, float32 loses a box of float64's (0.7724), because rounding decides which of
two is suppressed, and so does the graph another (0.9511): 97 to 99 of 100 are the same, whichever two are compared; and
98 with scores a quarter as steep."""

LOST = {"fasterrcnn_resnet50_fpn_v2": 0.05}
"""The share of a picture's boxes that rounding may cost, where it costs PyTorch itself some: see `SPREADS`."""


def build(source: Path, notes: list[str], **options: Any) -> Bundle:
    def hear(event: object) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    return build_cache.open_source(SourceOptions(source=str(source), **options), progress=hear)


def pictures() -> list[bytes]:
    """A landscape; an upright one in a format that loses nothing; and one that its EXIF turns upright."""
    turned, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    photograph("coffee").resize((300, 170)).save(turned, "PNG", exif=exif)
    upright = photograph("chelsea").resize((200, 280))
    return [encoded(photograph("coffee").resize((480, 320))), encoded(upright), turned.getvalue()]


def assert_as_torchvision(made: Bundle, network: torch.nn.Module, *, lost: float = 0.0) -> int:
    """The boxes that were the same, over all pictures. `lost`: the share of a picture's that may be others."""
    config = made.manifest.pipeline
    assert isinstance(config, PictureConfig)
    boxes = 0
    with flambeau.load(made.path, deadline=SECONDS) as model:
        for data in pictures():
            answer = model.predict(data, threshold=config.least)
            assert isinstance(answer, ObjectDetection)
            upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
            assert (answer.width, answer.height) == upright.size
            expected = detectors.found(network, upright)
            measured = compare(expected, answer.tensors(), least=config.least, most=config.most)
            assert isinstance(measured.boxes, int)
            kept = measured.boxes >= (1 - lost) * expected["scores"].size and measured.difference <= measured.tolerance
            assert measured.holds or (lost and kept), measured
            boxes += measured.boxes
    return boxes


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return detectors.detector(SSDLITE, 3)


@pytest.fixture(scope="module")
def notes() -> list[str]:
    """What the build of `made` said."""
    return []


@pytest.fixture(scope="module")
def made(
    network: torch.nn.Module, notes: list[str], warm_builds: None, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """Built of the weights alone, with names for all classes but the background, and a golden sample."""
    folder = tmp_path_factory.mktemp("detector")
    (folder / "names.txt").write_text("cat\ndog\n")
    (folder / "samples").mkdir()
    for name, data in zip(("landscape", "upright"), pictures(), strict=False):
        (folder / "samples" / f"{name}.png").write_bytes(data)
    file = detectors.saved(network, folder / "weights.pth")
    return build(file, notes, labels=str(folder / "names.txt"), samples=str(folder / "samples"))


def test_a_detector_is_found_by_its_weights_alone(made: Bundle, notes: list[str]) -> None:
    manifest = made.manifest
    assert (manifest.task, manifest.engine != "eager", manifest.export_error) == ("object-detection", True, None)
    assert manifest.architecture is not None
    assert (manifest.architecture.name, manifest.architecture.args) == (SSDLITE, {"num_classes": 3})
    assert manifest.pipeline == PictureConfig(classes=3, least=0.001, most=300, threshold=0.5)
    assert manifest.agreement is not None
    assert isinstance(manifest.agreement.boxes, int)
    assert manifest.agreement.holds
    assert manifest.agreement.boxes > 100
    said = "\n".join(notes)
    assert "task: object-detection; boxes whose score is 0.5 or more are answered" in said
    assert "torchvision's default" in said
    assert "class 0 is background, class 1 is cat" in said
    assert [label.name for label in made.labels() or ()] == ["background", "cat", "dog"]


def test_its_boxes_are_pytorchs_in_pictures_of_any_size(made: Bundle, network: torch.nn.Module) -> None:
    assert assert_as_torchvision(made, network) > 100


def test_weights_are_in_the_bundle_once(made: Bundle) -> None:
    """The graph refers to the file that PyTorch reads; only the optimised one has its own."""
    sizes = {file.name: file.stat().st_size for file in made.path.iterdir()}
    assert sizes["model.onnx"] < sizes["weights.safetensors"] / 4


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"crop": 224}, "--crop has no effect on"),
        ({"task": "classification"}, "is a network for object-detection: leave it out"),
    ],
)
def test_options_that_do_not_fit_a_detector_are_refused(
    network: torch.nn.Module, tmp_path: Path, options: dict[str, Any], why: str
) -> None:
    with pytest.raises(SourceError, match=why):
        build(detectors.saved(network, tmp_path / "weights.pth"), [], **options)


@pytest.mark.long
def test_too_few_names_are_refused(network: torch.nn.Module, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\n")
    with pytest.raises(LabelsError, match="has 1 classes, but the model has 3 outputs"):
        build(detectors.saved(network, tmp_path / "weights.pth"), [], labels=str(tmp_path / "names.txt"))


@pytest.mark.parametrize("prefix", ["", "module.", "model.net."])
def test_inspect_names_the_task_and_what_cannot_be_told(tmp_path: Path, prefix: str) -> None:
    state = detectors.untrained(SMALL, 7).state_dict()
    torch.save({prefix + key: value for key, value in state.items()}, tmp_path / "a.pth")
    found = inspect(tmp_path / "a.pth")
    assert (found.architecture, found.classes, found.also_fits) == (MOBILENET, 7, (SMALL,))
    assert found.task.startswith(f"object-detection: {MOBILENET} finds boxes of 7 classes")
    assert any("--arch selects another" in note for note in found.notes)
    assert found.serve == f"flambeau serve {tmp_path / 'a.pth'} --labels FILE"
    assert inspect(tmp_path / "a.pth", arch=SMALL).architecture == SMALL
    other = inspect(tmp_path / "a.pth", arch="retinanet_resnet50_fpn")
    assert other.needs.startswith("the weights do not fill retinanet_resnet50_fpn: they are those of fasterrcnn")


def test_weights_of_frozen_norms_are_taken_as_torchvision_trains_them(tmp_path: Path) -> None:
    """Fine-tuned from COCO's weights, the norms have no epsilon and their files no counters."""
    with torch.device("meta"):
        state = detectors.untrained("fasterrcnn_resnet50_fpn", 3).state_dict()
    told = {key: TensorInfo("float32", tuple(value.shape)) for key, value in state.items()}
    free = detect(told).fit
    frozen = detect({key: info for key, info in told.items() if "num_batches_tracked" not in key}).fit
    assert free is not None
    assert frozen is not None
    assert free.architecture.args == {"num_classes": 3}
    assert frozen.architecture.args == {"num_classes": 3, "norm_epsilon": 0.0}
    norms = {
        module.eps
        for module in architectures.create(frozen.architecture).modules()
        if isinstance(module, torch.nn.BatchNorm2d)
    }
    assert norms == {0.0}


class _Resizing(torch.nn.Module):
    def __init__(self, transform: Any) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        resized: torch.Tensor = self.transform.resize(images[0])[0]
        return resized


@pytest.mark.filterwarnings("ignore:You are using the legacy", "ignore::torch.jit.TracerWarning")
def test_a_graph_resizes_to_the_size_that_torchvision_does(tmp_path: Path) -> None:
    """In torchvision's own graph, a picture of 200 x 280 becomes 319 x 447 instead of 320 x 448."""
    network = detectors.untrained(SMALL, 3).eval()
    from flambeau.architectures.detectors import Detector

    own: Any = network.transform
    resizing = _Resizing(Detector(network).detector.transform).eval()
    torch.onnx.export(
        resizing, (torch.rand(1, 3, 24, 32),), tmp_path / "resize.onnx", dynamo=False, input_names=["image"],
        dynamic_axes={"image": {2: "h", 3: "w"}},
    )  # fmt: skip
    session = onnxruntime.InferenceSession(tmp_path / "resize.onnx")
    sizes = [(280, 200), (427, 640), (7, 1600), (1, 1), (240, 320), (480, 640), (333, 500)]
    for height, width in (*sizes, *np.random.default_rng(0).integers(3, 700, (20, 2)).tolist()):
        image = torch.zeros(1, 3, height, width)
        expected = own.resize(image[0])[0]
        assert torch.equal(resizing(image), expected)
        assert session.run(None, {"image": image.numpy()})[0].shape == expected.shape, (height, width)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS)  # the smallest took 766 s on two cores with much other work
@pytest.mark.parametrize("classes", [3, 91])
@pytest.mark.parametrize("name", [SSDLITE, *OTHERS])
def test_every_family_is_served_as_torchvision_computes_it(
    name: str, classes: int, tmp_path: Path, cache: Path
) -> None:
    network = detectors.detector(name, classes, **SPREADS.get(name, {}))
    notes: list[str] = []
    options = {} if name != SMALL else {"arch": name}
    made = build(detectors.saved(network, tmp_path / "weights.pth"), notes, **options)
    assert made.manifest.architecture is not None
    assert made.manifest.architecture.name == name
    assert made.manifest.engine != "eager", notes
    assert assert_as_torchvision(made, network, lost=LOST.get(name, 0.0)) > 20
