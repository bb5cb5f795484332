"""Points of objects: whether two networks found the same. Knows no network and no task."""

import numpy as np

from flambeau.answers.boxes import KEYPOINT_SCORES, KEYPOINTS, Pairs
from flambeau.items import Tensors

COCO = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
"""The keypoints of a person in COCO, as torchvision's official weights number them."""

SAME_POINT = 0.5
"""Pixels: points this close are the same."""

_SAME_SCORE = 1e-3  # of the largest score: a point may lie elsewhere if the network finds two places as likely
_SPARED = 0.05  # the share of points that may


def apart(expected: Tensors, found: Tensors, pairs: Pairs) -> bool:
    """Whether the points of the same objects differ: one row of each network's outputs, see `boxes.Apart`.

    A point is where a map of scores has its largest number. Where two numbers are equal but for rounding, either may
    be the largest: of one point in twenty the score alone is compared.
    """
    if not pairs:
        return False
    ours, theirs = (list(places) for places in zip(*pairs, strict=True))
    first, second = expected[KEYPOINTS][ours][..., :2], found[KEYPOINTS][theirs][..., :2]
    scores, others = expected[KEYPOINT_SCORES][ours], found[KEYPOINT_SCORES][theirs]
    if not (np.isfinite(second).all() and np.isfinite(others).all()):
        return True
    moved = np.abs(first.astype(np.float64) - second).max(axis=-1) > SAME_POINT
    unlike = np.abs(scores.astype(np.float64) - others) > _SAME_SCORE * max(float(np.abs(scores).max()), 1.0)
    return bool(unlike.any() or moved.sum() > _SPARED * moved.size)
