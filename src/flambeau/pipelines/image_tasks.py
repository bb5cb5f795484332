"""From one row of a network's output to the answer of its task, for the tasks over images. One class for each."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from flambeau.answers import (
    Answer,
    Classification,
    Embedding,
    Label,
    MultiLabel,
    Regression,
    Scored,
    agreement,
    packed_array,
)
from flambeau.bundle.storage import Activation
from flambeau.errors import BundleError
from flambeau.types import Options, Task, TensorSpec

# From a network's numbers to those of the answer: softmax, sigmoid, the exponential, or nothing.
#
# All compute in float32. The sigmoid and the softmax are those of PyTorch to 1e-6; neither overflows.

Activated = npt.NDArray[np.float32]


def applied(row: npt.NDArray[np.generic], activation: Activation) -> Activated:
    """What an activation makes of one row, of any shape. What the network has applied is not applied again."""
    numbers = row.astype(np.float32)
    if activation.logarithm:
        with np.errstate(over="ignore"):
            exponential: Activated = np.exp(numbers)
        return exponential
    if activation.by == "network" or activation.function == "none":
        return numbers
    return softmax(numbers) if activation.function == "softmax" else sigmoid(numbers)


def softmax(logits: npt.NDArray[np.floating]) -> Activated:
    """Probabilities of one row of logits, shape (classes,), summing to 1. Shifted by the maximum against overflow.

    Where a logit is NaN or positively infinite there are no probabilities: all are NaN.
    """
    with np.errstate(invalid="ignore"):
        shifted = np.exp(logits.astype(np.float32) - logits.max())
    result: Activated = shifted / shifted.sum()
    return result


def sigmoid(logits: npt.NDArray[np.floating]) -> Activated:
    """1 / (1 + exp(-x)) of each number. The exponential is of -|x|, which is at most 1. NaN stays NaN."""
    numbers = logits.astype(np.float32)
    small = np.exp(-np.abs(numbers))
    one = np.float32(1)
    result = np.where(numbers >= 0, one, small) / (one + small)
    return result.astype(np.float32, copy=False)


OutputRow = npt.NDArray[np.generic]


class TaskAnswer(Protocol):
    """How a task makes its answer. Stateless."""

    def __call__(self, row: OutputRow, options: Options) -> Answer:
        """The answer to one item, of one row of the output without the row axis."""
        ...


def answer_of(
    task: Task,
    *,
    activation: Activation,
    output: TensorSpec,
    labels: Sequence[Label] | None,
    threshold: float,
) -> TaskAnswer:
    """How that task makes its answer. Without `labels` the classes are named by their numbers.

    Raises `BundleError` for a task that such an output cannot be of.
    """
    if task == "regression":
        return _Regression(activation)
    if len(output.shape) != 1:
        raise BundleError(
            f"the task {task} needs one row of numbers, and {output.name} has shape {list(output.shape)}: "
            "build it again with --task regression"
        )
    if task == "embedding":
        return _Embedding(activation)
    [count] = output.shape
    classes = labels or [Label(str(index), str(index)) for index in range(count)]
    if len(classes) < count:
        raise BundleError(f"there are {len(classes)} labels for {count} classes: build it again with all of them")
    if task == "multi-label":
        return _MultiLabel(activation, classes, threshold)
    if count == 1 and activation.function == "softmax":
        raise BundleError(
            "a softmax over one output is 1.0 whatever the image is: "
            "build it again with --task multi-label (one yes or no) or --task regression (one number)"
        )
    return _Classification(activation, classes, threshold)


class _Scores:
    """What the two tasks with classes share."""

    def __init__(self, activation: Activation, labels: Sequence[Label], threshold: float) -> None:
        self._activation = activation
        self._labels = labels
        self._threshold = threshold

    def _threshold_of(self, options: Options) -> float:
        return self._threshold if options.threshold is None else options.threshold

    def _scored(self, scores: npt.NDArray[np.float32], places: Sequence[int]) -> tuple[Scored, ...]:
        return tuple(Scored(int(place), self._labels[place], float(scores[place])) for place in places)


class _Classification(_Scores):
    """The best `top_k` classes; ties keep the order of the model's outputs."""

    def __call__(self, row: OutputRow, options: Options) -> Classification:
        probabilities = applied(row, self._activation)
        best = np.argsort(-probabilities, kind="stable")[: max(1, options.top_k)]
        return Classification(
            top=self._scored(probabilities, best.tolist()),
            threshold=self._threshold_of(options),
            probabilities=probabilities.tolist() if options.probabilities else None,
        )


class _MultiLabel(_Scores):
    """Every class at the threshold or above, and the best `top_k` anyway; ties keep the order of the outputs."""

    def __call__(self, row: OutputRow, options: Options) -> MultiLabel:
        scores = applied(row, self._activation)
        threshold = self._threshold_of(options)
        order = np.argsort(-scores, kind="stable")
        # as a float64, as the answer compares them; those just below go along, for golden samples look at them
        present = int(np.count_nonzero(scores.astype(np.float64) >= threshold - agreement.TOLERANCE))
        best = order[: max(1, present, options.top_k)]
        return MultiLabel(
            self._scored(scores, best.tolist()), threshold, packed_array.packed(scores, packed_array.SINGLE)
        )


class _Regression:
    """The numbers as they are."""

    def __init__(self, activation: Activation) -> None:
        self._activation = activation

    def __call__(self, row: OutputRow, options: Options) -> Regression:
        plain = self._activation.function == "none" and not self._activation.logarithm
        found = row if plain else applied(row, self._activation)
        return Regression(tuple(row.shape), packed_array.packed(found, packed_array.DOUBLE))


class _Embedding:
    """The vector as it is."""

    def __init__(self, activation: Activation) -> None:
        self._activation = activation

    def __call__(self, row: OutputRow, options: Options) -> Embedding:
        return Embedding(packed_array.packed(applied(row, self._activation), packed_array.SINGLE))
