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

LEAST_COSINE = 0.9999
"""The least cosine of a golden sample's vector with the one that is expected. Of a long vector with few large numbers,
each number may be within the tolerance while the vector as a whole turns."""


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
    def length(self) -> float:
        """Its Euclidean norm."""
        return float(np.linalg.norm(self.embedding.astype(np.float64)))

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
        """Compares the vector as a whole: if its largest number is 10, then 0.001 and 0.002 count as the same.
        Its angle with the expected one is compared as well."""
        if odd := foreign(expected, self):
            return odd
        if "embedding" not in expected:
            return None
        wanted, found = np.array([expected["embedding"]]), self.embedding[None]
        if wanted.shape != found.shape:
            return f"embedding has {found.size} numbers where {wanted.size} are expected"
        return _apart("embedding", wanted, found)


def npy(found: Sequence[Embedding]) -> bytes:
    """The bytes of a .npy file, float32: shape (dimensions,) for one item, (items, dimensions) for several."""
    file = io.BytesIO()
    array = found[0].embedding if len(found) == 1 else np.stack([each.embedding for each in found])
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def cosine(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """The cosine of the angle between two vectors: 1 if they point the same way. Two vectors of zeros do."""
    first, second = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / lengths if lengths else float(not first.any() and not second.any())


def _apart(name: str, expected: npt.NDArray[Any], found: npt.NDArray[Any]) -> str | None:
    """How far apart rows of vectors are, by their largest number and by their angles; `None` if that is near enough."""
    measured = agreement.measure(expected, found, classes=False)
    angle = min(map(cosine, expected, found), default=1.0)
    if measured.holds and angle >= LEAST_COSINE:
        return None
    return (
        f"{name} is {measured.difference:.1e} apart (tolerance {measured.tolerance:.0e}), "
        f"with a cosine of {angle:.6f} (at least {LEAST_COSINE})"
    )


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

    def outputs_apart(self, network: NetworkFacts, expected: Tensors, found: Tensors) -> str | None:
        """As of any task, and vectors must point the same way, too."""
        if told := super().outputs_apart(network, expected, found):
            return told
        return next((told for name, rows in expected.items() if (told := _apart(name, rows, found[name]))), None)

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
