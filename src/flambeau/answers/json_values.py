"""Compare two JSON values, and say where they differ. Decimal numbers are compared within agreement's tolerance."""

import contextlib
import itertools
import math
from typing import Any

import msgspec

from flambeau.answers import agreement

_ZERO = 1e-6  # numbers closer than this differ by rounding alone


def differs(expected: Any, found: Any, where: str) -> str | None:
    """A sentence about the first place where two JSON values differ, or `None`. `where` names the outermost value."""
    if isinstance(expected, dict) and isinstance(found, dict):
        if odd := sorted(expected.keys() ^ found.keys()):
            return f"{where} {'has' if odd[0] in found else 'lacks'} {odd[0]!r}"
        pairs = [(expected[key], found[key], f"{where}[{key!r}]") for key in expected]
    elif isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            return f"{where} has {len(found)} elements where {len(expected)} are expected"
        pairs = [(*pair, f"{where}[{index}]") for index, pair in enumerate(zip(expected, found, strict=True))]
    elif _same(expected, found):
        return None
    else:
        return f"{where} is {_shown(found)} where {_shown(expected)} is expected"
    return next(filter(None, itertools.starmap(differs, pairs)), None)


def _same(expected: Any, found: Any) -> bool:
    """Decimal numbers within the tolerance. All else must be equal, including whole numbers: counts and names."""
    if {type(expected), type(found)} in ({float}, {float, int}):  # not bool, which is an int to isinstance
        with contextlib.suppress(OverflowError):  # a whole number too large for a float equals none
            return math.isclose(expected, found, rel_tol=agreement.TOLERANCE, abs_tol=_ZERO)
    return type(expected) is type(found) and bool(expected == found)


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else f"{text[:60]}…"
