"""Coroutines that begin on their caller's stack, without a task."""

import asyncio

import pytest

from flambeau.system.eager import Eager
from tests.support.batch_bench import on_loop, settle

Ended = list[tuple[object, BaseException | None]]


def run(coroutine: "asyncio._CoroutineLike[object]") -> tuple[Eager[object], Ended]:
    ended: Ended = []
    return Eager(coroutine, lambda found, error: ended.append((found, error))), ended  # type: ignore[arg-type]


@on_loop
async def test_what_waits_for_nothing_has_ended_before_the_next_line() -> None:
    async def answer() -> str:
        return "done"

    assert run(answer())[1] == [("done", None)]


@on_loop
async def test_it_goes_on_when_what_it_waits_for_is_there() -> None:
    first: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    seen = []

    async def answer() -> int:
        seen.append("begun")
        await asyncio.sleep(0)
        found = await first + await asyncio.to_thread(lambda: 1)
        await asyncio.sleep(0.001)
        return found

    _, ended = run(answer())
    assert seen == ["begun"]
    await settle()
    assert ended == []
    first.set_result(2)
    while not ended:
        await asyncio.sleep(0.001)
    assert ended == [(3, None)]


@on_loop
async def test_an_error_is_handed_over_once() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    _, ended = run(fail())
    await settle()
    [(found, error)] = ended
    assert found is None
    assert isinstance(error, ValueError)


@pytest.mark.parametrize("waits", ["future", "turn"])
def test_what_is_cancelled_cleans_up_and_ends(waits: str) -> None:
    async def test() -> None:
        cleaned = []

        async def wait() -> None:
            try:
                if waits == "future":
                    await asyncio.get_running_loop().create_future()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            finally:
                cleaned.append(True)

        eager, ended = run(wait())
        eager.cancel()
        await settle()
        [(_, error)] = ended
        assert isinstance(error, asyncio.CancelledError)
        assert cleaned == [True]

    asyncio.run(test())
