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

_FEW_OUTPUTS = 16
"""So many may be quantities of their own, a price beside a share of 1. More are of one kind."""

_ROUNDING = 1e-9  # an output that is smaller than so many times another is none
_ALLOWED = 10  # times the tolerance, for an output by its own scale: it may be a difference of larger numbers


class Agreement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How well an engine reproduced eager PyTorch.

    `difference` is the largest |engine - eager| of any sample, relative to the largest |eager| of all samples; or a
    tenth of the same of one output by its own scale, where that is more.
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
    eager: npt.NDArray[Any],
    engine: npt.NDArray[Any],
    *,
    classes: bool,
    tolerance: float = TOLERANCE,
    each: bool = False,
) -> Agreement:
    """Hold `engine` against `eager`, both of shape (samples, ...). Without `classes` the top class is not asked for.

    `each`: a few outputs are held each by its own scale too, so that one of small numbers cannot hide beside one of
    large numbers.
    """
    samples = len(eager)
    if eager.shape != engine.shape or not np.isfinite(engine).all():
        most = float(np.finfo(np.float64).max)
        return Agreement(samples=samples, difference=most, same_top_class=False, tolerance=tolerance)
    expected = eager.reshape(samples, -1).astype(np.float64)
    actual = engine.reshape(samples, -1).astype(np.float64)
    difference = np.abs(expected - actual).max() / max(np.abs(expected).max(), _NOTHING)
    if each and eager.dtype.kind == "f" and eager.ndim == 2:
        difference = max(difference, _by_own_scales(expected, actual) / _ALLOWED)
    same = not classes or bool((expected.argmax(axis=1) == actual.argmax(axis=1)).all())
    return Agreement(samples=samples, difference=float(difference), same_top_class=same, tolerance=tolerance)


def _by_own_scales(expected: npt.NDArray[Any], actual: npt.NDArray[Any]) -> float:
    """The largest difference of an output relative to its own largest number; 0 where that would tell nothing.

    Of one sample it would not: any output is near 0 now and then. Numbers that lie on the grid of the largest one are
    what it was subtracted from, as 1 - p beside p: they are known to a few steps of that grid.
    """
    if len(expected) < 2 or not 1 < expected.shape[1] <= _FEW_OUTPUTS:
        return 0.0
    sizes = np.abs(expected).max(axis=0)
    largest = sizes.max()
    step = float(np.spacing(np.float32(largest))) / 2
    rough = (expected % step == 0).all(axis=0) if step > 0 else np.zeros(len(sizes), bool)
    apart = np.maximum(np.abs(expected - actual).max(axis=0) - np.where(rough, 8 * step, 0), 0)
    kept = (sizes > largest * _ROUNDING) & (sizes > _NOTHING)
    return float((apart[kept] / sizes[kept]).max(initial=0))
