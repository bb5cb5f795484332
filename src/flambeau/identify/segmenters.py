"""Finds torchvision's semantic segmenters by names and shapes, with any number of classes.

A head for training only (`aux_classifier`) is left aside. The transform is that of torchvision's own weights, all of
which were trained with it. The list of segmenters is that of `unsupported`.
"""

from collections.abc import Mapping
from typing import Any

from flambeau.bundle.pipeline_config import DenseConfig
from flambeau.bundle.storage import Architecture
from flambeau.identify import match, nearest, unsupported
from flambeau.identify.finding import Fit, Identified
from flambeau.identify.naming import Names
from flambeau.identify.unsupported import Known

SERVED = "semantic segmentation"
"""The task of `unsupported` that is served."""

RECIPE = DenseConfig(resize=520)
"""The transform of all of torchvision's weights for segmenters."""

_NOTE = (
    "images are resized to a shorter side of 520 pixels, as for torchvision's own weights: --resize says another size, "
    "if it was trained with one"
)


def names() -> list[str]:
    """The segmenters that `--arch` may name."""
    return [other.name for other in unsupported.known() if other.task == SERVED]


def find(file: Names, known: Known, *, wanted: str | None, args: Mapping[str, Any]) -> Identified:
    """The segmenter that the file's tensors fill. `known` is what they are; `wanted` one of its names."""
    name = wanted or known.names[0]
    inside = file.within(known.prefix)
    beside, left = match.beside(file, known.prefix, inside)
    classes = known.classes or 0
    if advice := nearest.left_over(name, left) or nearest.unlike(args, "num_classes", classes):
        return Identified(None, advice=advice)
    training = _heads_for_training(name)
    aux = [key for key in inside if key.startswith(training)] if training else []
    fit = Fit(
        architecture=Architecture("torchvision", name, {"num_classes": classes, **args}),
        classes=classes,
        keys={file.keys[known.prefix + key]: key for key in inside if key not in aux},
        aside=(
            *file.aside,
            *(file.keys[known.prefix + key] for key in aux),
            *(file.keys[key] for key in beside),
        ),
        why=f"{name} was asked for" if wanted else "",
        pipeline=RECIPE,
    )
    return Identified(fit, notes=(_NOTE, *nearest.averaged(known.prefix)))


def _heads_for_training(name: str) -> tuple[str, ...]:
    [found] = [other for other in unsupported.known() if other.name == name]
    return tuple(f"{path}." for path in found.aux)
