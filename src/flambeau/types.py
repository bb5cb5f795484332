"""The values that pass between rooms, and unchanged between processes. They have no behaviour beyond their own data."""

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal

import msgspec

from flambeau.answers import Answer, Label, Plain, RawOutputs, Scored, Value
from flambeau.errors import RequestError
from flambeau.items import ArraySpec, Item, Options, Payload, PipelineKind, Tensors, TensorSpec
from flambeau.tasks.classification import Classification
from flambeau.tasks.embedding import Embedding
from flambeau.tasks.image_to_image import ImageToImage
from flambeau.tasks.instance_segmentation import InstanceSegmentation
from flambeau.tasks.keypoint_detection import KeypointDetection
from flambeau.tasks.multi_label import MultiLabel
from flambeau.tasks.object_detection import ObjectDetection
from flambeau.tasks.regression import Regression
from flambeau.tasks.semantic_segmentation import SemanticSegmentation

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # Python's own has no default before 3.13

    Result = TypeVar("Result", default=Answer | RequestError, covariant=True)
else:
    from typing import TypeVar

    Result = TypeVar("Result")

__all__ = [
    "Answer",
    "ArraySpec",
    "Classification",
    "Embedding",
    "ImageToImage",
    "InstanceSegmentation",
    "Item",
    "KeypointDetection",
    "Label",
    "ModelState",
    "MultiLabel",
    "ObjectDetection",
    "Options",
    "Outcome",
    "Payload",
    "PipelineKind",
    "Plain",
    "RawOutputs",
    "Regression",
    "Scored",
    "SemanticSegmentation",
    "TensorSpec",
    "Tensors",
    "Timings",
    "Value",
    "WorkerState",
    "WorkerView",
    "on_nodes",
]  # fmt: skip


class Timings(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Seconds an item spent in each stage. `preprocess` and `postprocess` are its own, `inference` is its batch's."""

    queue: float = 0.0
    preprocess: float = 0.0
    inference: float = 0.0
    postprocess: float = 0.0


class Outcome(msgspec.Struct, Generic[Result], frozen=True, array_like=True):
    """The outcome of one item: its answer or its own error, with its timings."""

    result: Result
    timings: Timings = Timings()


WorkerState = Literal["starting", "idle", "busy"]


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A replica as an operator sees it. `memory` is the resident bytes of its process, if it has one of its own.

    `node` is where it runs, if that may be another machine.
    """

    state: WorkerState
    memory: int | None = None
    node: str | None = None


def on_nodes(workers: Iterable[WorkerView]) -> dict[str, int]:
    """How many of the replicas are on which node, for those of a cluster."""
    counts: dict[str, int] = {}
    for worker in workers:
        if worker.node is not None:
            counts[worker.node] = counts.get(worker.node, 0) + 1
    return counts


class ModelState(enum.StrEnum):
    """The stages in a model's life."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    UNLOADING = "unloading"
    UNLOADED = "unloaded"
    CLOSED = "closed"
