"""The network's own outputs, without postprocessing: the answer to a client that sends the network's own inputs."""

from typing import Any

import numpy as np

from flambeau.answers.base import Answer, Asked
from flambeau.items import ArraySpec, Tensors, check_packed, pack, views


class RawOutputs(Answer, frozen=True):
    """Named arrays, a row for each row of the item. `arrays`: their names, dtypes and shapes. `data`: their bytes."""

    KIND = "arrays"

    arrays: tuple[ArraySpec, ...]
    data: bytes

    def __post_init__(self) -> None:
        check_packed(self.arrays, len(self.data))

    @classmethod
    def of(cls, outputs: Tensors) -> "RawOutputs":
        """The answer that holds those arrays."""
        arrays, data = pack(outputs)
        return cls(arrays, bytes(data))

    def tensors(self) -> Tensors:
        return views(self.arrays, self.data)

    @property
    def nonfinite(self) -> int:
        return sum(int(each.size - np.isfinite(each).sum()) for each in self.tensors().values())

    @property
    def size(self) -> int:
        return len(self.data)

    def body(self, asked: Asked) -> dict[str, Any]:
        return {"outputs": {name: each.tolist() for name, each in self.tensors().items()}}

    def returned(self) -> Any:
        return self.tensors()
