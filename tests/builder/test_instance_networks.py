"""Masks and keypoints of small detectors as torchvision makes them: wrapped, exported, and pasted by the tasks."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from flambeau.answers import boxes, instance_masks, keypoints
from flambeau.answers.activation import Activation
from flambeau.answers.boxes import BOXES, KEYPOINTS, MASKS, SCORES
from flambeau.architectures import torchvision_compat
from flambeau.items import FREE
from flambeau.tasks import TASKS, NetworkFacts
from flambeau.tasks.object_detection import SIZE
from flambeau.types import InstanceSegmentation, Item, Options, Payload, TensorSpec
from tests.support import detectors
from tests.support.photographs import photograph

pytestmark = pytest.mark.long

CLASSES = 3


def small(kind: str, **args: Any) -> nn.Module:
    """torchvision's Mask R-CNN or Keypoint R-CNN over a small backbone, for few objects in small pictures."""
    torchvision_compat.declare_missing()
    from torchvision.models import detection
    from torchvision.models.detection.backbone_utils import mobilenet_backbone

    torch.manual_seed(1)
    backbone = mobilenet_backbone(
        backbone_name="mobilenet_v3_large", weights=None, fpn=True, trainable_layers=6, norm_layer=nn.BatchNorm2d
    )
    sizes = {"min_size": 120, "max_size": 200, "box_detections_per_img": 6, **args}
    anchors = detection.anchor_utils.AnchorGenerator(((32, 64, 128),) * 3, ((0.5, 1.0, 2.0),) * 3)
    made: nn.Module = getattr(detection, kind)(backbone, CLASSES, rpn_anchor_generator=anchors, **sizes)
    return detectors.told_apart(made)


def pixels(name: str, size: tuple[int, int]) -> torch.Tensor:
    array = np.asarray(photograph(name).convert("RGB").resize(size), np.float32) / 255
    return torch.from_numpy(array.transpose(2, 0, 1).copy())[None]


def exported(network: nn.Module, file: Path, names: list[str]) -> onnxruntime.InferenceSession:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {name: {1: "n"} for name in names} | {"image": {2: "h", 3: "w"}}
        torch.onnx.export(
            network, (pixels("coffee", (160, 110)),), file, dynamo=False, input_names=["image"], output_names=names,
            dynamic_axes=axes,
        )  # fmt: skip
    return onnxruntime.InferenceSession(file)


@pytest.mark.parametrize(
    ("kind", "apart"), [("MaskRCNN", instance_masks.apart), ("KeypointRCNN", keypoints.apart)], ids=["masks", "points"]
)
def test_a_graph_answers_as_torchvision_does(kind: str, apart: boxes.Apart, tmp_path: Path) -> None:
    own = small(kind)
    pictures = [pixels("coffee", (160, 110)), pixels("chelsea", (131, 190))]
    with torch.inference_mode():
        expected = [own([picture[0]])[0] for picture in pictures]
    from flambeau.architectures.detectors import Detector

    network = Detector(own).eval()
    with torch.inference_mode():
        wrapped = [{name: rows.numpy() for name, rows in network(picture).items()} for picture in pictures]
    session = exported(network, tmp_path / "net.onnx", list(wrapped[0]))
    for picture, theirs, eager in zip(pictures, expected, wrapped, strict=True):
        assert len(eager[SCORES][0]) > 3
        assert np.array_equal(eager[BOXES][0], theirs[BOXES].numpy())
        found = dict(zip(eager, session.run(None, {"image": picture.numpy()}), strict=True))
        measured = boxes.compare(eager, found, least=0.05, most=6, part="parts", apart=apart)
        assert measured.holds, measured
        assert measured.boxes == len(eager[SCORES][0])
        if kind == "KeypointRCNN":
            assert np.array_equal(eager[KEYPOINTS][0], theirs[KEYPOINTS][..., :2].numpy())
            moved = {**found, KEYPOINTS: found[KEYPOINTS] + 2}
        else:
            assert_pasted(found, theirs[MASKS].numpy(), picture.shape[2:])
            moved = {**found, MASKS: np.roll(found[MASKS], 3, axis=2)}
        other = boxes.compare(eager, moved, least=0.05, most=6, part="parts", apart=apart)
        assert not other.holds
        assert "their parts" in str(other)


def assert_pasted(found: dict[str, np.ndarray], theirs: np.ndarray, size: tuple[int, ...]) -> None:
    """The task's masks are those that torchvision pastes, (n, 1, height, width), where it is sure."""
    facts = NetworkFacts(
        inputs=(TensorSpec("image", "float32", (3, FREE, FREE)),), activation=Activation("none"), classes=CLASSES,
        outputs=tuple(TensorSpec(name, str(rows.dtype), (FREE, *rows.shape[2:])) for name, rows in found.items()),
    )  # fmt: skip
    item = Item(Payload("file", b""), Options(threshold=0.0))
    answer = TASKS["instance-segmentation"].postprocess(facts)(found | {SIZE: np.array([size])}, item)
    assert isinstance(answer, InstanceSegmentation)
    assert len(answer.found) == len(theirs)
    for place in range(len(theirs)):
        sure = np.abs(theirs[place, 0] - 0.5) > 1e-3
        assert np.array_equal(answer.mask(place)[sure], (theirs[place, 0] > 0.5)[sure])


@pytest.mark.parametrize("kind", ["MaskRCNN", "KeypointRCNN"])
def test_nothing_is_found_without_a_fault(kind: str, tmp_path: Path) -> None:
    from flambeau.architectures.detectors import Detector

    network = Detector(small(kind)).eval()
    with torch.inference_mode():
        names = list(network(pixels("coffee", (160, 110))))
    network.detector.roi_heads.score_thresh = 2.0  # type: ignore[union-attr]
    session = exported(network, tmp_path / "net.onnx", names)
    found = dict(zip(names, session.run(None, {"image": pixels("coffee", (160, 110)).numpy()}), strict=True))
    assert {name: rows.shape[:2] for name, rows in found.items()} == dict.fromkeys(names, (1, 0))
