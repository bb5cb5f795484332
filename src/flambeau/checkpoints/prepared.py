"""The constants by which inputs were prepared in training, as far as a checkpoint keeps them beside the weights.

Example: `{"state_dict": ..., "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}`, or `x_mean` and `x_std`, or the
`mean_` and `scale_` of a scaler. The network was trained on inputs from which the one was taken, and that were divided
by the other. Nothing in its weights shows that.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flambeau.checkpoints.pickle_stack import Foreign, Tensor
from flambeau.checkpoints.report import ScanBudget, plain

Constants = dict[str, dict[str, tuple[float, ...] | None]]
"""By the keys that lead to them, joined by dots ("" is the file itself): the names of pairs such as `mean` and `std`,
with their numbers, or `None` for those of a tensor or an array."""

_PAIRS = (
    ("mean", ("std", "stdev", "stddev", "scale", "sigma", "var")), ("means", ("stds", "scales")),
    ("mu", ("sigma", "std")), ("center", ("scale",)), ("offset", ("scale",)), ("shift", ("scale",)),
    ("min", ("max",)), ("mins", ("maxs",)),
)  # fmt: skip
_BOUNDS = ("min", "mins")
"""Names that also mean the ends of a search: they count only of several numbers."""
_DEEPEST = 3
_MOST = 500
_LONGEST = 10_000
_NEAR = 1e-3


def constants(value: Any, budget: ScanBudget) -> Constants:
    """The constants in what a file holds. Those of weights themselves, which belong to a network, are left out."""
    found: Constants = {}
    waiting: list[tuple[tuple[str, ...], Any]] = [((), value)]
    while waiting:
        where, members = waiting.pop()
        budget.charge_for(members)
        named = {key: each for key, each in list(members.items())[:_MOST] if type(key) is str}
        if any("." in key and isinstance(each, Tensor) for key, each in named.items()):
            continue
        if pairs := _pairs(named, budget):
            found[".".join(where)] = pairs
        if len(where) < _DEEPEST:
            waiting += [((*where, plain(key)), each) for key, each in named.items() if isinstance(each, dict)]
    return found


def beside(found: Constants, weights: Sequence[str]) -> dict[str, tuple[float, ...] | None]:
    """The constants by their whole names, without those that lie among the weights at `weights`."""
    where = ".".join(weights)
    return {
        f"{key}.{name}" if key else name: numbers
        for key, pairs in found.items()
        if key != where
        for name, numbers in pairs.items()
    }


def question(names: Mapping[str, tuple[float, ...] | None], mean: Sequence[float], std: Sequence[float]) -> str:
    """What to ask if images are to be normalised by `mean` and `std`, and the file has others; empty if it has not."""
    channels = len(mean)
    for (name, numbers), (partner, spread) in _of_images(names):
        if numbers is None or spread is None or not all(map(math.isfinite, (*numbers, *spread))) or 0 in spread:
            return (
                f"the file has {name} and {partner} beside the weights: say --mean and --std, as images were normalised"
            )
        if not {len(numbers), len(spread)} <= {1, channels}:
            continue
        scale = 255.0 if max(numbers) > 1 else 1.0
        theirs = [[every[place % len(every)] / scale for place in range(channels)] for every in (numbers, spread)]
        pairs = zip((*mean, *std), (*theirs[0], *theirs[1]), strict=True)
        if all(math.isclose(ours, their, abs_tol=_NEAR) for ours, their in pairs):
            return ""
        return (
            f"the file has {name} and {partner} beside the weights: say {_options(*theirs)} if images were normalised "
            f"by them, else {_options(mean, std)}, which Flambeau would take"
        )
    return ""


def _options(mean: Sequence[float], std: Sequence[float]) -> str:
    return " and ".join(
        f"--{option} {','.join(f'{each:g}' for each in every)}" for option, every in (("mean", mean), ("std", std))
    )


_NamedConstant = tuple[str, tuple[float, ...] | None]


def _of_images(names: Mapping[str, tuple[float, ...] | None]) -> Iterator[tuple[_NamedConstant, _NamedConstant]]:
    """The pairs that may be the mean and the deviation of colours."""
    lowered = {name.lower(): name for name in names}
    for name in names:
        if re.search(r"(^|[._])means?(_|$)", name.lower()):
            for partner in _partners(name):
                if partner in lowered:
                    yield (name, names[name]), (lowered[partner], names[lowered[partner]])


def _pairs(named: Mapping[str, Any], budget: ScanBudget) -> dict[str, tuple[float, ...] | None]:
    lowered = {key.lower(): key for key in named}
    found: dict[str, tuple[float, ...] | None] = {}
    for key in named:
        for partner in _partners(key.lower()):
            both = [key, lowered.get(partner, "")]
            if both[1] and all(_is_numbers(named[each], budget, several=_is_bound(key)) for each in both):
                found |= {plain(each): _numbers(named[each]) for each in both}
    return found


def _partners(key: str) -> list[str]:
    """The names that would stand beside this one: of `x_mean` `x_std` and others."""
    lower = key.lower()
    return [
        re.sub(rf"(^|[._]){first}(?=_|$)", rf"\g<1>{second}", lower)
        for first, seconds in _PAIRS
        if re.search(rf"(^|[._]){first}(_|$)", lower)
        for second in seconds
    ]


def _is_bound(key: str) -> bool:
    return any(re.search(rf"(^|_){each}(_|$)", key.lower()) for each in _BOUNDS)


def _is_numbers(value: Any, budget: ScanBudget, *, several: bool) -> bool:
    if isinstance(value, Tensor):
        return not several or bool(value.info.shape)
    if isinstance(value, Foreign):
        return value.name.startswith("numpy")
    if type(value) in (int, float):
        return not several
    if not isinstance(value, list | tuple) or not 0 < len(value) <= _LONGEST:
        return False
    budget.charge_for(value)
    return all(type(each) in (int, float) for each in value)


def _numbers(value: Any) -> tuple[float, ...] | None:
    if isinstance(value, Tensor | Foreign):
        return None
    return tuple(map(float, value)) if isinstance(value, list | tuple) else (float(value),)
