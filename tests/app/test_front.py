"""Requests go on while the stories behind a door are replaced."""

import asyncio

import pytest

from trenza.app.front import Front
from trenza.base.errors import UnavailableError
from trenza.base.names import SaeId

ALICE, BOB = SaeId("sae-alice"), SaeId("sae-bob")


class Stories:
    """Answer with what they are called."""

    def __init__(self, name):
        self.name = name

    async def status(self, caller, target):
        return f"{self.name}: {caller} to {target}"


async def never() -> None:
    await asyncio.Event().wait()


def asking(front):
    return asyncio.create_task(front.status(ALICE, BOB))


async def all_wait(*tasks) -> None:
    for _ in range(5):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


def test_who_waits_for_a_second_to_be_ready_is_served_by_the_lead_that_it_becomes():
    async def story():
        front = Front()
        front.turn_to(Stories("second"), never)
        waiting = [asking(front), asking(front)]
        await all_wait(*waiting)
        front.turn_to(None)
        front.turn_to(Stories("lead"))
        assert await asyncio.gather(*waiting) == ["lead: sae-alice to sae-bob"] * 2

    asyncio.run(story())


def test_who_waits_while_nobody_serves_waits_for_the_next_to_be_ready_too():
    async def story():
        front, trusted = Front(), asyncio.Event()
        waiting = asking(front)
        await all_wait(waiting)
        front.turn_to(Stories("second"), trusted.wait)
        await all_wait(waiting)
        trusted.set()
        assert await waiting == "second: sae-alice to sae-bob"

    asyncio.run(story())


def test_what_a_second_refuses_is_told():
    async def refuse():
        raise UnavailableError("no instance leads")

    async def story():
        front = Front()
        front.turn_to(Stories("second"), refuse)
        with pytest.raises(UnavailableError, match="no instance leads"):
            await front.status(ALICE, BOB)

    asyncio.run(story())


def test_a_caller_that_goes_away_while_it_waits_leaves_nothing_behind():
    async def story():
        front = Front()
        front.turn_to(Stories("second"), never)
        waiting = asking(front)
        await all_wait(waiting)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        front.turn_to(Stories("lead"))
        assert await front.status(ALICE, BOB) == "lead: sae-alice to sae-bob"

    asyncio.run(story())
