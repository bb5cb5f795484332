"""Several labels at once: each class has a score of its own, and those at the threshold or above are named."""

from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np
import numpy.typing as npt

from flambeau.answers import agreement, packed_array
from flambeau.answers.base import Asked, Expected, Label, Schema, Scored, foreign, named, ranking, record


class MultiLabel(msgspec.Struct, frozen=True, array_like=True, tag=str.lower):
    """The answer of a network that gives each class its own score.

    `top` is ranked, best first: every class at the threshold or above, and as many below it as were asked for; never
    empty. `vector` are the scores of all classes, float32, in the order of the model's outputs.
    """

    PARTS: ClassVar[tuple[str, ...]] = ("labels", "min_score")

    top: Annotated[tuple[Scored, ...], msgspec.Meta(min_length=1)]
    threshold: float
    vector: bytes

    def __post_init__(self) -> None:
        packed_array.check(self.vector, packed_array.SINGLE)

    @property
    def labels(self) -> tuple[Scored, ...]:
        """The classes at the threshold or above, best first."""
        return tuple(each for each in self.top if each.probability >= self.threshold)

    @property
    def scores(self) -> list[float]:
        """The scores of all classes, in the order of the model's outputs."""
        found: list[float] = self.array.tolist()
        return found

    @property
    def array(self) -> npt.NDArray[np.float32]:
        """The same as an array, shape (classes,)."""
        return packed_array.unpacked(self.vector, packed_array.SINGLE)

    @property
    def nonfinite(self) -> int:
        return packed_array.count_nonfinite(self.array)

    @property
    def size(self) -> int:
        return len(self.vector)

    def body(self, asked: Asked) -> dict[str, Any]:
        body: dict[str, Any] = {
            "labels": [{"label": each.label.name, "score": each.probability} for each in self.labels],
            "scores": self.scores,
        }
        if asked.top_k:
            body["predictions"] = [each.body() for each in self.top[: asked.top_k]]
        return body

    def row(self, *, top_k: int | None, probabilities: bool) -> dict[str, Any]:
        return {"labels": [each.label.name for each in self.labels], "scores": self.scores}

    def returned(self) -> "MultiLabel":
        return self

    def differs(self, expected: Expected) -> str | None:
        """A class as near to the threshold as two engines may be apart counts for either side."""
        if odd := foreign(expected, self.PARTS, kind="a list of labels"):
            return odd
        if expected.labels is not None:
            apart = {each.label.name: abs(each.probability - self.threshold) for each in self.top}
            found, wanted = {each.label.name for each in self.labels}, set(expected.labels)
            if any(apart.get(name, 1.0) > agreement.TOLERANCE for name in found ^ wanted):
                return f"labels are {sorted(found)} where {sorted(wanted)} are expected"
        least = expected.min_score
        weakest = min((each for each in self.labels), key=lambda each: each.probability, default=None)
        if least is not None and weakest is not None and weakest.probability < least:
            return f"the score of {weakest.label.name} is {weakest.probability:.3f} where {least:g} is the least"
        return None

    def readable(self) -> Expected:
        return Expected(labels=tuple(each.label.name for each in self.labels))

    @staticmethod
    def schemas(classes: int, labels: tuple[Label, ...] | None, score: Schema) -> tuple[Schema, ...]:
        """The schema of its body, which is the same for every part."""
        _, name = named(labels)
        present: Schema = {
            "type": "array",
            "items": record({"label": name, "score": score}),
            "description": "The classes whose score is the threshold or above it, best first.",
        }
        vector: Schema = {
            "type": "array", "items": score, "minItems": classes, "maxItems": classes,
            "description": "The score of every class, in the order of the model's outputs.",
        }  # fmt: skip
        return (record({"labels": present, "scores": vector}, optional={"predictions": ranking(labels, score)}),)
