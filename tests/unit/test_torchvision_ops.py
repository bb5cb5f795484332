"""Somebody's code beside a torchvision whose compiled operators do not load: it imports, and detectors run (U3)."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from flambeau.architectures import box_ops
from tests.support.photographs import encoded, photograph

DETECTOR = """
import io

import torch
from PIL import Image
from torchvision.models import detection
from torchvision.transforms.functional import to_tensor

import flambeau


class Boxes(flambeau.PythonModel):
    def load(self):
        torch.manual_seed(5)
        self.net = detection.{name}(weights=None, weights_backbone=None{more}).eval()

    def predict(self, batch):
        pictures = [to_tensor(Image.open(io.BytesIO(item)).convert("RGB")) for item in batch]
        with torch.inference_mode():
            return [{{key: value.tolist() for key, value in found.items()}} for found in self.net(pictures)]
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "more"),
    [("ssdlite320_mobilenet_v3_large", ""), ("fasterrcnn_mobilenet_v3_large_320_fpn", ", box_score_thresh=0.0")],
)
def test_a_python_model_runs_a_detector_of_torchvisions(tmp_path: Path, name: str, more: str) -> None:
    """U3: the one needs non-maximum suppression, the other RoIAlign too; in a process that has no torchvision yet."""
    (tmp_path / "boxes.py").write_text(DETECTOR.format(name=name, more=more))
    (tmp_path / "cat.png").write_bytes(encoded(photograph("chelsea").resize((96, 64))))
    script = (
        "import sys, flambeau\n"
        "with flambeau.load(sys.argv[1] + '/boxes.py:Boxes', allow_code=True) as model:\n"
        "    found = model.predict(open(sys.argv[1] + '/cat.png', 'rb').read())\n"
        "print(len(found['boxes']), len(found['boxes'][0]), len(found['scores']), len(found['labels']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, tmp_path],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    boxes, corners, scores, labels = map(int, done.stdout.split())
    assert boxes == scores == labels > 0
    assert corners == 4


def test_a_class_of_ones_own_may_import_torchvision(tmp_path: Path) -> None:
    """U3: in the build, and in the worker that runs it eagerly."""
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\nfrom torchvision.ops import nms\n\n\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.line = nn.Linear(4, 2)\n\n"
        "    def forward(self, rows):\n        return self.line(rows)\n"
    )
    torch.save({"line.weight": torch.ones(2, 4), "line.bias": torch.zeros(2)}, tmp_path / "net.pth")
    script = (
        "import sys, flambeau\n"
        "options = dict(arch=sys.argv[1] + '/net.py:Net', allow_code=True, engine=sys.argv[2])\n"
        "with flambeau.load(sys.argv[1] + '/net.pth', **options) as model:\n"
        "    print(model.predict([1.0, 2.0, 3.0, 4.0]))\n"
    )
    for engine in ("onnxruntime", "eager"):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script, tmp_path, engine],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "[10.0, 10.0]"


def test_code_that_needs_no_torchvision_pays_nothing_for_it(double_py: Path) -> None:
    script = (
        "import sys, flambeau\n"
        "with flambeau.load(sys.argv[1] + ':Double', allow_code=True) as model:\n"
        "    assert model.predict(4) == 8\n"
        "print('torch' in sys.modules, 'torchvision' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, double_py], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"


def brute_force_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    """Box by box, in float32 as the stand-in."""
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda each: (-scores[each], each)):
        if all(overlap(boxes[index], boxes[other]) <= threshold for other in kept):
            kept.append(index)
    return kept


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    wide = max(np.float32(0), min(one[2], other[2]) - max(one[0], other[0]))
    high = max(np.float32(0), min(one[3], other[3]) - max(one[1], other[1]))
    shared = wide * high
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (other, one)]
    whole = areas[0] + areas[1] - shared
    return float(shared / whole) if whole else 0.0


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_non_maximum_suppression_is_that_of_a_brute_force(threshold: float) -> None:
    """U3: random boxes with equal scores, boxes twice, boxes of no size, and none at all."""
    generator = np.random.default_rng(3)
    for count in (0, 1, 2, 40, 120):
        corners = generator.integers(0, 12, (count, 2, 2)).astype(np.float32)
        boxes = np.concatenate([corners.min(1), corners.max(1)], 1)
        boxes[count // 2 :] = boxes[: count - count // 2]
        scores = generator.integers(0, 5, count).astype(np.float32) / 5
        found = box_ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold)
        assert found.dtype == torch.int64
        assert found.tolist() == brute_force_nms(boxes, scores, threshold)


def by_the_formula(
    features: np.ndarray, roi: np.ndarray, scale: float, size: tuple[int, int], ratio: int, aligned: bool
) -> np.ndarray:
    """RoIAlign of one region, point by point: He et al., Mask R-CNN (2017), section 3, and torchvision's edges."""
    channels = features.shape[1]
    left, top, right, bottom = (float(side) * scale - (0.5 if aligned else 0.0) for side in roi[1:])
    high, wide = bottom - top, right - left
    if not aligned:
        high, wide = max(high, 1.0), max(wide, 1.0)
    result = np.zeros((channels, *size))
    rows = ratio if ratio > 0 else int(np.ceil(high / size[0]))
    columns = ratio if ratio > 0 else int(np.ceil(wide / size[1]))
    for i, j in np.ndindex(*size):
        for row, column in np.ndindex(rows, columns):
            y = top + i * high / size[0] + (row + 0.5) * high / size[0] / rows
            x = left + j * wide / size[1] + (column + 0.5) * wide / size[1] / columns
            result[:, i, j] += point(features[int(roi[0])], y, x)
    return result / max(rows * columns, 1)


def point(image: np.ndarray, y: float, x: float) -> np.ndarray:
    height, width = image.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(len(image))
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    down, across = min(top + 1, height - 1), min(left + 1, width - 1)
    part, side = y - top, x - left
    upper = image[:, top, left] * (1 - side) + image[:, top, across] * side
    lower = image[:, down, left] * (1 - side) + image[:, down, across] * side
    result: np.ndarray = upper * (1 - part) + lower * part
    return result


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [-1, 2])
def test_roi_align_is_that_of_the_formula(ratio: int, aligned: bool) -> None:
    """U3: regions within, over the edge, outside, of no size, and none at all."""
    generator = np.random.default_rng(4)
    features = generator.standard_normal((2, 3, 9, 11)).astype(np.float32)
    corners = generator.uniform(-6, 50, (30, 2, 2))
    rois = np.concatenate([generator.integers(0, 2, (30, 1)), corners.min(1), corners.max(1)], 1).astype(np.float32)
    rois = np.concatenate([rois, [[0, 5, 5, 5, 5], [1, 0, 0, 44, 36], [1, 100, 100, 140, 130]]]).astype(np.float32)
    found = box_ops.roi_align(torch.from_numpy(features), torch.from_numpy(rois), 0.25, 3, 2, ratio, aligned)
    expected = np.stack([by_the_formula(features, roi, 0.25, (3, 2), ratio, aligned) for roi in rois])
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)
    none = box_ops.roi_align(torch.from_numpy(features), torch.zeros(0, 5), 0.25, 3, 2, ratio, aligned)
    assert none.shape == (0, 3, 3, 2)
