"""What looking into one file may cost, whatever it holds (A4).

Steps are counted, and beside them what a step costs by the size of what it touches: `OrderedDict(d)` is one operation
of a pickle, and copies all of `d`. A unit is about a byte copied; a member of a dict is a hundred of them. The whole of
both takes about a second and 200 MB.

It is counted in the process that looks, and not limited in a process of its own: that would take as long to start as
all the rest of a look, and what is limited is our own code, which can count.
"""

from collections.abc import Collection
from typing import Any

from flambeau.checkpoints.report import ScanError

MOST_OPERATIONS = 600_000
"""Of a pickle. A tensor takes some 22 of them, and they take one to two microseconds each."""

_UNITS = 96 * 2**20
_OF_A_MEMBER = 100
_OF_AN_ELEMENT = 64

MOST_TENSORS = 32_768
"""In one mapping. Whoever finds out which network it is looks at each of their names, more than once."""
_LONGEST_NAME = 400
_MOST_OF_NAMES = 2 * 2**20  # characters


def refuse_too_many(names: Collection[str]) -> None:
    """Raise `ScanError` for more tensors, or more text in their names, than any network has."""
    if len(names) > MOST_TENSORS:
        raise ScanError(f"has {len(names):,} tensors, more than the {MOST_TENSORS:,} that a network may have")
    longest, total = max(map(len, names), default=0), sum(map(len, names))
    if longest > _LONGEST_NAME or total > _MOST_OF_NAMES:
        raise ScanError(f"names its tensors by {total:,} characters, one of them by {longest:,}, which no network does")


class ScanBudget:
    """What is left for a file. `operations` are counted by whoever plays them."""

    __slots__ = ("_units", "operations")

    def __init__(self) -> None:
        self.operations = MOST_OPERATIONS
        self._units = _UNITS

    def charge(self, units: int) -> None:
        """Take so many. Raises `ScanError` when none are left."""
        self._units -= units
        if self._units < 0:
            raise ScanError("repeats its parts so often that it would fill the memory of whoever reads it")

    def charge_for(self, value: Any) -> None:
        """Take what one look at each part of `value` costs, or one copy of it."""
        kind = type(value)
        if kind is str or kind is bytes:
            self.charge(len(value))
        elif kind is tuple or kind is list:
            self.charge(_OF_AN_ELEMENT * len(value))
        elif isinstance(value, dict):
            self.charge(_OF_A_MEMBER * len(value))

    def charge_for_each(self, values: Any) -> None:
        """Take what a call with these arguments costs; only a tuple is looked into."""
        if type(values) is tuple:
            self.charge_for(values)
            for value in values:
                self.charge_for(value)
