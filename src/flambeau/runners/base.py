"""What a runner is, and what it is handed."""

from collections.abc import Sequence
from typing import Protocol

from flambeau.types import Item, Outcome

Batch = Sequence[Item]
"""Items that one replica answers together, at most `max_batch_size` of them."""


class Runner(Protocol):
    """A home of replicas. All methods are called on the loop."""

    slots: int
    """How many batches may be in flight at once."""

    async def start(self) -> None:
        """Return when every replica is warm. Raises `SetupError` when one cannot start."""
        ...

    async def submit(self, batch: Batch) -> list[Outcome]:
        """Answer a batch: one outcome per item, in order. Called while a slot is free."""
        ...

    def healthy(self) -> bool:
        """Whether at least one replica can answer."""
        ...

    async def close(self, timeout: float) -> None:
        """Let running batches finish for at most `timeout` seconds, then let go of the replicas."""
        ...
