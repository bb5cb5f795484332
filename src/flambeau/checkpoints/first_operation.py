"""Whether a network begins by scaling its input with constants, as one does that normalises its images itself.

The input is followed from operation to operation, as `last_operation` follows the output. Example:
`Sub(image, mean) -> Div(std) -> Conv` scales it; `Conv -> Add` does not, and `Add(image, Conv(image))` neither. This
module knows the names of operations only, no library and no values.
"""

from collections.abc import Collection, Iterable

from flambeau.checkpoints.last_operation import MOVING, SCALING, Node

_PASSING = MOVING | frozenset((
    "Resize", "Upsample", "Pad", "flip", "constant_pad_nd", "reflection_pad2d", "replication_pad2d",
    "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d", "_upsample_bicubic2d_aa",
    "upsample_nearest2d",
))  # fmt: skip
"""What may become of an image before it is normalised."""


def scales(nodes: Iterable[Node], given: Collection[str]) -> bool:
    """Whether one of the first operations on the values `given` combines them with constants. The nodes must be in the
    order of computation."""
    untouched, computed = set(given), set(given)
    for node in nodes:
        inputs = [name for name in node.inputs if name in computed]
        if not inputs:
            continue
        if all(name in untouched for name in inputs):
            if node.operation in SCALING and len(inputs) == 1:
                return True
            if node.operation in _PASSING:
                untouched.update(node.outputs)
        computed.update(node.outputs)
    return False
