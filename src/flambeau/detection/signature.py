"""Names and shapes of tensors to one number, in which parts of a network can be left out at no cost.

Every tensor has a mark, a 64-bit hash of its name and shape, and a signature is the sum of marks: what lies under a
path is left out by subtracting its sum. Marks find candidates; that a network is filled exactly is seen when it is.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping

COUNTER = "num_batches_tracked"
"""What batch norms count for training only; files from before PyTorch 0.4.1 have none. It never matters."""

_DEPTH = 8  # no architecture has its head deeper than half of this, and a hostile name may have any number of parts
_MASK = 2**64 - 1
Shape = tuple[int, ...]


class Signature:
    """The sums of a mapping of tensor names to shapes, for each dotted path in it that a head could have."""

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self._sums: dict[str, int] = defaultdict(int)
        for name, shape in shapes.items():
            if name.endswith(COUNTER):
                continue
            mark = _mark(name, shape)
            self._sums[""] += mark
            path = ""
            for part in name.split(".", _DEPTH)[:_DEPTH]:
                path = f"{path}.{part}" if path else part
                self._sums[path] += mark

    def without(self, paths: Iterable[str]) -> int:
        """The signature of everything but what lies under `paths`, none of which may lie under another."""
        return (self._sums[""] - sum(self._sums.get(path, 0) for path in paths)) & _MASK


def _mark(name: str, shape: Shape) -> int:
    digest = hashlib.blake2b(f"{name} {','.join(map(str, shape))}".encode(), digest_size=8)
    return int.from_bytes(digest.digest())
