"""How the models of one service share its cores: which of them may begin another batch now. It knows no model.

A model that computes alone runs as many batches as it has replicas. Beside others, each may run what its share of the
cores holds, and at least one batch; more only while cores are left over. So a model that hangs or is flooded takes its
own share and what nobody else wants, and no model waits for another before its first batch.

Example: two cores, batches of one thread. Cats are flooded and run two batches. A request to dogs comes, and its batch
begins at once: three threads, for as long as one batch of cats takes. Then each has one core, until dogs have nothing
left to do.
"""

import asyncio
import functools
import math
from collections.abc import Callable

from flambeau.runners.base import Batch, ReplicaInfo, Runner, RunnerState, Slot
from flambeau.types import Outcome


class CoreShare:
    """The cores of a service, and the models that compute on them. Everything here runs on the loop."""

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self._taken = 0.0  # cores
        self._active = 0  # models that compute
        self._refused: dict[CoreClaim, None] = {}  # in the order in which they asked

    def claim(self, weight: float) -> "CoreClaim":
        """The claim of another model, each of whose batches takes `weight` cores."""
        return CoreClaim(self, weight)

    def _room(self, claim: "CoreClaim") -> float:
        """The cores that a claim may take in all."""
        others = self._active - (claim.batches > 0)
        if not others:
            return math.inf
        return max(self.cores / (others + 1), self.cores - (self._taken - claim.taken))

    def _change(self, claim: "CoreClaim", batches: int, weight: float) -> None:
        self._active += (batches > 0) - (claim.batches > 0)
        taken = batches * weight
        self._taken += taken - claim.taken
        claim.batches, claim.taken = batches, taken

    def _wake(self) -> None:
        """Have those try again that were refused."""
        refused, self._refused = self._refused, {}
        for claim in refused:
            asyncio.get_running_loop().call_soon(claim.wake)


class CoreClaim:
    """What one model takes of the cores."""

    def __init__(self, share: CoreShare, weight: float) -> None:
        self._share = share
        self._weight = weight
        self.batches = 0
        """That run now."""
        self.taken = 0.0
        """Cores that they take."""
        self.wake: Callable[[], None] = lambda: None
        """Called when there may be room again after `may_begin` was false."""

    @property
    def weight(self) -> float:
        """Cores that a batch takes."""
        return self._weight

    @weight.setter
    def weight(self, weight: float) -> None:
        self._weight = weight
        self._share._change(self, self.batches, weight)

    def room(self) -> float:
        """How many batches it may run at a time, beside what other models run now: at least 1, or infinitely many."""
        share = self._share
        if share._active == (self.batches > 0):  # nobody else computes
            return math.inf
        room = share._room(self)
        return room if math.isinf(room) else max(1, math.floor(room / self._weight + 1e-9))

    def may_begin(self) -> bool:
        """Whether it may run another batch. If not, it is woken when another model's batch has ended."""
        if not self.batches or self.batches < self.room():
            return True
        self._share._refused[self] = None
        return False

    def begun(self) -> None:
        """A batch has begun."""
        self._share._change(self, self.batches + 1, self._weight)

    def ended(self) -> None:
        """A batch has ended."""
        share = self._share
        share._change(self, self.batches - 1, self._weight)
        if share._refused:
            share._wake()

    def alone(self) -> bool:
        """Whether it runs one batch, and no other model runs any: it may then use every core."""
        return self.batches == 1 and self._share._active == 1

    def give_up(self) -> None:
        """The model has ended."""
        self._share._refused.pop(self, None)


class SharedRunner:
    """A runner whose slots can only be had within a claim."""

    def __init__(self, runner: Runner, claim: CoreClaim) -> None:
        self._runner = runner
        self._claim = claim

    async def start(self, on_change: Callable[[], None]) -> ReplicaInfo:
        return await self._runner.start(on_change)

    def reserve(self, *, alone: bool = False, behind: bool = False) -> Slot | None:
        if not self._claim.may_begin() or (slot := self._runner.reserve(alone=alone, behind=behind)) is None:
            return None
        self._claim.begun()
        return functools.partial(self._run, slot)

    async def _run(self, slot: Slot, batch: Batch, *, hasty: bool = False) -> list[Outcome]:
        try:
            return await slot(batch, hasty=hasty)
        finally:
            self._claim.ended()

    def slots(self) -> int:
        """Those that there is room for: entries are shared among these, and heavy requests leave one of them."""
        return int(min(self._runner.slots(), self._claim.room()))

    def state(self) -> RunnerState:
        return self._runner.state()

    async def close(self, timeout: float) -> None:
        await self._runner.close(timeout)
