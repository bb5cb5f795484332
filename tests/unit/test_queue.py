"""A queue on a real event loop: how long items wait for company, how many may wait, and what becomes of those whose
time is over, whose caller has gone, or whose runner fails.
"""

import asyncio
import random

import pytest

from flambeau.errors import RequestError
from tests.support.batch_bench import LONG, Bench, count_answered, on_loop, settle


@on_loop
async def test_with_a_queue_delay_a_lone_item_waits_for_company_so_long_and_no_longer() -> None:
    bench = Bench(delay=0.02)
    bench.runner.gate.set()
    loop = asyncio.get_running_loop()
    started = loop.time()
    assert await asyncio.gather(bench.ask(b"a"), bench.ask(b"b")) == [[b"<a>"], [b"<b>"]]
    assert loop.time() - started >= 0.02
    assert bench.runner.batches == [[b"a", b"b"]]
    assert bench.closed() == {"full": 0, "drained": 0, "delay": 1}
    assert await bench.ask(b"c") == [b"<c>"]
    assert bench.closed()["delay"] == 2


@on_loop
async def test_with_a_queue_delay_a_full_batch_goes_at_once() -> None:
    bench = Bench(delay=LONG, size=3)
    bench.runner.gate.set()
    assert await bench.ask(b"a", b"b", b"c") == [b"<a>", b"<b>", b"<c>"]
    assert bench.closed() == {"full": 1, "drained": 0, "delay": 0}


@on_loop
async def test_the_delay_of_an_item_whose_caller_has_gone_does_not_hold_up_the_next() -> None:
    bench = Bench(delay=0.01)
    bench.runner.gate.set()
    gone = await bench.asked(b"a")
    gone.cancel()
    assert await bench.ask(b"b") == [b"<b>"]
    assert bench.runner.batches == [[b"b"]]


@on_loop
async def test_a_full_queue_is_refused_at_once_by_items_and_all_or_nothing() -> None:
    bench = Bench(items=3)
    tasks = [await bench.asked(b"a"), await bench.asked(b"b", b"c")]
    refused = await bench.asked(b"d", b"e")
    assert refused.done()
    assert _code(refused) == "queue_full"
    assert "2 items are waiting" in str(refused.exception())
    tasks.append(await bench.asked(b"f"))
    assert _code(await bench.asked(b"g")) == "queue_full"
    bench.runner.gate.set()
    assert [await task for task in tasks] == [[b"<a>"], [b"<b>", b"<c>"], [b"<f>"]]
    assert bench.runner.batches == [[b"a"], [b"b", b"f", b"c"]]
    assert bench.count("rejections_total", code="queue_full") == 2


@on_loop
async def test_a_full_queue_is_refused_at_once_by_bytes() -> None:
    bench = Bench(byte_limit=10)
    tasks = [await bench.asked(b"first"), await bench.asked(b"123456")]
    assert _code(await bench.asked(b"12345")) == "queue_full"
    tasks.append(await bench.asked(b"1234"))
    assert _code(await bench.asked(b"1")) == "queue_full"
    bench.runner.gate.set()
    assert [await task for task in tasks] == [[b"<first>"], [b"<123456>"], [b"<1234>"]]
    assert await bench.ask(b"0123456789") == [b"<0123456789>"]


@on_loop
async def test_a_request_that_will_never_fit_is_told_so_a19() -> None:
    bench = Bench(items=3, byte_limit=10)
    with pytest.raises(RequestError, match="4 items in one request: the queue takes at most 3") as caught:
        await bench.ask(b"a", b"b", b"c", b"d")
    assert (caught.value.code, caught.value.retryable) == ("too_many_items", False)
    with pytest.raises(RequestError, match="11 bytes in one request: the queue takes at most 10") as caught:
        await bench.ask(b"0123456789", b"a")
    assert (caught.value.code, caught.value.retryable) == ("body_too_large", False)


def _code(task: "asyncio.Task[list[bytes | str]]") -> str:
    error = task.exception()
    assert isinstance(error, RequestError)
    assert error.retryable
    return error.code


@on_loop
async def test_what_has_expired_says_so_and_is_never_computed() -> None:
    bench = Bench()
    busy = await bench.asked(b"busy")
    patient = await bench.asked(b"patient")
    assert await bench.ask(b"a", b"b", seconds=0.01) == ["deadline_exceeded"] * 2
    assert bench.count("queue_items") == 1
    bench.runner.gate.set()
    assert [await busy, await patient] == [[b"<busy>"], [b"<patient>"]]
    assert bench.runner.batches == [[b"busy"], [b"patient"]]


@on_loop
async def test_an_item_that_expires_while_it_is_computed_is_answered_once() -> None:
    bench = Bench()
    assert await bench.ask(b"slow", seconds=0.01) == ["deadline_exceeded"]
    bench.runner.gate.set()
    assert await bench.ask(b"next") == [b"<next>"]
    assert bench.runner.batches == [[b"slow"], [b"next"]]


@on_loop
async def test_the_items_of_a_caller_who_has_gone_are_never_computed() -> None:
    bench = Bench()
    busy = await bench.asked(b"busy")
    gone, stays = await bench.asked(b"a", b"b", b"c"), await bench.asked(b"stays")
    gone.cancel()
    await settle()
    assert gone.cancelled()
    assert bench.count("queue_items") == 1
    bench.runner.gate.set()
    assert [await busy, await stays] == [[b"<busy>"], [b"<stays>"]]
    assert bench.runner.batches == [[b"busy"], [b"stays"]]


@on_loop
async def test_a_caller_who_goes_during_the_computation_harms_no_batch_mate() -> None:
    bench = Bench()
    busy = await bench.asked(b"busy")
    gone, stays = await bench.asked(b"a"), await bench.asked(b"b")
    finish = asyncio.Event()
    bench.runner.before = finish.wait  # for the next batch
    bench.runner.gate.set()
    assert await busy == [b"<busy>"]
    await settle()
    assert bench.runner.batches == [[b"busy"], [b"a", b"b"]]
    gone.cancel()
    finish.set()
    assert await stays == [b"<b>"]


@on_loop
async def test_a_runner_that_raises_fails_its_batch_and_the_batcher_goes_on() -> None:
    bench = Bench()
    first = await bench.asked(b"a")
    tasks = [await bench.asked(b"b"), await bench.asked(b"c", b"d")]

    async def fail() -> None:
        raise OSError("the replica is gone")

    bench.runner.before = fail
    bench.runner.gate.set()
    assert await first == [b"<a>"]
    assert [await task for task in tasks] == [["internal"], ["internal", "internal"]]
    bench.runner.before = None
    assert await bench.ask(b"e") == [b"<e>"]


@on_loop
async def test_a_wrong_number_of_outcomes_fails_the_batch_and_the_batcher_goes_on() -> None:
    bench = Bench()
    bench.runner.gate.set()
    for bench.runner.answers in (0, 2):
        assert await asyncio.wait_for(bench.ask(b"a", b"b"), 10) == ["internal"] * 2
    bench.runner.answers = 1
    assert await bench.ask(b"c") == [b"<c>"]


@on_loop
async def test_a_slot_that_becomes_free_elsewhere_is_taken_on_dispatch() -> None:
    bench = Bench(slots=0)
    bench.runner.gate.set()
    task = await bench.asked(b"a")
    assert bench.runner.batches == []
    bench.runner.free = 1
    bench.batcher.dispatch()
    assert await task == [b"<a>"]


@on_loop
async def test_closing_waits_for_what_is_running_and_what_is_queued() -> None:
    bench = Bench()
    tasks = [await bench.asked(b"a"), await bench.asked(b"b")]
    closing = asyncio.create_task(bench.batcher.close())
    await settle()
    assert not closing.done()
    bench.runner.gate.set()
    await closing
    await settle()
    assert [task.result() for task in tasks] == [[b"<a>"], [b"<b>"]]


def test_a_queue_delay_that_is_no_whole_number_of_milliseconds_works_on_uvloop() -> None:
    """uvloop counts in milliseconds, so its timers come up to half of one early."""
    uvloop = pytest.importorskip("uvloop")

    async def ask() -> list[list[bytes | str]]:
        bench = Bench(delay=0.0013)
        bench.runner.gate.set()
        return [await bench.ask(b"a", seconds=30) for _ in range(20)]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(ask()) == [[b"<a>"]] * 20


def test_closing_waits_for_what_waits_for_company() -> None:
    async def close() -> list[bytes | str]:
        bench = Bench(delay=0.02)
        bench.runner.gate.set()
        task = await bench.asked(b"a")
        await bench.batcher.close()
        await settle()
        return task.result()

    assert asyncio.run(close()) == [b"<a>"]


@pytest.mark.parametrize("delay", [0.0, 0.001])
@pytest.mark.parametrize("seed", range(5))
def test_any_mixture_of_requests_gets_exactly_one_outcome_each(seed: int, delay: float) -> None:
    """Random sizes, deadlines, cancellations and failures: nothing is lost, doubled or mixed up."""
    asyncio.run(_mixture(random.Random(seed), delay))


async def _mixture(chance: random.Random, delay: float) -> None:
    bench = Bench(slots=3, size=4, items=40, byte_limit=150, delay=delay)
    most_running = 0

    async def compute() -> None:
        nonlocal most_running
        most_running = max(most_running, bench.runner.running)
        for _ in range(chance.randrange(30)):
            await asyncio.sleep(0)
        if chance.random() < 0.1:
            raise OSError("the replica is gone")

    bench.runner.before = compute
    requests: dict[asyncio.Task[list[bytes | str]], list[bytes]] = {}
    for number in range(300):
        data = [b"%d.%d" % (number, part) for part in range(chance.choice((1, 1, 1, 2, 4, 9)))]
        seconds = chance.choice((LONG, LONG, LONG, 0.0, 0.0005))
        requests[asyncio.create_task(bench.ask(*data, seconds=seconds))] = data
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(0)
        if chance.random() < 0.15:
            chance.choice(list(requests)).cancel()
    answered = await count_answered(
        requests, lambda sent, found: found in (b"<" + sent + b">", "deadline_exceeded", "internal")
    )
    await bench.batcher.close()
    computed = [data for batch in bench.runner.batches for data in batch]
    assert len(computed) == len(set(computed)), "nothing is computed twice"
    assert answered > 100
    assert max(map(len, bench.runner.batches)) <= 4
    assert most_running <= 3
    assert bench.count("queue_items") == bench.count("queue_bytes") == 0
    bench.runner.before = settle
    assert await bench.ask(b"last") == [b"<last>"]
