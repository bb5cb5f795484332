"""Detectors with masks and keypoints, from a file of weights to answers: found by the file alone, exported, and the
same as torchvision's own in pixels of the picture as it was sent.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import flambeau
from flambeau.answers.boxes import BOXES, KEYPOINT_SCORES, KEYPOINTS, LABELS, MASKS, SCORES, overlaps
from flambeau.bundle.storage import Bundle, PictureConfig
from flambeau.checkpoints.report import TensorInfo
from flambeau.errors import SourceError
from flambeau.identify import detect
from flambeau.identify.finding import task_of_fit
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache
from flambeau.sources.request import Note
from flambeau.types import InstanceSegmentation, KeypointDetection
from tests.support import detectors
from tests.support.photographs import encoded, photograph

pytestmark = [pytest.mark.usefixtures("warm_builds"), pytest.mark.timeout(900)]

FEW = {"box_detections_per_img": 8, "min_size": 200}
"""Few objects and small pictures, because each object costs a head over its part of the picture."""

SECONDS = 3600
"""A test's limit and a picture's deadline, on a machine with much other work."""


def told_of(name: str, classes: int, **args: Any) -> dict[str, TensorInfo]:
    """The names and shapes of a detector's weights."""
    with torch.device("meta"):
        state = detectors.untrained(name, classes, **args).state_dict()
    return {key: TensorInfo("float32", tuple(value.shape)) for key, value in state.items()}


@pytest.mark.parametrize(
    ("name", "classes", "args", "task"),
    [
        ("maskrcnn_resnet50_fpn", 3, {}, "instance-segmentation: maskrcnn_resnet50_fpn finds boxes with masks of 3"),
        ("maskrcnn_resnet50_fpn_v2", 91, {}, "instance-segmentation: maskrcnn_resnet50_fpn_v2 finds boxes with masks"),
        (
            "keypointrcnn_resnet50_fpn",
            2,
            {},
            "keypoint-detection: keypointrcnn_resnet50_fpn finds boxes with keypoints",
        ),
        ("keypointrcnn_resnet50_fpn", 4, {"num_keypoints": 21}, "keypoint-detection: keypointrcnn_resnet50_fpn finds"),
    ],
)
def test_they_are_found_by_their_weights_with_any_number_of_classes_and_points(
    name: str, classes: int, args: dict[str, Any], task: str
) -> None:
    fit = detect({f"model.{key}": info for key, info in told_of(name, classes, **args).items()}).fit
    assert fit is not None
    points = {"num_keypoints": args.get("num_keypoints", 17)} if "keypoint" in name else {}
    assert (fit.architecture.name, fit.architecture.args) == (name, {"num_classes": classes, **points})
    assert task_of_fit(fit, official=False).startswith(task)


def test_another_number_of_points_than_the_weights_have_is_refused() -> None:
    told = told_of("keypointrcnn_resnet50_fpn", 2)
    found = detect(told, wanted="keypointrcnn_resnet50_fpn", args={"num_keypoints": 5})
    assert found.fit is None
    assert found.advice == "--arch-args say 5 keypoints, and the weights have 17: leave num_keypoints out"


def pictures() -> list[bytes]:
    """A landscape, a picture that its EXIF turns upright, a grey one, one with an alpha channel."""
    turned, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    photograph("coffee").resize((300, 170)).save(turned, "PNG", exif=exif)
    grey = photograph("chelsea").resize((150, 200)).convert("L")
    return [
        encoded(photograph("coffee").resize((360, 240))), turned.getvalue(), encoded(grey),
        encoded(photograph("chelsea").resize((210, 140)).convert("RGBA")),
    ]  # fmt: skip


def build(source: Path, notes: list[str], **options: Any) -> Bundle:
    def hear(event: object) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    return build_cache.open_source(SourceOptions(source=str(source), **options), progress=hear)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("classes", [3, 91])
@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"])
def test_masks_are_torchvisions(name: str, classes: int, tmp_path: Path, cache: Path) -> None:
    network = detectors.detector(name, classes, **FEW)
    notes: list[str] = []
    made = build(detectors.saved(network, tmp_path / "weights.pth"), notes, arch=name, arch_args=FEW)
    assert made.manifest.architecture is not None
    assert made.manifest.architecture.name == name
    assert (made.manifest.task, made.manifest.engine != "eager") == ("instance-segmentation", True), notes
    config = made.manifest.pipeline
    assert isinstance(config, PictureConfig)
    compared = 0
    with flambeau.load(made.path, deadline=SECONDS) as model:
        for data in pictures():
            upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
            expected = detectors.found(network, upright)
            answer = model.predict(data, threshold=config.least)
            assert isinstance(answer, InstanceSegmentation)
            assert (answer.width, answer.height) == upright.size
            assert sorted(each.index for each in answer.found) == sorted(expected[LABELS][0].tolist())
            for place, each in enumerate(answer.found):
                one = best(each.box, expected[BOXES][0], expected[LABELS][0] == each.index)
                assert each.score == pytest.approx(float(expected[SCORES][0, one]), abs=1e-3)
                mask, own = answer.mask(place), expected[MASKS][0, one, 0] > 0.5
                assert mask.shape == upright.size[::-1]
                assert (mask & own).sum() >= 0.99 * (mask | own).sum()
                assert each.pixels == mask.sum()
                compared += bool(own.any())
    assert compared > 10


@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize(("classes", "points"), [(2, 17), (3, 5), (91, 17)])
def test_keypoints_are_torchvisions(classes: int, points: int, tmp_path: Path, cache: Path) -> None:
    name = "keypointrcnn_resnet50_fpn"
    network = detectors.detector(name, classes, num_keypoints=points, **FEW)
    notes: list[str] = []
    made = build(detectors.saved(network, tmp_path / "weights.pth"), notes, arch=name, arch_args=FEW)
    assert made.manifest.architecture is not None
    assert made.manifest.architecture.name == name
    assert (made.manifest.task, made.manifest.engine != "eager") == ("keypoint-detection", True), notes
    config = made.manifest.pipeline
    assert isinstance(config, PictureConfig)
    distances: list[float] = []
    with flambeau.load(made.path, deadline=SECONDS) as model:
        for data in pictures():
            upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
            expected = detectors.found(network, upright)
            answer = model.predict(data, threshold=config.least)
            assert isinstance(answer, KeypointDetection)
            assert sorted(each.index for each in answer.found) == sorted(expected[LABELS][0].tolist())
            for each in answer.found:
                one = best(each.box, expected[BOXES][0], expected[LABELS][0] == each.index)
                found = np.array(each.keypoints)
                assert found.shape == (points, 3)
                distances += np.abs(found[:, :2] - expected[KEYPOINTS][0, one, :, :2]).max(axis=1).tolist()
                np.testing.assert_allclose(found[:, 2], expected[KEYPOINT_SCORES][0, one], rtol=1e-3, atol=1e-3)
    assert len(distances) > 10 * points
    assert np.quantile(distances, 0.99) <= 0.5  # where two places of a map are equal but for rounding, either is right


def best(box: tuple[float, ...], boxes: np.ndarray, alike: np.ndarray) -> int:
    """The place of the same box among those of the same label."""
    shared = np.where(alike, overlaps(np.array([box]), boxes)[0], 0.0)
    assert shared.max() >= 0.99
    return int(shared.argmax())


@pytest.mark.slow
def test_another_task_is_refused(tmp_path: Path, cache: Path) -> None:
    torch.save(detectors.untrained("maskrcnn_resnet50_fpn", 3).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(SourceError, match="but maskrcnn_resnet50_fpn is a network for instance-segmentation"):
        build(tmp_path / "weights.pth", [], task="object-detection")
