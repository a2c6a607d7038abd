"""A crash at an await: the n-th step of a process is not run, and whoever waits for it waits for ever."""

from __future__ import annotations

import asyncio

import pytest

from trenza.base.errors import UnavailableError
from trenza.lab.loop import run
from trenza.lab.process import Process


class Deed:
    """Three steps, one after another."""

    def __init__(self) -> None:
        self.done: list[str] = []

    async def run(self) -> str:
        for step in ("first", "second", "third"):
            self.done.append(step)
            await asyncio.sleep(1.0)
        return "all"


def living(fatal_step: int = 0) -> Process:
    process = Process("A", fatal_step=fatal_step, on_death=lambda: process.die() and None)
    return process


def test_steps_of_a_process_and_of_the_tasks_it_starts_are_counted() -> None:
    async def story() -> tuple[str, int]:
        process = living()

        async def parent() -> str:
            async with asyncio.TaskGroup() as group:
                return await group.create_task(Deed().run())

        return await process.ask(parent()), process.steps

    told, steps = run(story())
    assert told == "all"
    assert steps > 4


@pytest.mark.parametrize("fatal", [1, 2, 3])
def test_the_fatal_step_is_not_run_and_nobody_hears_of_it(fatal) -> None:
    async def story() -> tuple[Deed, bool]:
        deed, process = Deed(), living(fatal)
        asking = asyncio.create_task(process.ask(deed.run()))
        await asyncio.sleep(60.0)
        waits = not asking.done()
        asking.cancel()
        return deed, waits and process.dead

    deed, waits_for_ever = run(story())
    assert deed.done == ["first", "second", "third"][: fatal - 1]
    assert waits_for_ever


def test_who_gives_up_does_not_stop_the_process() -> None:
    async def story() -> Deed:
        deed, process = Deed(), living()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await process.ask(deed.run())
        await asyncio.sleep(10.0)
        return deed

    assert run(story()).done == ["first", "second", "third"]


def test_a_dead_process_answers_nobody() -> None:
    async def story() -> None:
        process, deed = living(), Deed()
        process.die()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5.0):
                await process.ask(deed.run())
        assert deed.done == []

    run(story())


@pytest.mark.parametrize(("error", "is_told"), [(UnavailableError("no"), False), (ValueError("a bug"), True)])
def test_a_refusal_that_nobody_waits_for_any_more_goes_unheard_and_a_bug_does_not(error, is_told) -> None:
    async def story() -> list[object]:
        told: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))

        async def deed() -> None:
            await asyncio.sleep(1.0)
            raise error

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await living().ask(deed())
        await asyncio.sleep(1.0)
        return told

    assert run(story()) == ([error] if is_told else [])
