"""Dynamic batching on a real event loop: slot first, in turns, and in batches that are as large as pays."""

import asyncio
import math

import pytest

from flambeau.runners.base import BatchCost
from flambeau.serving.batch_sizes import BatchSizes, measured_sizes
from flambeau.serving.batcher import LARGEST_BATCH
from flambeau.serving.fair_queue import MOST_BYTES, MOST_ITEMS
from flambeau.types import Item, Options, Payload
from tests.support.batch_bench import LONG, Bench, on_loop, settle


@on_loop
async def test_a_lone_item_goes_at_once() -> None:
    bench = Bench()
    task = await bench.asked(b"a")
    assert bench.runner.batches == [[b"a"]]
    bench.runner.gate.set()
    assert await task == [b"<a>"]
    assert bench.closed() == {"full": 0, "drained": 1, "delay": 0}


@on_loop
async def test_while_the_slot_is_busy_others_gather_and_go_together_in_order() -> None:
    bench = Bench(size=4)
    tasks = [await bench.asked(bytes([letter])) for letter in b"abcdefg"]
    assert bench.runner.batches == [[b"a"]]
    assert bench.count("queue_items") == 6
    assert bench.count("queue_bytes") == 6
    bench.runner.gate.set()
    answers = [await task for task in tasks]
    assert bench.runner.batches == [[b"a"], [b"b", b"c", b"d", b"e"], [b"f", b"g"]]
    assert answers == [[b"<%c>" % letter] for letter in b"abcdefg"]
    assert bench.closed() == {"full": 1, "drained": 2, "delay": 0}
    assert bench.count("batch_size_sum") == 7
    assert bench.count("batch_size_count") == 3
    assert bench.count("queue_items") == bench.count("queue_bytes") == 0


@on_loop
async def test_large_items_are_computed_alone_p5() -> None:
    """No batch of several is larger than a frame may be, nor keeps others waiting for somebody's 32 MiB."""
    bench = Bench(size=4, byte_limit=4 * LARGEST_BATCH)
    large = bytes(LARGEST_BATCH - 1), bytes(LARGEST_BATCH + 1)
    tasks = [await bench.asked(data) for data in (b"a", large[0], b"b", b"c", large[1], b"d")]
    bench.runner.gate.set()
    for task in tasks:
        await task
    sizes = [[len(data) for data in batch] for batch in bench.runner.batches]
    assert sizes == [[1], [LARGEST_BATCH - 1], [1, 1, 1], [LARGEST_BATCH + 1]]


@on_loop
async def test_heavy_items_go_together_as_far_as_a_frame_reaches_p5() -> None:
    bench = Bench(size=8, byte_limit=4 * LARGEST_BATCH)
    third = bytes(LARGEST_BATCH // 3)
    busy = await bench.asked(b"a")
    tasks = [await bench.asked(third) for _ in range(4)]
    bench.runner.gate.set()
    for task in (busy, *tasks):
        await task
    assert [len(batch) for batch in bench.runner.batches] == [1, 3, 1]


@on_loop
async def test_a_lone_item_waits_for_one_item_of_every_request_ahead_a11() -> None:
    bench = Bench(size=1)
    form = await bench.asked(*[b"form%d" % number for number in range(8)])
    pair = await bench.asked(b"pair0", b"pair1")
    lone = await bench.asked(b"lone")
    late = await bench.asked(b"late")
    bench.runner.gate.set()
    assert await late == [b"<late>"]
    assert bench.runner.batches[:5] == [[b"form0"], [b"form1"], [b"pair0"], [b"lone"], [b"late"]]
    assert await lone == [b"<lone>"]
    assert await pair == [b"<pair0>", b"<pair1>"]
    assert await form == [b"<form%d>" % number for number in range(8)]


@on_loop
async def test_a_request_of_some_items_is_not_starved_by_lone_ones_a11() -> None:
    """An item of it is taken in every round, while others never cease to come."""
    bench = Bench(size=1)
    bench.runner.gate.set()
    stopped = asyncio.Event()
    clients = [asyncio.create_task(_ask_again(bench, stopped)) for _ in range(3)]
    assert await asyncio.wait_for(bench.ask(*[b"form%d" % number for number in range(8)]), 30)
    stopped.set()
    assert sum(await asyncio.gather(*clients)) <= 4 * 8, "three for each item of the form, and what came last"


async def _ask_again(bench: Bench, stopped: asyncio.Event) -> int:
    """A client that asks for one item again and again: how often."""
    asked = 0
    while not stopped.is_set():
        assert await bench.ask(b"lone") == [b"<lone>"]
        asked += 1
    return asked


@on_loop
async def test_a_lone_item_waits_for_one_batch_of_a_large_form_a11() -> None:
    bench = Bench(size=8)
    form = await bench.asked(*[b"form%d" % number for number in range(62)])
    lone = await bench.asked(b"lone")
    bench.runner.gate.set()
    assert await lone == [b"<lone>"]
    assert bench.runner.batches[:2] == [[b"form%d" % number for number in range(8)], [b"lone"]]
    assert await form == [b"<form%d>" % number for number in range(62)]
    assert [len(batch) for batch in bench.runner.batches] == [8, 1, 8, 8, 8, 8, 8, 8, 6]


@pytest.mark.parametrize("slots", [1, 2])
def test_a_large_form_is_not_starved_by_lone_items_a11(slots: int) -> None:
    async def ask() -> None:
        bench = Bench(size=4, slots=slots)
        bench.runner.gate.set()
        stopped = asyncio.Event()
        clients = [asyncio.create_task(_ask_again(bench, stopped)) for _ in range(9)]
        await settle()
        form = [b"form%d" % number for number in range(62)]
        assert await asyncio.wait_for(bench.ask(*form), 30) == [b"<%b>" % data for data in form]
        stopped.set()
        await asyncio.gather(*clients)
        assert all(len({data[:4] for data in batch}) == 1 for batch in bench.runner.batches), "in no batch together"

    asyncio.run(ask())


@on_loop
async def test_what_is_left_of_a_request_keeps_its_order_when_some_of_it_has_gone() -> None:
    """A deadline takes out what waits of one request, and a client that leaves another; the counts stay exact."""
    bench = Bench(size=2)
    busy = await bench.asked(b"busy")
    expires = asyncio.create_task(bench.ask(b"x", b"y", seconds=0.01))
    gone, stays = await bench.asked(b"ab", b"cd", b"ef"), await bench.asked(b"1", b"2", b"3")
    assert await expires == ["deadline_exceeded"] * 2
    gone.cancel()
    await settle()
    assert (bench.count("queue_items"), bench.count("queue_bytes")) == (3, 3)
    bench.runner.gate.set()
    assert [await busy, await stays] == [[b"<busy>"], [b"<1>", b"<2>", b"<3>"]]
    assert bench.runner.batches == [[b"busy"], [b"1", b"2"], [b"3"]]
    assert (bench.count("queue_items"), bench.count("queue_bytes")) == (0, 0)


_HEAVY = bytes(MOST_BYTES + 1)


@on_loop
async def test_heavy_items_leave_a_slot_to_others_while_those_come_a11() -> None:
    bench = Bench(slots=2, size=1, byte_limit=10 * len(_HEAVY))
    light = await bench.asked(b"a")
    heavy = [await bench.asked(_HEAVY) for _ in range(3)]
    assert [len(batch[0]) for batch in bench.runner.batches] == [1, len(_HEAVY)]
    bench.runner.before = asyncio.Event().wait  # whatever comes later, for as long as the test
    bench.runner.gate.set()
    await light
    await settle()
    assert [len(batch[0]) for batch in bench.runner.batches] == [1, len(_HEAVY), len(_HEAVY)], "the first was through"
    lights = [await bench.asked(b"b"), await bench.asked(b"c")]
    assert bench.runner.batches[3:] == [[b"b"]], "a slot was left, and the next heavy one does not take it"
    for task in (*heavy, *lights):
        task.cancel()


@on_loop
async def test_heavy_items_have_every_slot_where_nobody_else_comes() -> None:
    bench = Bench(slots=2, size=1, byte_limit=10 * len(_HEAVY))
    tasks = [await bench.asked(_HEAVY) for _ in range(3)]
    assert len(bench.runner.batches) == 2
    bench.runner.gate.set()
    for task in tasks:
        await task


@on_loop
async def test_heavy_items_have_every_slot_soon_after_the_others_have_gone() -> None:
    bench = Bench(slots=2, size=1, byte_limit=10 * len(_HEAVY))
    bench.runner.gate.set()
    await bench.ask(b"a")
    hold, began = asyncio.Event(), asyncio.Semaphore(0)

    async def compute() -> None:
        began.release()
        await hold.wait()

    bench.runner.before = compute
    tasks = [await bench.asked(_HEAVY) for _ in range(2)]
    assert len(bench.runner.batches) == 2
    for _ in range(2):
        await asyncio.wait_for(began.acquire(), 30)
    hold.set()
    for task in tasks:
        await task


@on_loop
async def test_every_slot_takes_a_batch() -> None:
    bench = Bench(slots=2, size=2)
    tasks = [await bench.asked(bytes([letter])) for letter in b"abcd"]
    assert bench.runner.batches == [[b"a"], [b"b"]]
    bench.runner.gate.set()
    assert [await task for task in tasks] == [[b"<a>"], [b"<b>"], [b"<c>"], [b"<d>"]]
    assert bench.runner.batches[2:] == [[b"c"], [b"d"]]


@on_loop
async def test_a_free_slot_leaves_their_share_to_those_that_are_busy() -> None:
    bench = Bench(slots=2, size=8)
    first = await bench.asked(b"a")
    second = await bench.asked(b"b", b"c", b"d")
    assert bench.runner.batches == [[b"a"], [b"b", b"c"]]
    bench.runner.gate.set()
    assert await first == [b"<a>"]
    assert await second == [b"<b>", b"<c>", b"<d>"]
    assert bench.runner.batches[2:] == [[b"d"]]


@on_loop
async def test_free_slots_share_what_waits() -> None:
    bench = Bench(slots=3, size=8)
    bench.runner.gate.set()
    assert len(await bench.ask(*[b"%d" % number for number in range(7)])) == 7
    assert [len(batch) for batch in bench.runner.batches] == [3, 2, 2]


@on_loop
async def test_a_slot_is_not_shared_for_less_than_is_worth_its_waking() -> None:
    bench = Bench(slots=3, size=8)
    bench.batcher.sizes = BatchSizes(8, least=4)
    bench.runner.gate.set()
    assert len(await bench.ask(*[b"%d" % number for number in range(7)])) == 7
    assert [len(batch) for batch in bench.runner.batches] == [4, 3]


@on_loop
async def test_what_comes_in_one_turn_of_the_loop_goes_together() -> None:
    bench = Bench(size=8)
    bench.runner.gate.set()
    await asyncio.gather(bench.ask(b"a"), bench.ask(b"b"), bench.ask(b"c"))
    assert bench.runner.batches == [[b"a", b"b", b"c"]]


@pytest.mark.parametrize(
    ("one", "two", "most", "least"),
    [
        (10e-6, 11e-6, 32, 32),  # a few numbers: all is the cost of the call
        (12e-3, 24e-3, 2, 1),  # a convolutional network on one thread: company saves nothing but the hand-over
        (14e-3, 27e-3, 2, 1),  # one by one, workers would wait for the front
        (14e-3, 70e-3, 2, 1),  # two were measured in a slow moment of the machine
        (35e-3, 70e-3, 1, 1),
        (12e-3, 14e-3, 14, 1),  # it pays, and a newcomer waits a tenth of a second at most
        (2.0, 2.1, 1, 1),
        (1.0, math.inf, 1, 1),
        (math.nan, math.nan, 1, 1),
    ],
)
def test_batches_are_as_large_as_pays(one: float, two: float, most: int, least: int) -> None:
    assert measured_sizes(BatchCost(one, two)) == BatchSizes(most, least)


def test_a_batch_size_that_was_asked_for_is_kept() -> None:
    assert measured_sizes(BatchCost(12e-3, 24e-3), most=16).most == 16
    assert measured_sizes(None, most=16) == BatchSizes(16)
    assert measured_sizes(None) == BatchSizes(8)


@on_loop
async def test_a_request_of_several_items_is_answered_in_its_order_over_several_batches() -> None:
    bench = Bench(size=2)
    bench.runner.gate.set()
    assert await bench.ask(b"a", b"b", b"c", b"d", b"e") == [b"<a>", b"<b>", b"<c>", b"<d>", b"<e>"]
    assert [len(batch) for batch in bench.runner.batches] == [2, 2, 1]


@on_loop
async def test_the_time_in_the_queue_is_measured() -> None:
    bench = Bench()
    bench.runner.gate.set()
    item = Item(Payload("json", b"a"), Options())
    [outcome] = await bench.batcher.submit([item], deadline=asyncio.get_running_loop().time() + LONG)
    assert 0 <= outcome.timings.queue < LONG
    assert bench.count("stage_seconds_count", stage="queue") == 1


@on_loop
async def test_a_full_batch_goes_behind_one_that_runs() -> None:
    bench = Bench(size=2)
    bench.runner.behind = 1
    asked = [await bench.asked(b"a"), await bench.asked(b"b")]
    assert bench.runner.batches == [[b"a"]]  # b may get company here
    asked.append(await bench.asked(b"c"))
    assert bench.runner.batches == [[b"a"], [b"b", b"c"]]
    asked += [await bench.asked(b"d"), await bench.asked(b"e")]
    assert len(bench.runner.batches) == 2  # there is no more room
    bench.runner.gate.set()
    assert await asyncio.gather(*asked) == [[b"<a>"], [b"<b>"], [b"<c>"], [b"<d>"], [b"<e>"]]


@on_loop
async def test_no_batch_goes_behind_while_a_heavy_request_runs() -> None:
    bench = Bench(size=2, slots=2)
    bench.runner.behind = 1
    asked = [await bench.asked(*[b"%d" % number for number in range(MOST_ITEMS + 1)])]
    while not bench.runner.batches:  # it waits until no other request has come for a while
        await asyncio.sleep(0.001)
    assert bench.runner.batches == [[b"0", b"1"], [b"2", b"3"]]
    asked.append(await bench.asked(b"a", b"b"))
    assert len(bench.runner.batches) == 2
    bench.runner.gate.set()
    await asyncio.gather(*asked)
