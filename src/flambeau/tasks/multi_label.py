"""Multi-label classification: each class has its own score, and those at or above the threshold are the labels."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np
import numpy.typing as npt

from flambeau.answers import Answer, Asked, Expected, Scored, agreement, packed_array
from flambeau.answers.activation import applied
from flambeau.answers.base import foreign
from flambeau.answers.schemas import RANKED, Schema, named, ranking, record, score_of
from flambeau.items import Item, Tensors, TensorSpec
from flambeau.tasks.base import CellKind, NetworkFacts, Postprocess, Task, in_words


class MultiLabel(Answer, frozen=True):
    """The answer of a network that gives each class its own score.

    `top` is ranked, best first, and never empty: every class at or above the threshold, more if `top_k` asks for them,
    and any just below the threshold. `vector`: the scores of all classes, float32, in the order of the model's outputs.
    """

    KIND = "a list of labels"
    PARTS: ClassVar[Mapping[str, Any]] = {
        "labels": tuple[str, ...],
        "min_score": Annotated[float, msgspec.Meta(ge=0, le=1)],
    }

    top: Annotated[tuple[Scored, ...], msgspec.Meta(min_length=1)]
    threshold: float
    vector: bytes

    def __post_init__(self) -> None:
        packed_array.check(self.vector, packed_array.SINGLE)

    @property
    def labels(self) -> tuple[Scored, ...]:
        """The classes at or above the threshold, best first."""
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

    def tensors(self) -> Tensors:
        """All scores, and which of them reach the threshold, as the answer compares them: in float64."""
        present = self.array.astype(np.float64) >= self.threshold
        return {"scores": self.array[None], "present": present[None]}

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

    def differs(self, expected: Expected) -> str | None:
        """A class within the tolerance of the threshold may be a label or not: two engines may differ by as much."""
        if odd := foreign(expected, self):
            return odd
        if "labels" in expected:
            apart = {each.label.name: abs(each.probability - self.threshold) for each in self.top}
            found, wanted = {each.label.name for each in self.labels}, set(expected["labels"])
            if any(apart.get(name, 1.0) > agreement.TOLERANCE for name in found ^ wanted):
                return f"labels are {sorted(found)} where {sorted(wanted)} are expected"
        least = expected.get("min_score")
        weakest = min((each for each in self.labels), key=lambda each: each.probability, default=None)
        if least is not None and weakest is not None and weakest.probability < least:
            return f"the score of {weakest.label.name} is {weakest.probability:.3f} where {least:g} is the least"
        return None

    def readable(self) -> dict[str, Any]:
        return {"labels": [each.label.name for each in self.labels]}


class MultiLabelTask(Task):
    """Every class at or above the threshold, and the best `top_k` in any case. Ties keep the order of the outputs."""

    name = "multi-label"
    title = "Multi-label classification"
    told = "The classes whose score reaches the threshold, and the scores of all classes."
    answer = MultiLabel
    labelled = True
    usual_threshold = 0.5
    parameters: ClassVar[Mapping[str, str]] = {
        "top_k": RANKED,
        "threshold": "The lowest score at which a class counts as present. Default: the service's.",
    }
    columns: ClassVar[Mapping[str, CellKind]] = {"labels": "texts", "scores": "numbers"}

    def postprocess(self, network: NetworkFacts) -> Postprocess:
        labels, activation, output = self.classes_of(network), network.activation, network.outputs[0].name

        def answer(outputs: Tensors, item: Item) -> MultiLabel:
            options = item.options
            scores = applied(outputs[output][0], activation)
            threshold = network.threshold if options.threshold is None else options.threshold
            order = np.argsort(-scores, kind="stable")
            # In float64, as the answer compares them. Those just below are kept too: golden samples compare them.
            present = int(np.count_nonzero(scores.astype(np.float64) >= threshold - agreement.TOLERANCE))
            best = order[: max(1, present, options.top_k)].tolist()
            ranked = tuple(Scored(place, labels[place], float(scores[place])) for place in best)
            return MultiLabel(ranked, threshold, packed_array.packed(scores, packed_array.SINGLE))

        return answer

    def arrays(self, network: NetworkFacts) -> tuple[TensorSpec, ...]:
        classes = self.row_of(network)
        return (TensorSpec("scores", "float32", (classes,)), TensorSpec("present", "bool", (classes,)))

    def schemas(self, network: NetworkFacts) -> tuple[Schema, ...]:
        labels, score, classes = network.labels, score_of(network.activation), self.row_of(network)
        _, name = named(labels)
        present: Schema = {
            "type": "array",
            "items": record({"label": name, "score": score}),
            "description": "The classes whose score is at or above the threshold, best first.",
        }
        vector: Schema = {
            "type": "array", "items": score, "minItems": classes, "maxItems": classes,
            "description": "The score of every class, in the order of the model's outputs.",
        }  # fmt: skip
        return (record({"labels": present, "scores": vector}, optional={"predictions": ranking(labels, score)}),)

    def lead(self, outputs: Sequence[TensorSpec]) -> str:
        count, one = in_words(outputs)
        which = f"{count} label{'' if one else 's'}"
        return f"Show it a picture, and it says which of {which} it finds: each on its own, none or several."

    def line(self, row: Mapping[str, Any]) -> tuple[str, bool]:
        return (", ".join(row["labels"]), True) if row["labels"] else ("no label", False)


TASK = MultiLabelTask()
