"""What becomes of a batch whose worker was lost: nothing is lost with it, and only the input at fault is refused.

Rows F-01 to F-06 of the fault model and its rules of retry and quarantine, over a fake runner on a real event loop.
"""

import asyncio
import random

import pytest

from flambeau.errors import RequestError
from flambeau.runners.base import RunnerState
from flambeau.serving.batch_sizes import BatchSizes
from tests.support.batch_bench import LONG, Bench, Loss, count_answered, on_loop, settle

BLAME: dict[Loss, str] = {"crashed": "model_crashed", "hung": "model_timeout", "out_of_memory": "out_of_memory"}


def lose_once(bench: Bench, how: Loss, *, times: int = 1) -> None:
    """Let the runner lose its next worker, and answer after that."""
    left = [how] * times
    bench.runner.fate = lambda batch: left.pop() if left else None


def lose_with(bench: Bench, poison: bytes, how: Loss) -> None:
    """Let the runner lose every worker that has the poison."""
    bench.runner.fate = lambda batch: how if poison in batch else None


@pytest.mark.parametrize("how", ["killed", "crashed", "hung", "out_of_memory"])
def test_a_lost_batch_is_run_again_one_by_one_in_order_and_before_newer_ones_f01(how: Loss) -> None:
    async def lose() -> None:
        bench = Bench(size=3)
        first = await bench.asked(b"a", b"b", b"c")
        newer = await bench.asked(b"d", b"e")
        lose_once(bench, how)
        bench.runner.gate.set()
        assert await first == [b"<a>", b"<b>", b"<c>"]
        assert await newer == [b"<d>", b"<e>"]
        assert bench.runner.batches == [[b"a", b"b", b"c"], [b"a"], [b"b"], [b"c"], [b"d", b"e"]]
        assert bench.runner.alone == [False, True, True, True, False]
        assert bench.count("retries_total") == 3
        assert bench.count("batches_closed_total", reason="suspect") == 3

    asyncio.run(lose())


@on_loop
async def test_suspects_run_one_at_a_time_while_newer_ones_use_the_other_slots() -> None:
    bench = Bench(size=2, slots=2)
    bench.batcher.sizes = BatchSizes(2, least=2)  # two slots would share a request of two
    lose_once(bench, "killed")
    first, newer = await bench.asked(b"a", b"b"), await bench.asked(b"c", b"d")
    later = await bench.asked(b"e", b"f")
    bench.runner.gate.set()
    assert await first == [b"<a>", b"<b>"]
    assert await newer == [b"<c>", b"<d>"]
    assert await later == [b"<e>", b"<f>"]
    await bench.batcher.close()
    suspects = [batch for batch, alone in zip(bench.runner.batches, bench.runner.alone, strict=True) if alone]
    assert suspects in ([[b"a"], [b"b"]], [[b"c"], [b"d"]])


@on_loop
async def test_two_suspects_are_never_under_way_together() -> None:
    bench = Bench(size=4, slots=4)
    lose_once(bench, "killed")
    bench.runner.gate.set()
    task = await bench.asked(b"a", b"b", b"c", b"d", seconds=LONG)
    bench.runner.gate.clear()
    await settle()
    assert bench.runner.running <= 1
    bench.runner.gate.set()
    assert await task == [b"<a>", b"<b>", b"<c>", b"<d>"]


@pytest.mark.parametrize(("how", "code"), [each for each in BLAME.items() if each[0] != "hung"])
def test_an_input_that_was_alone_is_guilty_and_is_not_tried_again_f05(how: Loss, code: str) -> None:
    async def lose() -> None:
        bench = Bench()
        bench.runner.gate.set()
        lose_with(bench, b"poison", how)
        assert await bench.ask(b"poison") == [code]
        assert bench.runner.batches == [[b"poison"]]
        assert await bench.ask(b"fine", b"poison") == [b"<fine>", "poison_input"]
        assert await bench.ask(b"poison") == ["poison_input"]
        assert bench.runner.batches == [[b"poison"], [b"fine"]]
        assert bench.count("rejections_total", code="poison_input") == 2
        assert bench.count("queue_items") == bench.count("queue_bytes") == 0
        await bench.batcher.close()

    asyncio.run(lose())


@pytest.mark.parametrize("place", range(8))
@pytest.mark.parametrize(("how", "code"), BLAME.items())
def test_one_poison_among_eight_costs_two_workers_and_nobody_else_f05(place: int, how: Loss, code: str) -> None:
    async def lose() -> None:
        bench = Bench(size=8)
        lose_with(bench, b"poison", how)
        bench.runner.gate.set()
        data = [b"poison" if index == place else b"%d" % index for index in range(8)]
        expected = [code if each == b"poison" else b"<" + each + b">" for each in data]
        assert await bench.ask(*data) == expected
        # one that hangs is ended early, once, while others wait behind it: the last of eight keeps nobody waiting
        hurried = how == "hung" and place < 7
        assert sum(b"poison" in batch for batch in bench.runner.batches) == 2 + hurried
        assert bench.runner.hasty.count(True) == (7 + hurried if how == "hung" else 0)

    asyncio.run(lose())


@on_loop
async def test_a_kill_from_outside_is_nobodys_guilt_up_to_eight_times_f01() -> None:
    bench = Bench()
    bench.runner.gate.set()
    lose_once(bench, "killed", times=7)
    assert await bench.ask(b"a") == [b"<a>"]
    assert bench.runner.batches == [[b"a"]] * 8
    lose_once(bench, "killed", times=8)
    assert await bench.ask(b"b") == ["model_crashed"]
    assert await bench.ask(b"b") == [b"<b>"], "it is not held for poison"


@on_loop
async def test_a_worker_that_was_killed_between_two_crashes_clears_nobody_f05() -> None:
    bench = Bench(size=2)
    bench.runner.gate.set()
    fates: list[Loss] = ["crashed", "killed", "crashed"]
    bench.runner.fate = lambda batch: fates.pop() if b"poison" in batch and fates else None
    assert await bench.ask(b"poison", b"fine") == ["model_crashed", b"<fine>"]
    assert bench.runner.batches == [[b"poison", b"fine"], [b"poison"], [b"poison"], [b"fine"]]


@on_loop
async def test_the_deadline_of_a_suspect_is_kept_and_it_is_not_computed_after_it_f14() -> None:
    bench = Bench(size=2)
    lose_once(bench, "killed")
    task = await bench.asked(b"a", b"b", seconds=0.2)
    bench.runner.free = -1  # so that none is free when the worker is lost
    bench.runner.gate.set()
    assert await task == ["deadline_exceeded"] * 2
    assert bench.count("queue_items") == bench.count("queue_bytes") == 0
    await settle()
    bench.runner.free = 1
    bench.batcher.dispatch()
    assert await bench.ask(b"c") == [b"<c>"]
    assert bench.runner.batches == [[b"a", b"b"], [b"c"]]


@on_loop
async def test_an_input_that_hangs_beyond_its_deadline_is_remembered_all_the_same_f03() -> None:
    """Else whoever sends it again and again would cost a worker each time."""
    bench = Bench()
    lose_with(bench, b"poison", "hung")
    for _ in range(2):
        bench.runner.gate.clear()
        assert await bench.ask(b"poison", seconds=0.01) == ["deadline_exceeded"]
        bench.runner.gate.set()
        await bench.batcher.close()
    assert await bench.ask(b"poison") == ["poison_input"]


@on_loop
async def test_one_hang_alone_does_not_convict_a3() -> None:
    bench = Bench()
    bench.runner.gate.set()
    lose_once(bench, "hung")
    assert await bench.ask(b"innocent") == ["model_timeout"]
    assert await bench.ask(b"innocent") == [b"<innocent>"]
    lose_with(bench, b"poison", "hung")
    assert [await bench.ask(b"poison") for _ in range(3)] == [["model_timeout"], ["model_timeout"], ["poison_input"]]
    assert bench.runner.batches == [[b"innocent"]] * 2 + [[b"poison"]] * 2


@on_loop
async def test_innocent_suspects_do_not_wait_for_those_that_hang_a2() -> None:
    """Those that hang again are ended early, and have their full time, alone, after all the others."""
    bench = Bench(size=6)
    hostile = {b"h1", b"h2", b"h3"}
    bench.runner.fate = lambda batch: "hung" if hostile & set(batch) else None
    bench.runner.gate.set()
    answers = await bench.ask(b"h1", b"h2", b"h3", b"a", b"b", b"c")
    assert answers == ["model_timeout"] * 3 + [b"<a>", b"<b>", b"<c>"]
    assert bench.runner.batches[1:] == [[each] for each in (b"h1", b"h2", b"h3", b"a", b"b", b"c", b"h1", b"h2", b"h3")]
    assert bench.runner.hasty[1:] == [True] * 6 + [False] * 3


@on_loop
async def test_suspects_that_hang_leave_the_only_slot_to_the_others_half_of_the_time_a2() -> None:
    """Four suspects that take 0.2 s each, and others that take no time and come all the while."""
    bench = Bench(size=4)
    lose_once(bench, "hung")
    suspects = await bench.asked(b"s1", b"s2", b"s3", b"s4")
    turns: list[bytes] = []

    async def compute() -> None:
        [data, *_] = bench.runner.batches[-1]
        turns.append(data[:1])
        await asyncio.sleep(0.2 if data.startswith(b"s") else 0.01)

    async def ask_on() -> None:
        while not suspects.done():
            await bench.ask(b"other")

    bench.runner.before = compute
    others = [asyncio.create_task(ask_on()) for _ in range(6)]
    bench.runner.gate.set()
    assert await suspects == [b"<s1>", b"<s2>", b"<s3>", b"<s4>"]
    await asyncio.gather(*others)
    between = b"".join(turns).split(b"s")[1:-1]
    assert len(between) == 3
    assert all(len(each) >= 3 for each in between), turns


@on_loop
async def test_a_caller_who_goes_takes_its_suspects_along() -> None:
    bench = Bench(size=2)
    lose_once(bench, "killed")
    gone, stays = await bench.asked(b"busy"), await bench.asked(b"stays")
    finish = asyncio.Event()
    bench.runner.before = finish.wait
    bench.runner.gate.set()
    await settle()
    assert bench.runner.batches == [[b"busy"], [b"busy"]]
    gone.cancel()
    lose_once(bench, "killed")
    finish.set()
    assert await stays == [b"<stays>"]
    assert bench.runner.batches == [[b"busy"], [b"busy"], [b"stays"]]


@on_loop
async def test_a_model_that_has_failed_refuses_what_waits_f26() -> None:
    bench = Bench(size=2)
    lose_once(bench, "killed")
    suspects, waiting = await bench.asked(b"a", b"b"), await bench.asked(b"c")
    bench.runner.before = settle
    bench.runner.current = RunnerState.FAILED
    bench.batcher.dispatch()
    assert await waiting == ["model_unavailable"]
    bench.runner.gate.set()
    assert await suspects == ["model_unavailable"] * 2
    assert bench.count("queue_items") == bench.count("queue_bytes") == 0
    assert await bench.ask(b"d") == ["model_unavailable"]
    await bench.batcher.close()
    bench.runner.current = RunnerState.READY
    assert await bench.ask(b"e") == [b"<e>"]


@on_loop
async def test_suspects_count_as_waiting() -> None:
    bench = Bench(size=3, items=4)
    lose_once(bench, "killed")
    task = await bench.asked(b"aa", b"bb", b"cc")
    bench.runner.free = -1
    bench.runner.gate.set()
    await settle()
    assert bench.count("queue_items") == 3
    assert bench.count("queue_bytes") == 6
    with pytest.raises(RequestError, match="3 items are waiting"):
        await bench.ask(b"d", b"e")
    bench.runner.free = 1
    bench.batcher.dispatch()
    assert await task == [b"<aa>", b"<bb>", b"<cc>"]


@pytest.mark.parametrize("seed", range(10))
def test_any_mixture_of_losses_gives_every_input_exactly_one_outcome(seed: int) -> None:
    """F-01 to F-06, F-14 together: kills, crashes, hangs, poison, deadlines and callers who go."""
    asyncio.run(_mixture(random.Random(seed)))


async def _mixture(chance: random.Random) -> None:
    bench = Bench(slots=3, size=4, items=60, byte_limit=400, delay=chance.choice((0.0, 0.001)))
    poison_losses: dict[bytes, int] = {}

    async def compute() -> None:
        for _ in range(chance.randrange(30)):
            await asyncio.sleep(0)

    def fate(batch: list[bytes]) -> Loss | None:
        if faulty := [data for data in batch if b"poison" in data]:
            for data in faulty:
                poison_losses[data] = poison_losses.get(data, 0) + 1
            return chance.choice(("crashed", "hung", "out_of_memory"))
        return "killed" if chance.random() < 0.1 else None

    bench.runner.before, bench.runner.fate = compute, fate
    requests: dict[asyncio.Task[list[bytes | str]], list[bytes]] = {}
    for number in range(250):
        data = [
            b"%d.%d%s" % (number, part, b"poison" if chance.random() < 0.04 else b"")
            for part in range(chance.choice((1, 1, 1, 2, 4)))
        ]
        seconds = chance.choice((LONG, LONG, LONG, LONG, 0.0, 0.0005))
        requests[asyncio.create_task(bench.ask(*data, seconds=seconds))] = data
        for _ in range(chance.randrange(12)):
            await asyncio.sleep(0)
        if chance.random() < 0.1:
            chance.choice(list(requests)).cancel()

    def may_be(sent: bytes, found: bytes | str) -> bool:
        right = {*BLAME.values()} if b"poison" in sent else {b"<" + sent + b">"}
        return found in {*right, "deadline_exceeded"}

    answered = await count_answered(requests, may_be)
    await bench.batcher.close()
    assert answered > 100
    assert all(losses <= 3 for losses in poison_losses.values())
    assert bench.count("queue_items") == bench.count("queue_bytes") == 0
    assert bench.runner.free == 3
    bench.runner.before, bench.runner.fate = settle, lambda batch: None
    assert await bench.ask(b"last") == [b"<last>"]
