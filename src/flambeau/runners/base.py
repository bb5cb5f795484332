"""The interface of a runner: the batches it takes, the slots it gives, and the error for a lost worker."""

import enum
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Literal, Protocol

import msgspec

from flambeau.errors import FlambeauError
from flambeau.types import Item, Outcome, WorkerView


class Work(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An item of a batch, and the seconds until its deadline."""

    item: Item
    seconds_left: float


Batch = Sequence[Work]
"""Items that one replica answers together, at most `max_batch_size` of them."""


class Slot(Protocol):
    """Reserved room for one batch at a replica. Call it once."""

    def __call__(self, batch: Batch, *, hasty: bool = False) -> Awaitable[list[Outcome]]:
        """One outcome per item, in order. `hasty`: others wait, so the batch gets less time, if the runner can end it.

        Raises `WorkerLostError` when the replica's process was lost before it answered.
        """
        ...


class BatchCost(msgspec.Struct, frozen=True):
    """Seconds that the engine takes for one item, and for two together, measured while it warmed up."""

    one: Annotated[float, msgspec.Meta(gt=0)]
    two: Annotated[float, msgspec.Meta(gt=0)]


class ReplicaInfo(msgspec.Struct, frozen=True):
    """What replicas report once they are warm. `cost` is `None` if there was nothing to measure."""

    device: str
    cost: BatchCost | None = None


Loss = Literal["killed", "crashed", "hung", "out_of_memory"]

Restart = Literal[Loss, "failed_start"]
"""Why a worker had to be replaced: it was lost, or it did not become warm."""


class WorkerLostError(FlambeauError):
    """The process that had the batch is gone, and the batch has no answer.

    `killed`: by a SIGKILL from outside, which says nothing about the batch. `crashed`: by a signal of its own making or
    by exiting. `hung`: by us, because it gave no answer in time. `out_of_memory`: by the kernel.
    """

    def __init__(self, how: Loss) -> None:
        super().__init__(how)
        self.how = how


class RunnerState(enum.Enum):
    """`RESTARTING`: no replica can answer now, but one is starting. `FAILED`: replicas only crash, or are gone."""

    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"


class ReplicaCounts(msgspec.Struct, frozen=True):
    """How many replicas a runner has or is starting; the warm ones among them; and the busy ones among those.

    `given_up` counts the further ones that could not be started.
    """

    replicas: int
    warm: int
    busy: int
    given_up: int = 0


class Runner(Protocol):
    """The place where replicas live. All methods are called on the loop."""

    async def start(self, on_change: Callable[[], None]) -> ReplicaInfo:
        """Return when every replica is warm. Raises `SetupError` when one cannot start.

        `on_change` is called whenever a slot has become free or the state has changed.
        """
        ...

    def reserve(self, *, alone: bool = False, behind: bool = False) -> Slot | None:
        """A free slot, now reserved, or `None`. `alone`: at a replica that does nothing else meanwhile.

        `behind`: if none is free, the place behind a batch that a replica has in hand will do. Replicas that are far
        have it, so that they need not wait for their next batch.
        """
        ...

    def slots(self) -> int:
        """The number of slots now, free or not."""
        ...

    def state(self) -> RunnerState:
        """Whether a replica can answer."""
        ...

    async def close(self, timeout: float) -> None:
        """Let running batches finish for at most `timeout` seconds, then release the replicas."""
        ...


class ObservedRunner(Runner, Protocol):
    """A runner whose state operators can read, from any thread, and whose replicas may become more and fewer."""

    elastic: bool
    """Whether they may."""

    def scale(self, replicas: int) -> None:
        """Have so many replicas, at least one. Before `start`, that is how many it starts. On the loop, if `elastic`.

        More are started beside those that answer, and get batches when they are warm; one that cannot start is given
        up. Fewer: those at the last indices get no more batches, answer the one that they have, and end.
        """
        ...

    def counts(self) -> ReplicaCounts:
        """How many replicas there are, now."""
        ...

    def workers(self) -> list[WorkerView]:
        """Every replica, each always at the same index, as long as there is none that could not be started."""
        ...

    def memory(self) -> int:
        """The memory of all workers in bytes, with what they share counted once; 0 where they are threads."""
        ...

    def restarts(self) -> Mapping[str, int]:
        """The number of workers replaced so far, for every `Restart`."""
        ...


class ReplicaSpec(msgspec.Struct, frozen=True):
    """How to open a replica: plain values, so that they can be sent to another process.

    `bundle` is the folder's path, `device` is as the user asked, `threads` bounds the engine's own. `max_batch` is the
    usual maximum of items in a batch. `wide_threads`: threads of the engine for a batch that has the machine to itself;
    0 if there is no such mode. `packages`: a folder of packages that go before all others, in this model's workers.
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
    packages: str = ""
