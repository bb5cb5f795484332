"""One of several classes: the answer of a classifier over images."""

import math
from typing import Annotated, Any, ClassVar

import msgspec

from flambeau.answers.base import Asked, Expected, Label, Schema, Scored, foreign, named, ranking, record

CELLS = ("class_id", "class_name", "class_index", "probability")
"""The columns of one class in a table."""


class Classification(msgspec.Struct, frozen=True, array_like=True, tag=str.lower):
    """The answer of an image classifier about one image. `top` is ranked, best first, and never empty.

    `probabilities` are those of all classes, in the order of the model's outputs, where they were asked for.
    """

    PARTS: ClassVar[tuple[str, ...]] = ("class_index", "class_id", "class_name", "min_probability")

    top: Annotated[tuple[Scored, ...], msgspec.Meta(min_length=1)]
    threshold: float
    probabilities: list[float] | None = None

    @property
    def recognised(self) -> bool:
        """Whether the best class reaches the threshold."""
        return self.top[0].probability >= self.threshold

    @property
    def reason(self) -> str:
        """Why nothing was recognised, as a sentence."""
        return (
            f"nothing was recognised: the top probability {self.top[0].probability:.3f} "
            f"is below the threshold {self.threshold:g}"
        )

    @property
    def nonfinite(self) -> int:
        """One NaN among the network's numbers makes all probabilities NaN."""
        return 0 if math.isfinite(self.top[0].probability) else len(self.probabilities or self.top)

    @property
    def size(self) -> int:
        return 9 * len(self.probabilities or ())

    def body(self, asked: Asked) -> dict[str, Any]:
        best = self.top[0]
        body: dict[str, Any]
        if asked.form == "image":
            body = {"class_index": best.index, "probabilities": self.probabilities}
        else:
            body = {"class_id": best.label.id, "class_name": best.label.name}
        if not self.recognised:
            names = [key for key in body if key.startswith("class_")]
            body |= dict.fromkeys(names) | {"reason": self.reason}
        if asked.top_k:
            body["predictions"] = [each.body() for each in self.top]
        return body

    def row(self, *, top_k: int | None, probabilities: bool) -> dict[str, Any]:
        row = _cells(self.top[0]) | {"recognised": self.recognised}
        if top_k:
            row["predictions"] = [_cells(each) for each in self.top]
        if probabilities:
            row["probabilities"] = self.probabilities
        return row

    def returned(self) -> "Classification":
        return self

    def differs(self, expected: Expected) -> str | None:
        if odd := foreign(expected, self.PARTS, kind="a class"):
            return odd
        best = self.top[0]
        for name, found in (
            ("class_index", best.index), ("class_id", best.label.id), ("class_name", best.label.name),
        ):  # fmt: skip
            if getattr(expected, name) not in (None, found):
                return f"{name} is {found!r} where {getattr(expected, name)!r} is expected"
        least = expected.min_probability
        if least is not None and not best.probability >= least:  # NaN is not enough either
            return f"the probability of {best.label.name} is {best.probability:.3f} where {least:g} is the least"
        return None

    def readable(self) -> Expected:
        best = self.top[0]
        return Expected(class_index=best.index, class_id=best.label.id, class_name=best.label.name)

    @staticmethod
    def schemas(classes: int, labels: tuple[Label, ...] | None, score: Schema) -> tuple[Schema, ...]:
        """The schemas of its bodies: for the part `file` and for the part `image`."""
        identity, name = named(labels)
        abstention: dict[str, Schema] = {
            "reason": {"type": "string", "description": "Why nothing was recognised; the class is null then."},
            "predictions": ranking(labels, score),
        }
        vector: Schema = {"type": "array", "items": score, "minItems": classes, "maxItems": classes}
        index: Schema = {"type": ["integer", "null"], "minimum": 0, "maximum": classes - 1}
        return (
            record({"class_id": _or_null(identity), "class_name": _or_null(name)}, optional=abstention, title="ByName"),
            record({"class_index": index, "probabilities": vector}, optional=abstention, title="ByIndex"),
        )


def _cells(scored: Scored) -> dict[str, Any]:
    return dict(zip(CELLS, (scored.label.id, scored.label.name, scored.index, scored.probability), strict=True))


def _or_null(schema: Schema) -> Schema:
    return schema | {"type": [schema["type"], "null"]}
