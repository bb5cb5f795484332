"""From a network's numbers to those of the answer: softmax, sigmoid, the exponential, or nothing.

All compute in float32. The sigmoid and the softmax are those of PyTorch to 1e-6; neither overflows.
"""

from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

Activated = npt.NDArray[np.float32]


class Activation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What makes the network's numbers into those of the answer, and who applies it.

    `function` is what stands between logits and the answer. `by`: `network` when the graph ends in it, so that its
    outputs are the answer's numbers already; `flambeau` when the pipeline has to apply it. `logarithm`: the network
    gives logarithms of probabilities (LogSoftmax), and the pipeline takes the exponential. `known` is how it is known:
    the user said so, the graph's last operation shows it, the architecture is a known one, or it is assumed.
    """

    function: Literal["softmax", "sigmoid", "none"]
    by: Literal["network", "flambeau"] = "flambeau"
    logarithm: bool = False
    known: Literal["said", "graph", "architecture", "assumed"] = "assumed"

    def __str__(self) -> str:
        """Which it is, by whom, and how that is known: "softmax, applied by Flambeau (assumed)"."""
        known = {
            "said": "as you said",
            "graph": "its last operation shows it",
            "architecture": "as of every network of its kind",
            "assumed": "assumed",
        }[self.known]
        if self.function == "none":
            return f"none ({known})"
        form = ", as its logarithm" if self.logarithm else ""
        return f"{self.function}, applied by {'the network' if self.by == 'network' else 'Flambeau'}{form} ({known})"


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
