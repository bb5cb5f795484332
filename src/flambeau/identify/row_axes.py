"""Which axis of a graph's input has the rows, by the sizes that the graph declares.

It is the first, except for the state of a recurrent network, which has its layers first: (layers, rows, features). It
opens nothing; what the graph computes is for the build to try.
"""

from collections.abc import Mapping, Sequence

Size = int | str | None
"""The size of an axis: a number, the graph's word for a free one, or `None` for a free one without a word."""


def elsewhere(inputs: Mapping[str, Sequence[Size]]) -> dict[str, int]:
    """The axis of the rows for each input in which it is not the first.

    Example: beside `x` of [batch, 5], the rows of `state` are axis 1 if it has the sizes [2, batch, 128], [2, ?, 128]
    or [2, 1, 128]. Of one that has [1, ?, 128] they are the first, because only a word would tell that they are not.
    """
    firsts = [sizes[0] for sizes in inputs.values() if sizes]
    if all(isinstance(first, int) and first != 1 for first in firsts):
        return {}  # none has rows at its first axis, so nothing shows what a row is
    found = {}
    for name, (first, *later) in ((name, sizes) for name, sizes in inputs.items() if sizes):
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
