"""Detectors in a build: filled, described, and run over pictures.

They take one picture of any size, so they are probed one by one over pictures of unlike sizes. The pictures are the
page's own photographs, because a detector that was trained on photographs finds little in noise.
"""

import io
from collections.abc import Iterable, Mapping
from importlib import resources

import msgspec
import numpy as np
import torch
from PIL import Image
from torch import nn

from flambeau import architectures
from flambeau.answers import keypoints
from flambeau.answers.boxes import BOXES, KEYPOINT_SCORES, KEYPOINTS, LABELS, MASKS, SCORES, Detections
from flambeau.architectures.detectors import PREFIX, Detector
from flambeau.builder import probing
from flambeau.builder.filled import Filled, Tell
from flambeau.builder.labels import COCO
from flambeau.builder.official_names import official_weights
from flambeau.builder.probing import Probed
from flambeau.builder.weights import Weights
from flambeau.bundle.storage import PictureConfig
from flambeau.checkpoints.last_operation import UNKNOWN
from flambeau.errors import SourceError
from flambeau.identify.finding import Fit
from flambeau.items import FREE
from flambeau.pipelines.picture import scaled
from flambeau.sources.request import BuildRequest, refuse_idle
from flambeau.tasks import TaskName
from flambeau.types import TensorSpec

ONE_ROW = "pictures of unlike sizes are resized to sizes of their own, and each has its own number of boxes"
"""Why a detector is given one picture at a time."""

_OPTIONS = ("arch", "arch_args", "weights", "weights_key", "num_classes", "labels", "threshold", "task", "samples")
_OUTPUTS = (
    TensorSpec(BOXES, "float32", (FREE, 4), least=0),
    TensorSpec(SCORES, "float32", (FREE,), least=0),
    TensorSpec(LABELS, "int64", (FREE,), least=0),
)
_MASK = (28, 28)
"""The rows and columns of torchvision's masks."""

_PEOPLE = ("no person", "person")
"""The classes of torchvision's official weights for keypoints."""

_LEAST_SIDE = 1
_PHOTOGRAPHS = (("chelsea.jpg", (320, 240)), ("coffee.jpg", (200, 280)))


def filled(
    network: nn.Module,
    tensors: "Mapping[str, torch.Tensor]",
    fit: Fit,
    order: BuildRequest,
    weights: Weights,
    *,
    tell: Tell,
) -> Filled:
    """The detector with its weights. Raises `SourceError` for weights that do not fit, or options without effect."""
    options, name = order.options, fit.architecture.name
    refuse_idle(options, f"{name}, a detector", used=_OPTIONS)
    if options.task not in (None, fit.task):
        raise SourceError(f"--task {options.task}, but {name} is a network for {fit.task}: leave it out")
    assert isinstance(network, Detector)  # its registry makes no other
    assert isinstance(fit.pipeline, PictureConfig)  # the caller checked
    architectures.load_weights(network, {PREFIX + key: tensor for key, tensor in tensors.items()}, name=name)
    official = official_weights(name, str(order.file or ""), weights.sha256, tell=tell)
    named, people = weights.classes, False
    if official:
        tell(f"these are the official weights {official}, of COCO's classes")
        people = fit.task == "keypoint-detection"
        named = _PEOPLE if people else named
    least, most = network.limits
    pipeline = msgspec.structs.replace(fit.pipeline, least=least, most=most)
    if options.threshold is not None:
        pipeline = msgspec.structs.replace(pipeline, threshold=options.threshold)
    if people:
        pipeline = msgspec.structs.replace(pipeline, keypoints=keypoints.COCO)
    outputs = _outputs(fit)
    return Filled(
        network=network,
        name=name,
        architecture=fit.architecture,
        pipeline=pipeline,
        inputs=(TensorSpec("image", "float32", (3, FREE, FREE), least=_LEAST_SIDE),),
        labels=options.labels or (COCO if official and not people else None),
        classes=named,
        rows=1,
        exports="torchscript",
        outputs=tuple(spec.name for spec in outputs),
        shapes=tuple(spec.shape for spec in outputs),
        plain=False,
        official=bool(official),
        one_row=ONE_ROW,
    )


def _outputs(fit: Fit) -> tuple[TensorSpec, ...]:
    """What a detector of that task answers with."""
    if fit.task == "instance-segmentation":
        return (*_OUTPUTS, TensorSpec(MASKS, "float32", (FREE, *_MASK), least=0))
    if fit.task == "keypoint-detection":
        points = fit.architecture.args["num_keypoints"]
        return (
            *_OUTPUTS,
            TensorSpec(KEYPOINTS, "float32", (FREE, points, 2), least=0),
            TensorSpec(KEYPOINT_SCORES, "float32", (FREE, points), least=0),
        )
    return _OUTPUTS


def task_of(outputs: Iterable[str]) -> TaskName:
    """The task of a detector with these outputs."""
    given = set(outputs)
    if MASKS in given:
        return "instance-segmentation"
    return "keypoint-detection" if KEYPOINTS in given else "object-detection"


def probe(filled: Filled, *, tell: Tell) -> Probed:
    """Run the detector over pictures of unlike sizes, each alone.

    Raises `SourceError` for one that cannot compute them, or whose numbers are not finite.
    """
    spec = filled.inputs[0]
    pictures = _pictures()
    answers = [probing.compute(filled, {spec.name: picture}) for picture in pictures]
    for each in answers:
        if not all(np.isfinite(rows).all() for rows in each.values()):
            raise SourceError(f"{filled.name} answers a photograph with numbers that are not finite: check its weights")
    assert isinstance(filled.pipeline, PictureConfig)  # the caller checked
    tell(
        f"task: {task_of(filled.outputs)}; boxes whose score is {filled.pipeline.threshold:g} or more are answered, "
        "unless ?threshold= or --threshold says otherwise"
    )
    if not any(len(each) for rows in answers for each in Detections.rows(rows)):
        tell(
            f"{filled.name} finds nothing in the pictures that its export is checked with, not even with little "
            "certainty: --samples checks it with pictures of its own kind"
        )
    longer = tuple(({spec.name: picture}, answer) for picture, answer in zip(pictures[1:], answers[1:], strict=True))
    outputs = tuple(
        TensorSpec(name, str(answers[0][name].dtype), shape, least=0)
        for name, shape in zip(filled.outputs, filled.shapes, strict=True)
    )
    return Probed(filled, outputs, {spec.name: pictures[0]}, answers[0], UNKNOWN, one_row=ONE_ROW, longer=longer)


def _pictures() -> list[np.ndarray]:
    """Two photographs of unlike sizes, each float32 (1, 3, height, width) on the scale [0, 1]."""
    folder = resources.files("flambeau").joinpath("ui", "static", "samples")
    found = []
    for name, size in _PHOTOGRAPHS:
        with Image.open(io.BytesIO(folder.joinpath(name).read_bytes())) as image:
            found.append(scaled(image.convert("RGB").resize(size)))
    return found
