"""Decide what the numbers of a network that answers for every pixel are.

They are scores of classes, with the activation that makes them probabilities, or a picture, with the numbers that are
black and white.

The class of a pixel is the largest number, whatever the activation; the activation makes the score. Of a network with
one channel it decides the class as well, so that the user is asked where a guess could be wrong. Imports no torch.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flambeau.answers.activation import Activation
from flambeau.builder.activation import Decided
from flambeau.builder.filled import Filled
from flambeau.builder.probing import Probed
from flambeau.bundle.storage import DenseConfig
from flambeau.errors import SourceError
from flambeau.settings.source import OutputActivation, SourceOptions

Levels = tuple[float, float] | None
"""The numbers for black and white; `None` if each picture has its own."""

_PICTURES = "image-to-image"
_NEAR = 1e-4
_BEYOND = 0.25  # how far the numbers of a picture from 0 to 1 may lie outside
_FLAT = 0.1  # numbers that span less than this show nothing of a photograph


def decide(probed: Probed, options: SourceOptions) -> Decided:
    """The task and its activation. Raises `SourceError` when the options contradict the network, or more is needed."""
    task = "semantic-segmentation"
    numbers = probed.numbers.astype(np.float64)
    if options.task == _PICTURES:
        return Decided(_PICTURES, Activation("none", by="network", known="said"), f"task: {_PICTURES}")
    name, classes = probed.filled.name, numbers.shape[1]
    if classes == 1:
        if _are_numbers_of_classes(numbers):
            raise SourceError(
                f"{name} answers with whole numbers from 0 to {numbers.max():g}, one for each pixel, as if it had "
                "chosen the classes itself (ArgMax), and their scores are needed: export it without its last "
                "step, or wrap it in a flambeau.PythonModel"
            )
        activation, how = _of_one(name, numbers, probed.ending.kind, options.activation)
        told = f"its only channel is the score of class 1, and the rest is class 0 ({how})"
        return Decided(task, activation, f"task: {task}; {told}")
    activation, how = _of_several(name, numbers, options.activation, registered=_registered(probed))
    told = f"each pixel gets the class with the largest of its {classes} numbers ({how})"
    return Decided(task, activation, f"task: {task}; {told}")


def picture(filled: Filled, answers: Sequence[npt.NDArray[Any]], ending: str) -> tuple[Levels, str]:
    """The numbers for black and white, and how they are known. `answers`: those to photographs, (1, planes, h, w).

    Raises `SourceError` that asks for `--levels`.
    """
    config = filled.pipeline
    assert isinstance(config, DenseConfig)  # the caller checked
    if (planes := answers[0].shape[1]) not in (1, 3):
        raise SourceError(
            f"{filled.name} answers with {planes} numbers for each pixel, and a picture has 1 or 3: say --task "
            "semantic-segmentation if they are the scores of classes"
        )
    if filled.levels:
        return levels_of(filled.levels), "as you said"
    if ending == "a sigmoid":
        return (0.0, 1.0), "it ends in a sigmoid"
    if ending == "a tanh":
        return (-1.0, 1.0), "it ends in a tanh"
    if planes < len(config.mean):
        return None, "one number for each pixel of a coloured image is taken for a map, not for brightness"
    low, high = (float(np.percentile(np.concatenate([each.ravel() for each in answers]), share)) for share in (1, 99))
    if low >= -_BEYOND and high <= 1 + _BEYOND and high - low > _FLAT:
        return (0.0, 1.0), f"assumed, for its numbers for photographs are between {low:.2g} and {high:.2g}"
    raise SourceError(
        f"the numbers of {filled.name} for photographs are between {low:.3g} and {high:.3g}: say which of them are "
        "black and white with --levels, such as 0,1 or -1,1 or 0,255, or own for each picture's least and largest"
    )


def levels_of(text: str) -> Levels:
    """The value of `--levels`. Raises `SourceError`."""
    if text == "own":
        return None
    try:
        black, white = (float(part) for part in text.split(","))
    except ValueError:
        black, white = 0.0, 0.0
    if not (math.isfinite(black) and math.isfinite(white) and black != white):
        raise SourceError(f"--levels {text} is not two numbers such as 0,255, nor own")
    return black, white


def _registered(probed: Probed) -> bool:
    architecture = probed.filled.architecture
    return architecture is not None and architecture.code is None


def _are_numbers_of_classes(numbers: npt.NDArray[np.float64]) -> bool:
    """Whether they are whole numbers from 0 on, of more than two classes; those of two may be probabilities."""
    return bool(numbers.min() >= 0 and numbers.max() > 1 and (numbers == np.round(numbers)).all())


def _of_one(
    name: str, numbers: npt.NDArray[np.float64], ending: str, said: OutputActivation | None
) -> tuple[Activation, str]:
    within = bool(numbers.min() >= 0 and numbers.max() <= 1)
    if said == "softmax":
        raise SourceError(f"--activation softmax of one channel is always 1: say --activation sigmoid for {name}")
    if ending == "sigmoid":
        if said == "sigmoid":
            raise SourceError(f"--activation sigmoid, but {name} ends in a sigmoid already: leave it out")
        return Activation("sigmoid", by="network", known="graph"), "a probability already, for it ends in a sigmoid"
    if said == "none":
        if not within:
            raise SourceError(f"--activation none, but the numbers of {name} are no probabilities: leave it out")
        return Activation("sigmoid", by="network", known="said"), "a probability already"
    if said is None and within:
        raise SourceError(
            f"all numbers of {name} are between 0 and 1: say --activation none if they are probabilities already, and "
            "--activation sigmoid if that has to be applied"
        )
    return Activation("sigmoid", known="said" if said else "assumed"), "Flambeau applies a sigmoid"


def _of_several(
    name: str, numbers: npt.NDArray[np.float64], said: OutputActivation | None, *, registered: bool
) -> tuple[Activation, str]:
    probabilities = bool(numbers.min() >= 0) and _sums_to_one(numbers)
    logarithms = bool(numbers.max() <= _NEAR) and _sums_to_one(np.exp(numbers))
    within = bool(numbers.min() >= 0 and numbers.max() <= 1)
    if said in ("softmax", "sigmoid") and (probabilities or logarithms):
        raise SourceError(f"--activation {said}, but the numbers of {name} are probabilities already: leave it out")
    if said == "none" and not within:
        raise SourceError(f"--activation none, but the numbers of {name} are no probabilities: leave it out")
    if said == "sigmoid":
        return Activation("sigmoid", known="said"), "a sigmoid makes its score"
    if probabilities or logarithms:
        how = "they are probabilities already" if probabilities else "they are logarithms of probabilities"
        return Activation("softmax", by="network", logarithm=logarithms, known="graph"), how
    if said == "none" or (within and said is None):
        return Activation(
            "sigmoid", by="network", known="said" if said else "graph"
        ), "they are between 0 and 1 already"
    known = "said" if said else "architecture" if registered else "assumed"
    return Activation("softmax", known=known), "a softmax makes its score"  # type: ignore[arg-type]


def _sums_to_one(numbers: npt.NDArray[np.float64]) -> bool:
    return bool((np.abs(numbers.sum(axis=1) - 1) < _NEAR).all())
