from __future__ import annotations

import asyncio

import pytest

from trenza.base.units import Seconds
from trenza.net.deadlines import Deadlines


async def never() -> None:
    await asyncio.Event().wait()


async def at_once() -> int:
    await asyncio.sleep(0)
    return 7


def test_what_ends_in_time_returns_what_it_returns() -> None:
    assert asyncio.run(Deadlines(Seconds(60.0)).within(at_once())) == 7


def test_each_of_many_is_ended_when_its_own_time_is_over() -> None:
    async def story() -> None:
        deadlines = Deadlines(Seconds(0.02))
        first = [asyncio.create_task(deadlines.within(never())) for _ in range(3)]
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        later = asyncio.create_task(deadlines.within(never()))
        assert await deadlines.within(at_once()) == 7
        for task in (*first, later):
            with pytest.raises(TimeoutError):
                await task
            assert not task.cancelled()

    asyncio.run(story())


def test_whoever_is_cancelled_by_somebody_else_is_cancelled() -> None:
    async def story() -> None:
        deadlines = Deadlines(Seconds(60.0))
        task = asyncio.create_task(deadlines.within(never()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())


def test_who_is_cancelled_when_its_time_is_over_is_cancelled() -> None:
    async def story() -> None:
        deadlines = Deadlines(Seconds(0.0))
        task = asyncio.create_task(deadlines.within(never()))
        await asyncio.sleep(0)
        deadlines._look()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())


def test_they_hold_in_the_next_loop_too() -> None:
    deadlines = Deadlines(Seconds(0.01))
    assert asyncio.run(deadlines.within(at_once())) == 7
    with pytest.raises(TimeoutError):
        asyncio.run(deadlines.within(never()))
