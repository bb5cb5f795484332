"""Does an engine give the same answers as eager PyTorch? Measured on the probe samples, at build and again at load."""

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

TOLERANCE = 1e-3
"""Largest relative difference that counts as agreement. float32 convolutions summed in another order differ by 1e-6
to 1e-5 here; a wrong padding, a lost layer or half precision differs by more than 1e-2."""

_NOTHING = 1e-6
"""Outputs below this are taken for zero: there rounding is all there is."""


INT8_TOLERANCE = 5e-2
"""The same for a quantised graph and its own recorded answers. Its arithmetic is exact wherever it runs; what is left
in floating point between may round to the next of 256 levels on another processor."""


class Agreement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How well an engine reproduced eager PyTorch.

    `difference` is the largest |engine - eager| of any sample, relative to the largest |eager| of all samples.
    `same_top_class` is true when every sample's largest output stands at the same place.
    """

    samples: int
    difference: float
    same_top_class: bool
    tolerance: float = TOLERANCE

    @property
    def holds(self) -> bool:
        """Whether the engine may serve."""
        return self.same_top_class and self.difference <= self.tolerance

    def __str__(self) -> str:
        return (
            f"{self.difference:.1e} apart at most on {self.samples} samples (tolerance {self.tolerance:.0e}), "
            f"top class {'the same' if self.same_top_class else 'NOT the same'}"
        )


def measure(
    eager: npt.NDArray[Any], engine: npt.NDArray[Any], *, classes: bool, tolerance: float = TOLERANCE
) -> Agreement:
    """Hold `engine` against `eager`, both of shape (samples, ...). Without `classes` the top class is not asked for."""
    samples = len(eager)
    if eager.shape != engine.shape or not np.isfinite(engine).all():
        most = float(np.finfo(np.float64).max)
        return Agreement(samples=samples, difference=most, same_top_class=False, tolerance=tolerance)
    expected = eager.reshape(samples, -1).astype(np.float64)
    actual = engine.reshape(samples, -1).astype(np.float64)
    difference = np.abs(expected - actual).max() / max(np.abs(expected).max(), _NOTHING)
    same = not classes or bool((expected.argmax(axis=1) == actual.argmax(axis=1)).all())
    return Agreement(samples=samples, difference=float(difference), same_top_class=same, tolerance=tolerance)
