"""Whether an engine gives the same answers as eager PyTorch, measured on the probe samples, at build and at load."""

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import UNSET, UnsetType

from flambeau.items import Tensors

TOLERANCE = 1e-3
"""The largest relative difference that counts as agreement. float32 convolutions that sum in another order differ by
1e-6 to 1e-5 here; wrong padding, a missing layer or half precision differs by more than 1e-2."""

_NOTHING = 1e-6
"""Outputs below this count as zero: they are rounding errors."""


INT8_TOLERANCE = 5e-2
"""The same for a quantised graph and its own recorded answers. Its integer arithmetic is exact everywhere; the
floating-point steps in between may round to the next of 256 levels on another processor."""

_FEW_OUTPUTS = 16
"""Up to this many outputs may be different quantities, such as a price and a share of 1. More are of one kind."""

_ROUNDING = 1e-9  # an output smaller than this fraction of the largest is ignored
_ALLOWED = 10  # times the tolerance, for an output by its own scale: it may be the difference of larger numbers


class Agreement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How well an engine reproduced eager PyTorch.

    `difference` is the largest |engine - eager| of any sample, relative to the largest |eager| of all samples; or a
    tenth of that ratio for a single output by its own scale, if that is more.
    `same_top_class` is true if every sample's largest output is at the same index.

    Of a detector, `boxes` counts the boxes that both found, `difference` is the largest of their scores', and
    `same_top_class` is true if no box is without its like. `unlike` names what differs of the same boxes, such as
    masks.

    Of a segmenter, `pixels` is the share of pixels that have the same class.
    """

    samples: int
    difference: float
    same_top_class: bool
    tolerance: float = TOLERANCE
    boxes: int | UnsetType = UNSET
    pixels: float | UnsetType = UNSET
    unlike: str | UnsetType = UNSET

    @property
    def holds(self) -> bool:
        """Whether the engine may serve."""
        return self.same_top_class and self.difference <= self.tolerance

    def __str__(self) -> str:
        if self.boxes is not UNSET:
            others = "" if self.same_top_class else ", and others are NOT found again"
            if self.unlike is not UNSET:
                others = f", but their {self.unlike} or others are NOT"
            return (
                f"{self.boxes} boxes on {self.samples} pictures are the same{others}; "
                f"their scores are {self.difference:.1e} apart at most (tolerance {self.tolerance:.0e})"
            )
        if self.pixels is not UNSET:
            return (
                f"{self.pixels:.2%} of the pixels have the same class on {self.samples} pictures; its numbers are "
                f"{self.difference:.1e} apart at most (tolerance {self.tolerance:.0e})"
            )
        return (
            f"{self.difference:.1e} apart at most on {self.samples} samples (tolerance {self.tolerance:.0e}), "
            f"top class {'the same' if self.same_top_class else 'NOT the same'}"
        )


Compare = Callable[[Tensors, Tensors], Agreement]
"""Measures how well outputs (the second) agree with the network's own (the first)."""


def measure(
    eager: npt.NDArray[Any],
    engine: npt.NDArray[Any],
    *,
    classes: bool,
    tolerance: float = TOLERANCE,
    each: bool = False,
) -> Agreement:
    """Compare `engine` with `eager`, both of shape (samples, ...). Without `classes` the top class is not compared.

    `each`: if there are only a few outputs, each is also compared by its own scale. So an error in an output of small
    numbers cannot hide beside an output of large numbers. For example, eager gives a price of 1000 and a share of 0.5,
    and the engine a share of 0.6. By the common scale they differ by 0.1 / 1000 = 1e-4, which passes. By the share's
    own scale they differ by 0.1 / 0.5 = 0.2, of which a tenth, 0.02, does not pass.
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
    """The largest difference of an output relative to its own largest number; 0 if that would be meaningless.

    It is for a single sample, because any output is close to 0 now and then. An output whose numbers all lie on the
    float32 grid of the largest one came from subtracting it, like 1 - p beside p: a few steps of that grid are allowed.
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
