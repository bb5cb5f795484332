"""A vector that stands for an image: near to those of images that are like it."""

import io
from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np
import numpy.typing as npt

from flambeau.answers import agreement, packed_array
from flambeau.answers.base import Asked, Expected, Schema, foreign, record

NPY = "application/x-npy"
"""What a client says in `Accept` that wants arrays of numpy and no JSON."""


class Embedding(msgspec.Struct, frozen=True, array_like=True, tag=str.lower):
    """The features of one image. `vector` are float32, in the order of the network's output."""

    PARTS: ClassVar[tuple[str, ...]] = ("embedding",)

    vector: bytes

    def __post_init__(self) -> None:
        packed_array.check(self.vector, packed_array.SINGLE)

    @property
    def embedding(self) -> npt.NDArray[np.float32]:
        """The numbers, shape (dimensions,). The array cannot be written to: copy it first."""
        return packed_array.unpacked(self.vector, packed_array.SINGLE)

    @property
    def nonfinite(self) -> int:
        return packed_array.count_nonfinite(self.embedding)

    @property
    def size(self) -> int:
        return len(self.vector)

    def body(self, asked: Asked) -> dict[str, Any]:
        return {"embedding": self.embedding.tolist()}

    def row(self, *, top_k: int | None, probabilities: bool) -> dict[str, Any]:
        return {"embedding": self.embedding.tolist()}

    def returned(self) -> "Embedding":
        return self

    def differs(self, expected: Expected) -> str | None:
        """The vector as a whole is compared: where its largest number is 10, two of 0.001 and 0.002 are alike."""
        if odd := foreign(expected, self.PARTS, kind="a vector"):
            return odd
        if expected.embedding is None:
            return None
        wanted, found = np.array([expected.embedding]), self.embedding[None]
        if wanted.shape != found.shape:
            return f"embedding has {found.size} numbers where {wanted.size} are expected"
        measured = agreement.measure(wanted, found, classes=False)
        if measured.holds:
            return None
        return f"embedding is {measured.difference:.1e} apart (tolerance {measured.tolerance:.0e})"

    def readable(self) -> Expected:
        return Expected()  # nobody reads 512 numbers, and the outputs that are kept beside it are the same

    @staticmethod
    def schemas(dimensions: int) -> tuple[Schema, ...]:
        """The schema of its body."""
        number: Schema = {"type": ["number", "null"]}
        vector = {"type": "array", "items": number, "minItems": dimensions, "maxItems": dimensions}
        return (record({"embedding": vector}),)


def npy(found: Sequence[Embedding], *, alone: bool) -> bytes:
    """The bytes of a .npy file, float32: (dimensions,) for one that was sent alone, else (items, dimensions)."""
    file = io.BytesIO()
    np.save(file, found[0].embedding if alone else np.stack([each.embedding for each in found]), allow_pickle=False)
    return file.getvalue()
