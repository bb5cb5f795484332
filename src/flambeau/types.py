"""The value types that travel between rooms. No behaviour beyond what a value can know of itself."""

import enum
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import numpy.typing as npt

from flambeau.answers import Answer, Classification, Embedding, Label, MultiLabel, Plain, Regression, Scored, Value
from flambeau.errors import RequestError

__all__ = [
    "Answer",
    "Classification",
    "Embedding",
    "Item",
    "Label",
    "ModelState",
    "MultiLabel",
    "Options",
    "Outcome",
    "Payload",
    "PipelineKind",
    "Plain",
    "Regression",
    "Scored",
    "Task",
    "TensorSpec",
    "Tensors",
    "Timings",
    "Value",
    "WorkerState",
    "WorkerView",
]  # fmt: skip

Tensors = dict[str, npt.NDArray[Any]]
"""Named arrays. Axis 0 of each is the row; all arrays of one `Tensors` have the same number of rows."""


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output: its name, numpy dtype and the shape of one row. The row axis itself is left out."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Payload:
    """One item as it came in, not yet looked into: the bytes of a file, the JSON text of one value, a whole JSON
    document that its replica is to look at, or, within one process only, the value itself."""

    kind: Literal["file", "json", "document", "value"]
    data: Any

    @property
    def size(self) -> int:
        """Bytes; a value that never was bytes has none."""
        return 0 if self.kind == "value" else len(self.data)


@dataclass(frozen=True, slots=True)
class Options:
    """What a client may ask about its answer.

    `top_k`: how many classes to rank, best first. `threshold`: the probability below which nothing counts as
    recognised, and no label as present; `None` takes the model's. `probabilities`: whether a classification is to
    carry the whole vector.
    """

    top_k: int = 1
    threshold: float | None = None
    probabilities: bool = False


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds an item spent in each stage. `preprocess` and `postprocess` are its own, `inference` is its batch's."""

    queue: float = 0.0
    preprocess: float = 0.0
    inference: float = 0.0
    postprocess: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one item: an answer or the error that it alone met, with its timings."""

    result: Answer | RequestError
    timings: Timings = field(default_factory=Timings)


@dataclass(frozen=True, slots=True)
class Item:
    """One unit of work for a replica."""

    payload: Payload
    options: Options


PipelineKind = Literal["image", "tensor", "python"]
"""What a model takes: image files, numbers as JSON, or whatever its own code makes of it."""

Task = Literal["classification", "multi-label", "regression", "embedding", "tensor", "python"]
"""What a model does for its user, which decides the form of its answer. The first four are over images."""

WorkerState = Literal["starting", "idle", "busy"]


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A replica as an operator sees it. `memory` is the resident bytes of its process, where it has one of its own."""

    state: WorkerState
    memory: int | None = None


class ModelState(enum.StrEnum):
    """Where a model is in its life."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    CLOSED = "closed"
