"""How models share cores, and when they get more or fewer workers: the decisions, without a process or a clock."""

import asyncio
import math
from pathlib import Path
from typing import cast

import pytest

from flambeau.serving.core_share import CoreClaim, CoreShare, SharedRunner
from flambeau.serving.elasticity import PERIOD, Demand, ReplicaPolicy
from flambeau.serving.memory import MemoryBudget
from flambeau.serving.model import Model
from flambeau.serving.versions import Version
from flambeau.settings.source import SourceOptions
from flambeau.sources.declarations import Declaration
from tests.support.batch_bench import FakeRunner, on_loop, settle

BUSY = Demand(replicas=1, warm=1, busy=1, waiting=5, room=2)
IDLE = Demand(replicas=1, warm=1, busy=0, waiting=0, room=2)


def begin(claim: CoreClaim, most: int) -> int:
    """Begin as many batches as may be, up to `most`."""
    for begun in range(most):
        if not claim.may_begin():
            return begun
        claim.begun()
    return most


@on_loop
async def test_a_model_alone_has_every_slot_and_beside_another_its_share() -> None:
    share = CoreShare(4)
    cats, dogs = share.claim(1), share.claim(1)
    assert begin(cats, 8) == 8  # as many as its user asked for
    assert cats.room() == math.inf
    assert begin(dogs, 8) == 2  # half of the cores at once, though cats have taken all
    for _ in range(6):
        cats.ended()
    assert (cats.batches, cats.room(), dogs.room()) == (2, 2, 2)
    cats.ended()
    assert begin(dogs, 8) == 1  # what cats do not want
    assert begin(cats, 8) == 1  # and have again, as their share
    assert not dogs.may_begin()


@on_loop
async def test_many_models_run_one_batch_each_and_one_that_hangs_holds_up_none() -> None:
    share = CoreShare(2)
    claims = [share.claim(2) for _ in range(5)]
    assert [begin(claim, 3) for claim in claims] == [3, 1, 1, 1, 1]
    hangs, *others = claims
    for claim in others:
        claim.ended()
        assert begin(claim, 3) == 1
    assert hangs.batches == 3


@on_loop
async def test_those_refused_are_woken_when_another_batch_ends() -> None:
    share = CoreShare(2)
    cats, dogs = share.claim(1), share.claim(1)
    woken: list[str] = []
    cats.wake, dogs.wake = lambda: woken.append("cats"), lambda: woken.append("dogs")
    assert (begin(cats, 1), begin(dogs, 2), cats.may_begin()) == (1, 1, False)
    dogs.ended()
    await settle()
    assert sorted(woken) == ["cats", "dogs"]
    dogs.begun()
    assert not cats.may_begin()
    cats.give_up()
    dogs.ended()
    await settle()
    assert len(woken) == 2


@on_loop
async def test_a_batch_may_use_every_core_if_no_other_model_computes() -> None:
    share = CoreShare(2)
    cats, dogs = share.claim(1), share.claim(1)
    cats.begun()
    assert cats.alone()
    dogs.begun()
    assert not cats.alone()
    dogs.ended()
    cats.begun()
    assert not cats.alone()


@on_loop
async def test_a_share_that_changes_while_batches_run_is_counted_anew() -> None:
    share = CoreShare(2)
    cats, dogs = share.claim(2), share.claim(1)
    cats.begun()
    dogs.begun()
    assert dogs.room() == 1
    cats.weight = 0.5
    assert dogs.room() == 1
    cats.ended()
    assert dogs.room() == math.inf


@on_loop
async def test_a_runner_gives_its_slots_within_the_share_and_counts_them_whatever_happens() -> None:
    share = CoreShare(2)
    fakes = FakeRunner(2), FakeRunner(2)
    cats, dogs = (SharedRunner(each, share.claim(1)) for each in fakes)
    assert cats.slots() == 2
    first, second = cats.reserve(), dogs.reserve()
    assert first is not None
    assert second is not None
    assert (cats.slots(), cats.reserve(), fakes[0].free) == (1, None, 1)
    fakes[0].gate.set()
    fakes[0].fate = lambda batch: "crashed"
    with pytest.raises(Exception, match="crashed"):
        await first([])
    assert dogs.slots() == 2
    assert cats.reserve() is not None
    running = asyncio.ensure_future(second([]))
    await settle()
    running.cancel()
    await settle()
    assert cats.slots() == 2


def look(policy: ReplicaPolicy, demand: Demand, *, seconds: float, now: float = 0.0, most: int = 8) -> list[int]:
    """What the policy wants, look by look."""
    looks = range(round(seconds / PERIOD))
    return [policy.wanted(now + PERIOD * (each + 1), demand, least=1, most=most) for each in looks]


def test_a_model_that_lacks_workers_most_of_the_time_gets_twice_as_many() -> None:
    assert look(ReplicaPolicy(), BUSY, seconds=0.3) == [1, 1, 2]
    assert look(ReplicaPolicy(), Demand(4, 4, 4, waiting=1, room=8), seconds=0.3)[-1] == 8
    assert look(ReplicaPolicy(), Demand(4, 4, 4, waiting=1, room=8), seconds=0.3, most=6)[-1] == 6
    assert set(look(ReplicaPolicy(), BUSY, seconds=9, most=1)) == {1}


@pytest.mark.parametrize(
    "demand",
    [
        Demand(1, 1, 1, waiting=0, room=2),  # nothing waits
        Demand(1, 1, 0, waiting=5, room=2),  # on purpose: a batch is to fill
        Demand(1, 1, 1, waiting=5, room=1),  # other models have the cores
        Demand(2, 1, 1, waiting=5, room=2),  # a worker is starting already
        Demand(1, 0, 0, waiting=5, room=2),  # or being replaced
    ],
)
def test_what_is_no_lack_of_workers_adds_none(demand: Demand) -> None:
    assert set(look(ReplicaPolicy(), demand, seconds=5)) == {demand.replicas}


def test_a_short_burst_adds_no_worker() -> None:
    policy = ReplicaPolicy()
    for second in range(20):
        assert look(policy, BUSY, seconds=0.2, now=second) == [1, 1]
        assert set(look(policy, IDLE, seconds=0.8, now=second + 0.2)) == {1}


def test_workers_that_were_not_needed_for_half_a_minute_end() -> None:
    policy = ReplicaPolicy()
    wanted = look(policy, Demand(8, 8, busy=3, waiting=0, room=8), seconds=31)
    assert (set(wanted[:299]), set(wanted[299:302])) == ({8}, {3, 8})
    assert wanted.count(3) == 1  # and then it is asked again with fewer
    busy = Demand(2, 2, busy=2, waiting=0, room=8)
    policy = ReplicaPolicy()
    for turn in range(5):  # once in a while both are needed
        assert set(look(policy, Demand(2, 2, busy=1, waiting=0, room=8), seconds=20, now=20 * turn)) == {2}
        assert policy.wanted(20 * turn + 19.99, busy, least=1, most=8) == 2


def test_the_only_model_keeps_all_of_its_workers() -> None:
    policy = ReplicaPolicy()
    assert policy.wanted(0, IDLE, least=4, most=4) == 4
    all_idle = Demand(4, 4, 0, 0, room=math.inf)
    assert {policy.wanted(PERIOD * each, all_idle, least=4, most=4) for each in range(1000)} == {4}


def test_a_worker_that_cannot_be_started_is_tried_again_after_a_while() -> None:
    policy = ReplicaPolicy()
    assert look(policy, BUSY, seconds=0.3)[-1] == 2
    assert set(look(policy, Demand(2, 1, 1, 5, room=2), seconds=3, now=1)) == {2}  # it starts
    failed = Demand(1, 1, 1, waiting=5, room=2, given_up=1)
    assert set(look(policy, failed, seconds=29, now=4)) == {1}
    assert 2 in look(policy, failed, seconds=2, now=33)


def test_fewer_may_be_wanted_at_any_time() -> None:
    assert ReplicaPolicy().wanted(0, Demand(4, 4, 4, 9, room=9), least=1, most=2) == 2


@pytest.mark.parametrize(("limit", "found"), [(1000, (4, 400)), (350, (3, 300)), (250, (2, 200)), (10, (2, 200))])
def test_a_model_grows_as_far_as_memory_reaches(limit: int, found: tuple[int, int], tmp_path: Path) -> None:
    class Grown:
        replicas = 2

    model = cast("Model", Grown())
    entry = Version(Declaration("cats", "1", SourceOptions(source=str(tmp_path))), model=model, cost=200)
    assert MemoryBudget(limit).growth(entry, model, 4, [entry]) == found
