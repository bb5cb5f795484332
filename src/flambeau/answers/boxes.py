"""Boxes in pictures: how much two overlap, and whether two lists of detections are the same.

Detections have no order of their own and no fixed number, so they are matched before they are compared. Knows no
network and no task.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from flambeau.answers.agreement import TOLERANCE, Agreement
from flambeau.items import Tensors

BOXES, SCORES, LABELS = "boxes", "scores", "labels"
"""The names of a detector's outputs: (rows, n, 4) as xmin, ymin, xmax, ymax; (rows, n); (rows, n), whole numbers."""

MASKS, KEYPOINTS, KEYPOINT_SCORES = "masks", "keypoints", "keypoints_scores"
"""The names of what a detector may say of each object besides: (rows, n, height, width), the probability that a place
of its box belongs to it; (rows, n, points, 2 or 3), x and y of its points first; (rows, n, points), their scores."""

Pairs = Sequence[tuple[int, int]]
"""Places of the same detection in two lists."""

Apart = Callable[[Tensors, Tensors, Pairs], bool]
"""Whether the parts of paired detections, such as masks, differ. It is given one row of each list's outputs."""

SAME_BOX = 0.99
"""The least overlap (intersection over union) of two boxes that count as the same."""

_NEAR = 0.05  # pixels: boxes whose corners lie this close are the same, however small or empty they are
_SURE = 0.5  # a detection with this score must be found again; of weaker ones a few may be lost
_SPARED = 0.05  # the share of weaker ones: where two proposals lie close, rounding decides which one is dropped
_CERTAIN, _TIED = 0.999, 1e-5  # scores this high and this close may be in either order: float32 has few numbers there
_RIVALS = 0.3  # of two boxes that overlap this much, a detector may have suppressed one


def overlaps(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Intersection over union of every pair of boxes, shapes (n, 4) and (m, 4): (n, m). 0 where both are empty."""
    first, second = one.astype(np.float64)[:, None], other.astype(np.float64)[None]
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    shared = sides.clip(min=0).prod(axis=-1)
    areas = [(each[..., 2:] - each[..., :2]).clip(min=0).prod(axis=-1) for each in (first, second)]
    union = areas[0] + areas[1] - shared
    shares: npt.NDArray[np.float64] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return shares


@dataclass(frozen=True)
class Detections:
    """The detections in one picture: boxes (n, 4) in pixels, scores (n,), labels (n,)."""

    boxes: npt.NDArray[Any]
    scores: npt.NDArray[Any]
    labels: npt.NDArray[Any]

    @classmethod
    def rows(cls, outputs: Tensors) -> "list[Detections]":
        """Those of each row of a detector's outputs."""
        return [cls(*row) for row in zip(outputs[BOXES], outputs[SCORES], outputs[LABELS], strict=True)]

    def __len__(self) -> int:
        return len(self.scores)


def compare(
    expected: Tensors,
    found: Tensors,
    *,
    least: float,
    most: int,
    tolerance: float = TOLERANCE,
    part: str = "",
    apart: Apart | None = None,
) -> Agreement:
    """How well a detector's outputs agree with the network's own; with `apart`, also the `part` that it compares.

    A detection is found again if one of the same label overlaps it by `SAME_BOX`, or has its corners, with a score at
    most `tolerance` apart. Not required are detections whose score is within the tolerance of `least`, below which the
    network reports nothing; or, if a list is full with `most` detections, of its lowest score. Nor are those with a
    score of nearly 1 whose place is taken by another with that score, because either may suppress the other. There may
    not be more of both than were found again, or nothing would be compared where all scores are alike. Of those with a
    score below 0.5, one in twenty may be lost.
    """
    rows = list(zip(Detections.rows(expected), Detections.rows(found), strict=True))
    counted = [_Count.of(*row, least=least, most=most, tolerance=tolerance) for row in rows]
    matched, excused = sum(each.matched for each in counted), sum(each.excused for each in counted)
    sure, weak = sum(each.sure for each in counted), sum(each.weak for each in counted)
    finite = all(np.isfinite(each.boxes).all() and np.isfinite(each.scores).all() for _, each in rows)
    same = finite and not sure and weak <= _SPARED * matched and excused <= matched
    furthest = max((each.apart for each in counted), default=0.0)
    unlike = apart is not None and any(
        apart(_row(expected, place), _row(found, place), each.pairs) for place, each in enumerate(counted)
    )
    agreed = Agreement(len(rows), furthest, same_top_class=same and not unlike, tolerance=tolerance, boxes=matched)
    return msgspec.structs.replace(agreed, unlike=part) if unlike else agreed


def _row(tensors: Tensors, place: int) -> Tensors:
    return {name: rows[place] for name, rows in tensors.items()}


def worst(found: Iterable[Agreement]) -> Agreement:
    """The worst of several agreements. One about boxes or pixels counts those of all of them."""
    each = list(found)
    taken = max(each, key=lambda one: (not one.holds, one.difference))
    samples = sum(one.samples for one in each)
    if isinstance(taken.boxes, int):
        boxes = sum(one.boxes for one in each if isinstance(one.boxes, int))
        return msgspec.structs.replace(taken, samples=samples, boxes=boxes)
    if isinstance(taken.pixels, float):
        pixels = min(one.pixels for one in each if isinstance(one.pixels, float))
        return msgspec.structs.replace(taken, samples=samples, pixels=pixels)
    return taken


@dataclass(frozen=True)
class _Count:
    """How many detections of one picture were matched, and how many were not: excused, sure or weak."""

    matched: int
    excused: int
    sure: int
    weak: int
    apart: float
    pairs: Pairs

    @classmethod
    def of(cls, expected: Detections, found: Detections, *, least: float, most: int, tolerance: float) -> "_Count":
        full = [float(each.scores.min()) for each in (expected, found) if most and len(each) >= most]
        floor = max([least, *full]) + tolerance
        corners = np.abs(expected.boxes.astype(np.float64)[:, None] - found.boxes.astype(np.float64)[None]).max(axis=-1)
        overlap = np.where(corners <= _NEAR, 1.0, overlaps(expected.boxes, found.boxes))
        alike = expected.labels[:, None] == found.labels[None]
        apart = np.abs(expected.scores.astype(np.float64)[:, None] - found.scores.astype(np.float64)[None])
        pairs = _pairs(np.where(alike & (apart <= tolerance), overlap, 0.0))
        certain = np.minimum(expected.scores[:, None], found.scores[None]) >= _CERTAIN
        rival = alike & certain & (overlap >= _RIVALS) & (apart <= _TIED)
        excused = [0, 0]
        sure = weak = 0
        for axis, each in enumerate((expected, found)):
            taken = {pair[axis] for pair in pairs}
            for place in range(len(each)):
                score = float(each.scores[place])
                if place in taken or score <= least + tolerance:
                    continue
                if score <= floor or rival.take(place, axis=axis).any():
                    excused[axis] += 1
                elif score >= _SURE:
                    sure += 1
                else:
                    weak += 1
        differences = [float(apart[pair]) for pair in pairs]
        return cls(len(pairs), max(excused), sure, weak, max(differences, default=0.0), pairs)


def _pairs(overlap: npt.NDArray[np.float64]) -> list[tuple[int, int]]:
    """Pairs of the same box, each box in one pair at most, those that overlap most first."""
    places = np.argwhere(overlap >= SAME_BOX)
    order = np.argsort([-overlap[one, other] for one, other in places], kind="stable")
    pairs: dict[int, int] = {}
    for one, other in places[order].tolist() if len(places) else ():
        if one not in pairs and other not in pairs.values():
            pairs[one] = other
    return list(pairs.items())
