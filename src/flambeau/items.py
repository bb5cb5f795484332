"""One unit of work: what came in, what is asked about it, and the tensors on its way. It knows no answer.

These structs are the wire: they travel between processes as they are.
"""

from typing import Any, Literal

import msgspec
import numpy.typing as npt

Tensors = dict[str, npt.NDArray[Any]]
"""Named arrays. Axis 0 of each is the row; all arrays of one `Tensors` have the same number of rows."""

PipelineKind = Literal["image", "tensor", "python"]
"""What a model takes: image files, numbers as JSON, or whatever its own code makes of it."""


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output: its name, numpy dtype and the shape of one row. The row axis itself is left out."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Payload(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One item as it came in, not yet looked into: the bytes of a file, the JSON text of one value, a whole JSON
    document that its replica is to look at, or, within one process only, the value itself.

    Between two processes the number of the bytes stands in their place, and they come behind: `runners.wire`.
    """

    kind: Literal["file", "json", "document", "value"]
    data: Any

    @property
    def size(self) -> int:
        """Bytes; a value that never was bytes has none."""
        return 0 if self.kind == "value" else len(self.data)


class Options(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a client may ask about its answer.

    `top_k`: how many classes to rank, best first. `threshold`: the probability below which nothing counts as
    recognised, and no label as present; `None` takes the model's. `probabilities`: whether a classification is to
    carry the whole vector.
    """

    top_k: int = 1
    threshold: float | None = None
    probabilities: bool = False


class Item(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One unit of work for a replica."""

    payload: Payload
    options: Options
