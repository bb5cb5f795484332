"""Finds torchvision's detectors by names and shapes, with any number of classes and of keypoints. They answer with
boxes, and some with masks or keypoints besides.

What weights do not show (the size that images are resized to, the shapes of anchors, the least score) is taken as
torchvision's constructor has it, and said. The list of detectors is that of `unsupported`, which knows all networks of
torchvision beside classifiers.
"""

from collections.abc import Mapping
from typing import Any

from flambeau.bundle.pipeline_config import PictureConfig
from flambeau.bundle.storage import Architecture
from flambeau.identify import match, nearest, unsupported
from flambeau.identify.finding import Fit, Identified
from flambeau.identify.index import COUNTER
from flambeau.identify.naming import Names
from flambeau.identify.unsupported import Known

SERVED: dict[str, str] = {
    "object detection": "object-detection",
    "instance segmentation": "instance-segmentation",
    "keypoint detection": "keypoint-detection",
}
"""The tasks of `unsupported` that are served, by their names in `--task`."""

_POINTS = "roi_heads.keypoint_predictor.kps_score_lowres.bias"
"""The tensor that has a number for each keypoint."""

_WITHOUT_EPSILON = ("fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn")
"""Detectors whose official weights (COCO_V1) torchvision serves and fine-tunes with norms of epsilon 0."""

DEFAULTS = "what weights do not show (sizes, anchors, the least score) is torchvision's default"
"""The note on every detector."""


def names() -> list[str]:
    """The detectors that `--arch` may name."""
    return [other.name for other in unsupported.known() if other.task in SERVED]


def find(file: Names, known: Known, *, wanted: str | None, args: Mapping[str, Any]) -> Identified:
    """The detector that the file's tensors fill. `known` is what they are; `wanted` one of its names."""
    by_length = sorted(known.names, key=lambda name: (len(name), name))
    name = wanted or by_length[0]
    inside = file.within(known.prefix)
    beside, left = match.beside(file, known.prefix, inside)
    classes = known.classes or 0
    if advice := nearest.left_over(name, left) or nearest.unlike(args, "num_classes", classes):
        return Identified(None, advice=advice)
    given: dict[str, Any] = {"num_classes": classes}
    if _POINTS in inside:
        [given["num_keypoints"]] = inside[_POINTS]
        if advice := nearest.unlike(args, "num_keypoints", given["num_keypoints"]):
            return Identified(None, advice=advice)
    notes = [f"{DEFAULTS}: --arch {name} with --arch-args changes it"]
    if name in _WITHOUT_EPSILON and not any(key.endswith(COUNTER) for key in inside):
        given["norm_epsilon"] = 0.0
        notes.append(
            "its norms are frozen, and taken with the epsilon 0 of torchvision's COCO weights: if it was trained from "
            "other weights, --arch-args '{\"norm_epsilon\": 1e-5}' says so"
        )
    notes += nearest.averaged(known.prefix)
    others = tuple(other for other in by_length if other != name)
    fit = Fit(
        architecture=Architecture("torchvision", name, {**given, **args}),
        classes=classes,
        keys={file.keys[known.prefix + key]: key for key in inside},
        aside=(*file.aside, *(file.keys[key] for key in beside)),
        same_weights=others,
        why=_why(name, others, wanted),
        pipeline=PictureConfig(classes=classes, least=0.0, most=0),
        task=SERVED[known.task],
    )
    return Identified(fit, notes=tuple(notes))


def _why(name: str, others: tuple[str, ...], wanted: str | None) -> str:
    if wanted or not others:
        return f"{name} was asked for" if wanted else ""
    return (
        f"{', '.join(others)} has weights of the same names and shapes, and resizes images to another size; {name} was "
        "taken because its name is shorter, and --arch selects another"
    )
