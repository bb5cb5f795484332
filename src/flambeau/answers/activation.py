"""Activations, from the network's numbers to those of the answer: softmax, sigmoid, the exponential, l2, or none.

All answer in float32. They agree with PyTorch's to 1e-6; none overflows.
"""

from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

Activated = npt.NDArray[np.float32]


_SHORTEST = 1e-12  # PyTorch's epsilon


class Activation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The function between the network's logits and the numbers of the answer, and who applies it.

    `by`: `network` if the graph ends in `function`, so that its outputs are the answer's numbers already; `flambeau` if
    the pipeline has to apply it. `l2` divides a vector by its Euclidean norm. `logarithm`: the network gives logarithms
    of probabilities (LogSoftmax), and the pipeline takes the exponential. `known` says how it is known: the user said
    so, the graph's last operation shows it, the architecture is a known one, or it is assumed.
    """

    function: Literal["softmax", "sigmoid", "l2", "none"]
    by: Literal["network", "flambeau"] = "flambeau"
    logarithm: bool = False
    known: Literal["said", "graph", "architecture", "assumed"] = "assumed"

    def __str__(self) -> str:
        """The function, who applies it, and how that is known: "softmax, applied by Flambeau (assumed)"."""
        known = {
            "said": "as you said",
            "graph": "its last operation shows it",
            "architecture": "a known architecture",
            "assumed": "assumed",
        }[self.known]
        if self.function == "none":
            return f"none ({known})"
        form = ", as its logarithm" if self.logarithm else ""
        return f"{self.function}, applied by {'the network' if self.by == 'network' else 'Flambeau'}{form} ({known})"


def applied(row: npt.NDArray[np.generic], activation: Activation) -> Activated:
    """Apply an activation to one row, of any shape. One that the network has applied is not applied again."""
    numbers = row.astype(np.float32)
    if activation.logarithm:
        with np.errstate(over="ignore"):
            exponential: Activated = np.exp(numbers)
        return exponential
    if activation.by == "network" or activation.function == "none":
        return numbers
    if activation.function == "l2":
        return unit(numbers)
    return softmax(numbers) if activation.function == "softmax" else sigmoid(numbers)


def unit(vector: npt.NDArray[np.floating]) -> Activated:
    """The vector divided by its Euclidean norm, as `torch.nn.functional.normalize` does. A vector of zeros stays so."""
    numbers = vector.astype(np.float64)
    return (numbers / max(float(np.linalg.norm(numbers)), _SHORTEST)).astype(np.float32)


def softmax(logits: npt.NDArray[np.floating]) -> Activated:
    """Probabilities of one row of logits, shape (classes,), summing to 1. Shifted by the maximum against overflow.

    If a logit is NaN or positive infinity, all probabilities are NaN.
    """
    with np.errstate(invalid="ignore"):
        shifted = np.exp(logits.astype(np.float32) - logits.max())
    result: Activated = shifted / shifted.sum()
    return result


def sigmoid(logits: npt.NDArray[np.floating]) -> Activated:
    """1 / (1 + exp(-x)) of each number, computed from exp(-|x|), which is at most 1. NaN stays NaN."""
    numbers = logits.astype(np.float32)
    small = np.exp(-np.abs(numbers))
    one = np.float32(1)
    result = np.where(numbers >= 0, one, small) / (one + small)
    return result.astype(np.float32, copy=False)
