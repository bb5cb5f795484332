"""How far answers to the same rows are apart: to each row alone, in a batch, and in another run. Knows no network."""

import numpy as np

from flambeau.answers import agreement

_FEW_OUTPUTS = 16  # up to this many outputs may be different quantities, each with its own scale
_ROUNDING = 1e-9  # an output whose largest number is below this share of the largest of all is rounding


def largest(alone: np.ndarray, together: np.ndarray) -> float:
    """The largest difference between the answers to rows alone and in a batch, over the quantities in them."""
    return max(apart(*each) for each in _quantities(alone, together))


def _quantities(alone: np.ndarray, together: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The answers as a whole, and output by output where there are few: each may have its own scale.

    One output may be a price, another a share of 1, and a difference in the share would vanish beside the price. An
    output that is tiny beside the others is rounding, and left out. Many outputs are of one kind, and some are near 0
    for every probe, so they are compared only as a whole.
    """
    if alone.shape != together.shape or alone.ndim != 2 or alone.shape[1] > _FEW_OUTPUTS:
        return [(alone, together)]
    sizes = np.abs(alone).max(axis=0)
    kept = sizes > sizes.max() * _ROUNDING
    return [(alone, together), *((alone[:, i], together[:, i]) for i in np.flatnonzero(kept))]


def apart(expected: np.ndarray, found: np.ndarray) -> float:
    """The largest difference between two arrays of one shape, as a share of the largest number that is expected; the
    largest number that there is where the shapes differ or a number is not finite."""
    return agreement.measure(expected, found, classes=False).difference
