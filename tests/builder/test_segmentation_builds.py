"""Segmenters from a file of weights to the class of every pixel: found by the file, exported, and as PyTorch's."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import flambeau
from flambeau.bundle import golden_samples
from flambeau.bundle.storage import Bundle, DenseConfig
from flambeau.errors import SourceError
from flambeau.pipelines import dense
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache
from flambeau.sources.inspection import inspect
from flambeau.sources.request import Note
from flambeau.tasks import TASKS
from flambeau.types import SemanticSegmentation
from tests.networks import unet
from tests.support import segmenters
from tests.support.photographs import encoded, photograph

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("warm_builds"), pytest.mark.timeout(600)]

LRASPP = "lraspp_mobilenet_v3_large"
OTHERS = ("deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "deeplabv3_resnet101", "fcn_resnet50", "fcn_resnet101")
UNET = f"{Path(unet.__file__)}:UNet"
SECONDS = 3600
"""A picture through a ResNet took 110 s on two cores with much other work: longer than a service's own deadline."""

SAME = 0.998
"""The least share of pixels that have the same class: those between two classes fall either way by rounding."""


def build(source: Path, notes: list[str], **options: Any) -> Bundle:
    def hear(event: object) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    return build_cache.open_source(SourceOptions(source=str(source), **options), progress=hear)


def pictures() -> list[bytes]:
    """A landscape; an upright one, smaller than the network's size; and one that its EXIF turns upright."""
    turned, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    photograph("coffee").resize((300, 170)).save(turned, "PNG", exif=exif)
    upright = photograph("chelsea").resize((101, 141))
    return [encoded(photograph("coffee").resize((480, 320))), encoded(upright), turned.getvalue()]


def assert_as_pytorch(made: Bundle, network: torch.nn.Module, *, shorter: int | None) -> None:
    seen: set[int] = set()
    with flambeau.load(made.path, allow_code=True, deadline=SECONDS) as model:
        for data in pictures():
            answer = model.predict(data)
            assert isinstance(answer, SemanticSegmentation)
            upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
            assert (answer.width, answer.height) == upright.size
            expected = segmenters.classes_of(network, upright, shorter).numpy()
            assert (answer.labels == expected).mean() >= SAME
            assert {each.index: each.pixels for each in answer.found} == {
                index: int((answer.labels == index).sum()) for index in np.unique(answer.labels).tolist()
            }
            seen |= {each.index for each in answer.found}
    assert len(seen) > 1  # a map of one class shows nothing


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return segmenters.segmenter(LRASPP, 3)


@pytest.fixture(scope="module")
def notes() -> list[str]:
    """What the build of `made` said."""
    return []


@pytest.fixture(scope="module")
def made(
    network: torch.nn.Module, notes: list[str], warm_builds: None, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """Built of the weights alone, with names for all classes but the background, and a golden sample."""
    folder = tmp_path_factory.mktemp("segmenter")
    (folder / "names.txt").write_text("cat\ndog\n")
    (folder / "samples").mkdir()
    (folder / "samples" / "upright.png").write_bytes(pictures()[1])
    file = segmenters.saved(network, folder / "weights.pth")
    return build(file, notes, labels=str(folder / "names.txt"), samples=str(folder / "samples"))


def test_a_segmenter_is_found_by_its_weights_alone(made: Bundle, notes: list[str]) -> None:
    manifest = made.manifest
    assert (manifest.task, manifest.engine != "eager", manifest.export_error) == ("semantic-segmentation", True, None)
    assert manifest.architecture is not None
    assert (manifest.architecture.name, manifest.architecture.args) == (LRASPP, {"num_classes": 3})
    assert manifest.pipeline == DenseConfig(resize=520, classes=3)
    assert manifest.agreement is not None
    assert manifest.agreement.holds
    assert manifest.agreement.samples == 3
    said = "\n".join(notes)
    assert "task: semantic-segmentation; each pixel gets the class with the largest of its 3 numbers" in said
    assert "shorter side of 520 pixels" in said
    assert "of the pixels have the same class on 3 pictures" in said
    assert "class 0 is background, class 1 is cat" in said


def test_its_maps_are_pytorchs_in_the_size_of_the_picture(made: Bundle, network: torch.nn.Module) -> None:
    assert_as_pytorch(made, network, shorter=520)


def test_a_golden_sample_says_what_share_each_class_has(made: Bundle) -> None:
    [shares] = [each["shares"] for each in json.loads((made.path / "samples.json").read_text()).values()]
    assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
    assert shares.keys() <= {"background", "cat", "dog"}


def test_a_golden_sample_of_a_map_is_small_and_still_tells_another_map(made: Bundle, network: torch.nn.Module) -> None:
    """Three classes of 520 × 728 pixels are 4.5 MB as numbers."""
    assert (made.path / "samples.safetensors").stat().st_size < 500_000
    [sample] = golden_samples.read(made)
    facts, does, config = made.manifest.facts, TASKS["semantic-segmentation"], made.manifest.pipeline
    assert isinstance(config, DenseConfig)
    with Image.open(io.BytesIO(bytes(sample.payload.data))) as image:
        pixels = torch.from_numpy(dense.prepared(image.convert("RGB"), config))
    with torch.inference_mode():
        own = network(pixels)["out"].numpy()
    name = made.manifest.outputs[0].name
    assert does.outputs_apart(facts, sample.outputs, {name: own}) is None
    assert does.outputs_apart(facts, sample.outputs, {name: own * 1.01}) is not None  # the same classes
    swapped = own[:, ::-1].copy()
    down, across = (-(-side // 64) for side in own.shape[2:])
    swapped[:, :, ::down, ::across] = own[:, :, ::down, ::across]  # all but the pixels whose numbers are kept
    assert "its map is another" in str(does.outputs_apart(facts, sample.outputs, {name: swapped}))
    assert does.outputs_apart(facts, sample.outputs, {name: own[:, :, 1:]}) is not None
    assert does.outputs_apart(facts, sample.outputs, {name: np.full_like(own, np.nan)}) is not None


@pytest.mark.slow
def test_a_golden_sample_with_another_share_ends_the_build(network: torch.nn.Module, tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "a.png").write_bytes(pictures()[1])
    (tmp_path / "samples" / "expected.json").write_text('{"a.png": {"shares": {"0": 0.999}}}')
    file = segmenters.saved(network, tmp_path / "weights.pth")
    with pytest.raises(SourceError, match=r"of the pixels are 0 where 0\.999 are expected"):
        build(file, [], samples=str(tmp_path / "samples"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "why"),
    [({"crop": 224}, "--crop has no effect on"), ({"task": "classification"}, "is a segmenter")],
)
def test_options_that_do_not_fit_a_segmenter_are_refused(
    network: torch.nn.Module, tmp_path: Path, options: dict[str, Any], why: str
) -> None:
    with pytest.raises(SourceError, match=why):
        build(segmenters.saved(network, tmp_path / "weights.pth"), [], **options)


@pytest.mark.parametrize("name", [LRASPP, "fcn_resnet50"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_inspect_names_the_task_whatever_heads_for_training_there_are(tmp_path: Path, name: str, prefix: str) -> None:
    aux = {"aux_loss": True} if name.startswith("fcn") else {}
    with torch.device("meta"):
        state = segmenters.untrained(name, 7, **aux).state_dict()
    torch.save({prefix + key: torch.empty_like(value, device="cpu") for key, value in state.items()}, tmp_path / "a.pt")
    found = inspect(tmp_path / "a.pt")
    assert (found.architecture, found.classes, found.needs) == (name, 7, "")
    assert found.task.startswith(f"semantic-segmentation: {name} says of each pixel which of 7 classes it has")
    assert found.serve == f"flambeau serve {tmp_path / 'a.pt'} --labels FILE"


def unet_file(network: torch.nn.Module, folder: Path) -> Path:
    file: Path = segmenters.saved(network, folder / "weights.pth")
    return file


def test_a_network_of_the_users_own_keeps_the_size_of_pictures(tmp_path: Path, cache: Path) -> None:
    torch.manual_seed(0)
    network = segmenters.spread(unet.UNet(), ("head",))
    notes: list[str] = []
    made = build(unet_file(network, tmp_path), notes, arch=UNET, task="semantic-segmentation", allow_code=True)
    config = made.manifest.pipeline
    assert isinstance(config, DenseConfig)
    assert (config.multiple, config.resize, config.classes) == (4, None, 3)
    assert made.manifest.engine != "eager", notes
    assert any("sides that are multiples of 4" in note for note in notes)
    with flambeau.load(made.path, allow_code=True) as model:
        picture = photograph("coffee").resize((128, 96))
        answer = model.predict(encoded(picture))
        assert isinstance(answer, SemanticSegmentation)
        assert (answer.labels == segmenters.classes_of(network, picture, None).numpy()).mean() >= SAME
        assert len(answer.found) == 3
        odd = model.predict(encoded(picture.resize((101, 45))))
        assert isinstance(odd, SemanticSegmentation)
        assert odd.labels.shape == (45, 101)
        assert isinstance(model.predict(encoded(Image.new("RGB", (1, 1)))), SemanticSegmentation)


@pytest.mark.slow
def test_one_channel_is_a_class_and_what_it_is_not(tmp_path: Path, cache: Path) -> None:
    torch.manual_seed(0)
    network = unet.Binary()
    segmenters.spread(network.logits_only(), ("head",))
    (tmp_path / "names.txt").write_text("road\n")
    made = build(
        unet_file(network.eval(), tmp_path), [], arch=UNET.replace("UNet", "Binary"), task="semantic-segmentation",
        allow_code=True, labels=str(tmp_path / "names.txt"),
    )  # fmt: skip
    assert made.manifest.pipeline.threshold == 0.5  # type: ignore[union-attr]
    picture = photograph("coffee").resize((128, 96))
    with torch.inference_mode():
        expected = (network(segmenters.normalised(picture))[0, 0] > 0.5).numpy()
    assert 0.1 < expected.mean() < 0.9
    with flambeau.load(made.path, allow_code=True) as model:
        answer = model.predict(encoded(picture))
        strict = model.predict(encoded(picture), threshold=0.9)
    assert isinstance(answer, SemanticSegmentation)
    assert isinstance(strict, SemanticSegmentation)
    assert [each.label for each in answer.found] == ["background", "road"]
    assert ((answer.labels == 1) == expected).mean() >= SAME
    assert all(0.5 <= each.score <= 1 for each in answer.found)
    assert 0 < strict.found[-1].pixels < answer.found[-1].pixels


def test_maps_that_may_be_classes_or_a_picture_are_asked_about(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(SourceError, match="answers an image with 3 numbers for each pixel, which may be classes or a"):
        build(unet_file(unet.UNet(), tmp_path), [], arch=UNET, allow_code=True)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS)  # a ResNet's took half an hour on two cores with much other work
@pytest.mark.parametrize("classes", [3, 21])
@pytest.mark.parametrize("name", [LRASPP, *OTHERS])
def test_every_family_is_served_as_torchvision_computes_it(
    name: str, classes: int, tmp_path: Path, cache: Path
) -> None:
    aux = {"aux_loss": True} if classes == 21 and name != LRASPP else {}
    network = segmenters.segmenter(name, classes, **aux)
    notes: list[str] = []
    made = build(segmenters.saved(network, tmp_path / "weights.pth"), notes)
    assert made.manifest.architecture is not None
    assert made.manifest.architecture.name == name
    assert made.manifest.engine != "eager", notes
    assert_as_pytorch(made, network, shorter=520)
