"""Tasks that recur: when they take their turns, what a failed turn leaves, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Hashable, Mapping

import pytest

from trenza.base.errors import UnavailableError
from trenza.base.units import Seconds
from trenza.kms.tasks import Recurring, Tasks
from trenza.lab.loop import run


class Steps:
    """A task's turns, as they were taken: the moments, on the loop's clock."""

    def __init__(self) -> None:
        self.taken: list[float] = []
        self.more = 0  # turns that say that there is more to do
        self.error: Exception | None = None

    async def step(self) -> bool:
        self.taken.append(round(asyncio.get_running_loop().time(), 3))
        if self.error is not None:
            raise self.error
        self.more -= 1
        return self.more >= 0


@contextlib.asynccontextmanager
async def running(tasks: Tasks, wanted: Mapping[Hashable, Recurring]) -> AsyncIterator[None]:
    task = asyncio.create_task(tasks.run(lambda: tasks.follow(wanted)))
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert not tasks.are_running


def test_a_task_takes_a_turn_at_its_interval() -> None:
    async def story() -> None:
        steps, tasks = Steps(), Tasks(Counter())
        async with running(tasks, {("beat", "B"): Recurring(Seconds(2.0), steps.step)}):
            await asyncio.sleep(5.0)
        assert steps.taken == [0.0, 2.0, 4.0]

    run(story())


def test_while_there_is_more_to_do_a_turn_follows_at_once() -> None:
    async def story() -> None:
        steps, tasks = Steps(), Tasks(Counter())
        steps.more = 3
        async with running(tasks, {("beat", "B"): Recurring(Seconds(2.0), steps.step)}):
            await asyncio.sleep(1.0)
        assert steps.taken == [0.0] * 4

    run(story())


def test_a_kick_brings_the_next_turn_forward_but_not_many() -> None:
    async def story() -> None:
        steps, tasks = Steps(), Tasks(Counter())
        async with running(tasks, {("beat", "B"): Recurring(Seconds(9.0), steps.step)}):
            await asyncio.sleep(1.0)
            for _ in range(100):
                tasks.kick("beat", "B")
            tasks.kick("beat", "C")  # nobody of that name
            await asyncio.sleep(1.0)
        assert steps.taken == [0.0, 1.05]

    run(story())


def test_a_turn_that_fails_is_counted_told_of_and_tried_again() -> None:
    async def story() -> None:
        counters: Counter[str] = Counter()
        steps, tasks = Steps(), Tasks(counters)
        steps.error = UnavailableError("not now")
        async with running(tasks, {("beat", "B"): Recurring(Seconds(1.0), steps.step)}):
            await asyncio.sleep(1.5)
            assert tasks.troubles == {"beat B": "not now"}
            assert counters == {"failed_beat_turns": 2}
            steps.error = None
            await asyncio.sleep(1.0)
            assert tasks.troubles == {}

    run(story())


def test_anything_else_that_goes_wrong_ends_them_all() -> None:
    async def story() -> None:
        steps, well, tasks = Steps(), Steps(), Tasks(Counter())
        steps.error = ZeroDivisionError()
        wanted: dict[Hashable, Recurring] = {
            ("bad",): Recurring(Seconds(1.0), steps.step),
            ("good",): Recurring(Seconds(1.0), well.step),
        }
        with pytest.raises(ExceptionGroup) as caught:
            await tasks.run(lambda: tasks.follow(wanted))
        assert caught.group_contains(ZeroDivisionError)
        assert not tasks.are_running

    run(story())


def test_what_is_wanted_no_more_stops_and_takes_its_trouble_along() -> None:
    async def story() -> None:
        steps, other, tasks = Steps(), Steps(), Tasks(Counter())
        steps.error = UnavailableError("not now")
        kept = {("lead", "B"): Recurring(Seconds(1.0), other.step)}
        async with running(tasks, {("beat", "B"): Recurring(Seconds(1.0), steps.step), **kept}):
            await asyncio.sleep(0.5)
            tasks.follow(kept)
            assert tasks.troubles == {}
            await asyncio.sleep(2.0)
        assert steps.taken == [0.0]
        assert other.taken == [0.0, 1.0, 2.0]  # it went on, and was not begun again

    run(story())


def test_what_is_started_once_ends_with_the_others() -> None:
    async def story() -> None:
        ended: list[str] = []
        tasks = Tasks(Counter())

        async def once() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("once")

        async with running(tasks, {}):
            await asyncio.sleep(0.1)
            tasks.start("once", once())
            await asyncio.sleep(0.1)
            assert ended == []
        assert ended == ["once"]

    run(story())
