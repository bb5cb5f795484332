"""What a runner is, what it is handed, and how it says that a worker was lost."""

import enum
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Literal, Protocol

import msgspec

from flambeau.errors import FlambeauError
from flambeau.types import Item, Outcome, WorkerView


class Work(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An item of a batch, and the seconds until nobody waits for its answer any more."""

    item: Item
    seconds_left: float


Batch = Sequence[Work]
"""Items that one replica answers together, at most `max_batch_size` of them."""


class Slot(Protocol):
    """Room for one batch at a replica, reserved: call it once."""

    def __call__(self, batch: Batch, *, hasty: bool = False) -> Awaitable[list[Outcome]]:
        """One outcome per item, in order. `hasty`: others wait, so it is ended early; where that is possible.

        Raises `WorkerLostError` when the replica's process was lost before it answered.
        """
        ...


class BatchCost(msgspec.Struct, frozen=True):
    """Seconds that the engine takes over one item, and over two together, measured while it warmed up."""

    one: Annotated[float, msgspec.Meta(gt=0)]
    two: Annotated[float, msgspec.Meta(gt=0)]


class ReplicaInfo(msgspec.Struct, frozen=True):
    """What replicas say of themselves once they are warm. `cost` is `None` where there was nothing to measure."""

    device: str
    cost: BatchCost | None = None


Loss = Literal["killed", "crashed", "hung", "out_of_memory"]

Restart = Literal[Loss, "failed_start"]
"""Why another worker had to be started: the one before was lost, or did not become warm."""


class WorkerLostError(FlambeauError):
    """The process that had the batch is gone, and the batch has no answer.

    `killed`: by somebody else's SIGKILL, which says nothing about the batch. `crashed`: by a signal of its own making
    or by exiting. `hung`: by us, for it gave no answer in time. `out_of_memory`: by the kernel.
    """

    def __init__(self, how: Loss) -> None:
        super().__init__(how)
        self.how = how


class RunnerState(enum.Enum):
    """`RESTARTING`: no replica can answer now, but one is on its way. `FAILED`: replicas do nothing but die."""

    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"


class Runner(Protocol):
    """A home of replicas. All methods are called on the loop."""

    async def start(self, on_change: Callable[[], None]) -> ReplicaInfo:
        """Return when every replica is warm. Raises `SetupError` when one cannot start.

        `on_change` is called whenever a slot has become free or the state has changed.
        """
        ...

    def reserve(self, *, alone: bool = False) -> Slot | None:
        """Take a free slot, or `None` when none is free. `alone`: at a replica that does nothing else meanwhile."""
        ...

    def slots(self) -> int:
        """How many slots there are now, free or not."""
        ...

    def state(self) -> RunnerState:
        """Whether a replica can answer."""
        ...

    async def close(self, timeout: float) -> None:
        """Let running batches finish for at most `timeout` seconds, then let go of the replicas."""
        ...


class ObservedRunner(Runner, Protocol):
    """A runner that an operator can look at, from any thread."""

    def workers(self) -> list[WorkerView]:
        """Every replica, each always at its place."""
        ...

    def restarts(self) -> Mapping[str, int]:
        """How many workers had to be replaced so far, by every `Restart`."""
        ...


# What every replica of a model is opened with: plain values, so that it can be sent to another process.


class ReplicaSpec(msgspec.Struct, frozen=True):
    """`bundle` is the folder's path, `device` is as the user asked, `threads` bounds the engine's own.

    `max_batch` is the most items that are usually answered together. `wide_threads`: how many the engine may take for a
    batch that is alone on the machine; 0 where that is not offered.
    """

    bundle: str
    name: str
    engine: str
    device: str
    threads: int
    allow_code: bool
    threshold: float | None
    max_image_pixels: int
    max_batch: int = 8
    wide_threads: int = 0
    fast_decode: bool = False
    max_json_depth: int = 32
