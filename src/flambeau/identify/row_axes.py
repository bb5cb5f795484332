"""Which axis of a graph's input has the rows, by the sizes that the graph declares.

It is the first, except for the state of a recurrent network, which has its layers first: (layers, rows, features), and
for the steps beside it where those come before the rows: (steps, rows, features). It opens nothing; what the graph
computes is for the build to try.
"""

import re
from collections.abc import Mapping, Sequence

Size = int | str | None
"""The size of an axis: a number, the graph's word for a free one, or `None` for a free one without a word."""

_ROWS = re.compile(r"(?:\w*_)?batch(?:_?size|_?dim)?", re.IGNORECASE)


def elsewhere(inputs: Mapping[str, Sequence[Size]]) -> dict[str, int]:
    """The axis of the rows for each input in which it is not the first.

    Example: beside `x` of [batch, 5], the rows of `state` are axis 1 if it has the sizes [2, batch, 128], [2, ?, 128]
    or [2, 1, 128]. Of one that has [1, ?, 128] they are the first, because only a word would tell that they are not.
    Those of [steps, batch, 5] are axis 1, for the word says it.
    """
    said = {name: place for name, sizes in inputs.items() if (place := _said(sizes)) is not None}
    firsts = [sizes[said.get(name, 0)] for name, sizes in inputs.items() if sizes]
    if all(isinstance(first, int) and first != 1 for first in firsts):
        return {}  # none has rows at its first axis, so nothing shows what a row is
    found = {name: place for name, place in said.items() if place}
    for name, (first, *later) in ((name, sizes) for name, sizes in inputs.items() if sizes and name not in said):
        if not isinstance(first, int):
            continue
        places = list(enumerate(later, 1))
        fitting = [axis for axis, size in places if isinstance(size, str) and size in firsts]
        if not fitting and first != 1:
            fitting = [axis for axis, size in places if not isinstance(size, int)] or [
                axis for axis, size in places if size == 1
            ]
        if len(fitting) == 1:
            [found[name]] = fitting
    return found


def guessed(inputs: Mapping[str, Sequence[Size]], axes: Mapping[str, int]) -> list[str]:
    """The inputs whose rows were looked for at an axis that is free, though no word says that rows are there."""
    others = {name: [size for each, sizes in inputs.items() if each != name for size in sizes] for name in axes}
    free = {name: size for name, axis in axes.items() if not isinstance(size := inputs[name][axis], int)}
    return [name for name, word in free.items() if word is None or word not in others[name]]


def _said(sizes: Sequence[Size]) -> int | None:
    """The only axis whose word says that it has the rows, such as `batch` or `batch_size`."""
    places = [axis for axis, size in enumerate(sizes) if isinstance(size, str) and _ROWS.fullmatch(size)]
    return places[0] if len(places) == 1 else None
