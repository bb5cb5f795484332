"""Classification: an image's class, one of several."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np

from flambeau.answers import Answer, Asked, Expected, PartName, Scored
from flambeau.answers.activation import applied
from flambeau.answers.base import foreign
from flambeau.answers.schemas import RANKED, Schema, named, ranking, record, score_of
from flambeau.errors import BundleError
from flambeau.items import FREE, Item, Tensors, TensorSpec
from flambeau.tasks.base import CellKind, NetworkFacts, Postprocess, Task, in_words

CELLS = ("class_id", "class_name", "class_index", "probability")
"""The columns of one class in a table."""


class Classification(Answer, frozen=True):
    """The answer of an image classifier about one image. `top` is ranked, best first, and never empty.

    `probabilities`: those of all classes, in the order of the model's outputs, if they were asked for.
    """

    KIND = "a class"
    PARTS: ClassVar[Mapping[str, Any]] = {
        "class_index": int,
        "class_id": str,
        "class_name": str,
        "min_probability": Annotated[float, msgspec.Meta(ge=0, le=1)],
    }
    RANKS = True

    top: Annotated[tuple[Scored, ...], msgspec.Meta(min_length=1)]
    threshold: float
    probabilities: list[float] | None = None

    @property
    def recognised(self) -> bool:
        """Whether the best class reaches the threshold."""
        return self.top[0].probability >= self.threshold

    @property
    def reason(self) -> str:
        """The sentence that says why nothing was recognised."""
        return (
            f"nothing was recognised: the top probability {self.top[0].probability:.3f} "
            f"is below the threshold {self.threshold:g}"
        )

    @property
    def nonfinite(self) -> int:
        """All or none: one NaN among the network's numbers makes every probability NaN."""
        return 0 if math.isfinite(self.top[0].probability) else len(self.probabilities or self.top)

    @property
    def size(self) -> int:
        return 9 * len(self.probabilities or ())

    def tensors(self) -> Tensors:
        """The ranked classes, whether the best is recognised, and all probabilities if they were asked for."""
        found: Tensors = {
            "labels": np.array([[each.label.name for each in self.top]], np.object_),
            "scores": np.array([[each.probability for each in self.top]], np.float32),
            "class_index": np.array([[each.index for each in self.top]], np.int64),
            "recognised": np.array([self.recognised]),
        }
        if self.probabilities is not None:
            found["probabilities"] = np.array([self.probabilities], np.float32)
        return found

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

    def differs(self, expected: Expected) -> str | None:
        if odd := foreign(expected, self):
            return odd
        best = self.top[0]
        for name, found in (
            ("class_index", best.index), ("class_id", best.label.id), ("class_name", best.label.name),
        ):  # fmt: skip
            if expected.get(name) not in (None, found):
                return f"{name} is {found!r} where {expected[name]!r} is expected"
        least = expected.get("min_probability")
        if least is not None and not best.probability >= least:  # NaN fails too
            return f"the probability of {best.label.name} is {best.probability:.3f} where {least:g} is the least"
        return None

    def readable(self) -> dict[str, Any]:
        best = self.top[0]
        return {"class_index": best.index, "class_id": best.label.id, "class_name": best.label.name}


class ClassificationTask(Task):
    """The best `top_k` classes. Ties keep the order of the model's outputs."""

    name = "classification"
    title = "Classification"
    told = "The best class: its name for the part `file` or a raw body, its index for the part `image`."
    answer = Classification
    labelled = True
    parameters: ClassVar[Mapping[str, str]] = {
        "top_k": RANKED,
        "threshold": "The lowest probability at which a class counts as recognised. Default: the service's.",
    }
    parts: ClassVar[Mapping[PartName, str]] = {
        "file": "Answered with the class's name.",
        "image": "Answered with the class's index.",
    }
    columns: ClassVar[Mapping[str, CellKind]] = {
        "class_id": "text", "class_name": "text", "class_index": "whole", "probability": "number",
        "recognised": "truth",
    }  # fmt: skip
    ranked = CELLS

    def postprocess(self, network: NetworkFacts) -> Postprocess:
        labels, activation, output = self.classes_of(network), network.activation, network.outputs[0].name
        if network.outputs[0].shape == (1,) and activation.function == "softmax":
            raise BundleError(
                "a softmax over one output is 1.0 for every image: "
                "build it again with --task multi-label (one yes or no) or --task regression (one number)"
            )

        def answer(outputs: Tensors, item: Item) -> Classification:
            options = item.options
            probabilities = applied(outputs[output][0], activation)
            best = np.argsort(-probabilities, kind="stable")[: max(1, options.top_k)].tolist()
            return Classification(
                tuple(Scored(place, labels[place], float(probabilities[place])) for place in best),
                network.threshold if options.threshold is None else options.threshold,
                probabilities.tolist() if options.probabilities else None,
            )

        return answer

    def arrays(self, network: NetworkFacts) -> tuple[TensorSpec, ...]:
        return (
            TensorSpec("probabilities", "float32", (self.row_of(network),)),
            TensorSpec("labels", "str", (FREE,)),
            TensorSpec("scores", "float32", (FREE,)),
            TensorSpec("class_index", "int64", (FREE,)),
            TensorSpec("recognised", "bool", ()),
        )

    def schemas(self, network: NetworkFacts) -> tuple[Schema, ...]:
        """Two: for the part `file` and for the part `image`."""
        labels, score, classes = network.labels, score_of(network.activation), self.row_of(network)
        identity, name = named(labels)
        abstention: dict[str, Schema] = {
            "reason": {"type": "string", "description": "Why nothing was recognised. The class is then null."},
            "predictions": ranking(labels, score),
        }
        vector: Schema = {"type": "array", "items": score, "minItems": classes, "maxItems": classes}
        index: Schema = {"type": ["integer", "null"], "minimum": 0, "maximum": classes - 1}
        return (
            record({"class_id": _or_null(identity), "class_name": _or_null(name)}, optional=abstention, title="ByName"),
            record({"class_index": index, "probabilities": vector}, optional=abstention, title="ByIndex"),
        )

    def lead(self, outputs: Sequence[TensorSpec]) -> str:
        count, one = in_words(outputs)
        return f"Show it a picture, and it says what it sees.\nIts answer is one of {count} class{'' if one else 'es'}."

    def line(self, row: Mapping[str, Any]) -> tuple[str, bool]:
        ranked = row.get("predictions") or [row]
        text = ", ".join(f"{each['class_name']} {each['probability']:.3f}" for each in ranked)
        return (text, True) if row["recognised"] else (f"not recognised ({text})", False)


TASK = ClassificationTask()


def _cells(scored: Scored) -> dict[str, Any]:
    return dict(zip(CELLS, (scored.label.id, scored.label.name, scored.index, scored.probability), strict=True))


def _or_null(schema: Schema) -> Schema:
    return schema | {"type": [schema["type"], "null"]}
