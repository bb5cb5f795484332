"""From a network's numbers to those of the answer: softmax, sigmoid, the exponential, or nothing.

All compute in float32. The sigmoid and the softmax are those of PyTorch to 1e-6; neither overflows.
"""

import numpy as np
import numpy.typing as npt

from flambeau.bundle import Activation

Row = npt.NDArray[np.float32]


def applied(row: npt.NDArray[np.generic], activation: Activation) -> Row:
    """What an activation makes of one row, of any shape. What the network has applied is not applied again."""
    numbers = row.astype(np.float32)
    if activation.logarithm:
        with np.errstate(over="ignore"):
            exponential: Row = np.exp(numbers)
        return exponential
    if activation.by == "network" or activation.function == "none":
        return numbers
    return softmax(numbers) if activation.function == "softmax" else sigmoid(numbers)


def softmax(logits: npt.NDArray[np.floating]) -> Row:
    """Probabilities of one row of logits, shape (classes,), summing to 1. Shifted by the maximum against overflow.

    Where a logit is NaN or positively infinite there are no probabilities: all are NaN.
    """
    with np.errstate(invalid="ignore"):
        shifted = np.exp(logits.astype(np.float32) - logits.max())
    result: Row = shifted / shifted.sum()
    return result


def sigmoid(logits: npt.NDArray[np.floating]) -> Row:
    """1 / (1 + exp(-x)) of each number. The exponential is of -|x|, which is at most 1. NaN stays NaN."""
    numbers = logits.astype(np.float32)
    small = np.exp(-np.abs(numbers))
    one = np.float32(1)
    result = np.where(numbers >= 0, one, small) / (one + small)
    return result.astype(np.float32, copy=False)
