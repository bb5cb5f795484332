"""Embedding: a vector that stands for an image, and is close to those of similar images."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from flambeau.answers import Answer, Asked, Expected, agreement, packed_array
from flambeau.answers.activation import applied
from flambeau.answers.base import foreign
from flambeau.answers.schemas import Schema, nested, record
from flambeau.items import Item, Tensors, TensorSpec
from flambeau.tasks.base import CellKind, NetworkFacts, Postprocess, Renderer, Task, in_words

NPY = "application/x-npy"
"""The media type in `Accept` that asks for a numpy array instead of JSON."""


class Embedding(Answer, frozen=True):
    """The features of one image. `vector`: the numbers, as float32, in the order of the network's output."""

    KIND = "a vector"
    PARTS: ClassVar[Mapping[str, Any]] = {"embedding": tuple[float, ...]}

    vector: bytes

    def __post_init__(self) -> None:
        packed_array.check(self.vector, packed_array.SINGLE)

    @property
    def embedding(self) -> npt.NDArray[np.float32]:
        """The numbers, shape (dimensions,). The array is read-only: copy it to change it."""
        return packed_array.unpacked(self.vector, packed_array.SINGLE)

    @property
    def nonfinite(self) -> int:
        return packed_array.count_nonfinite(self.embedding)

    @property
    def size(self) -> int:
        return len(self.vector)

    def tensors(self) -> Tensors:
        return {"embedding": self.embedding[None]}

    def body(self, asked: Asked) -> dict[str, Any]:
        return {"embedding": self.embedding.tolist()}

    def row(self, *, top_k: int | None, probabilities: bool) -> dict[str, Any]:
        return {"embedding": self.embedding.tolist()}

    def differs(self, expected: Expected) -> str | None:
        """Compares the vector as a whole: if its largest number is 10, then 0.001 and 0.002 count as the same."""
        if odd := foreign(expected, self):
            return odd
        if "embedding" not in expected:
            return None
        wanted, found = np.array([expected["embedding"]]), self.embedding[None]
        if wanted.shape != found.shape:
            return f"embedding has {found.size} numbers where {wanted.size} are expected"
        measured = agreement.measure(wanted, found, classes=False)
        if measured.holds:
            return None
        return f"embedding is {measured.difference:.1e} apart (tolerance {measured.tolerance:.0e})"


def npy(found: Sequence[Embedding]) -> bytes:
    """The bytes of a .npy file, float32: shape (dimensions,) for one item, (items, dimensions) for several."""
    file = io.BytesIO()
    array = found[0].embedding if len(found) == 1 else np.stack([each.embedding for each in found])
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


class EmbeddingTask(Task):
    """The network's numbers as a vector, after its activation if it has one."""

    name = "embedding"
    title = "Embedding"
    told = (
        f"The vector. With `Accept: {NPY}` it is a numpy array, float32: of shape (dimensions,) for one item, "
        "(items, dimensions) for several; one bad item then fails the request."
    )
    answer = Embedding
    media_types: ClassVar[Mapping[str, Renderer]] = {NPY: npy}
    columns: ClassVar[Mapping[str, CellKind]] = {"embedding": "numbers"}

    def postprocess(self, network: NetworkFacts) -> Postprocess:
        self.row_of(network)
        activation, output = network.activation, network.outputs[0].name

        def answer(outputs: Tensors, item: Item) -> Embedding:
            return Embedding(packed_array.packed(applied(outputs[output][0], activation), packed_array.SINGLE))

        return answer

    def arrays(self, network: NetworkFacts) -> tuple[TensorSpec, ...]:
        return (TensorSpec("embedding", "float32", (self.row_of(network),)),)

    def schemas(self, network: NetworkFacts) -> tuple[Schema, ...]:
        return (record({"embedding": nested((self.row_of(network),), {"type": ["number", "null"]})}),)

    def lead(self, outputs: Sequence[TensorSpec]) -> str:
        count, _ = in_words(outputs)
        return (
            f"Show it a picture, and it gives the vector that stands for it: {count} numbers, "
            "close to those of similar pictures."
        )

    def line(self, row: Mapping[str, Any]) -> tuple[str, bool]:
        numbers = row["embedding"]
        first = ", ".join(f"{number:.4g}" for number in numbers[:4])
        return f"{len(numbers):,} number{'' if len(numbers) == 1 else 's'}: {first}, …", True


TASK = EmbeddingTask()
