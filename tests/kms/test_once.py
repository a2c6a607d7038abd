from __future__ import annotations

import asyncio

import pytest

from trenza.base.errors import ConflictError, RemoteProtocolError, UnavailableError
from trenza.base.names import NodeId
from trenza.kms.once import Once

ANA, BEA = NodeId("ana"), NodeId("bea")


class Story:
    """Counts how often it runs; waits for `go`."""

    def __init__(self, error: Exception | None = None) -> None:
        self.runs = 0
        self.go = asyncio.Event()
        self.error = error

    async def __call__(self) -> int:
        self.runs += 1
        await self.go.wait()
        if self.error:
            raise self.error
        return self.runs


def test_all_who_ask_hear_the_one_answer():
    async def story():
        once, act = Once[int](10), Story()
        asking = [asyncio.create_task(once.answer(ANA, b"1", b"d", act)) for _ in range(3)]
        await asyncio.sleep(0)
        act.go.set()
        assert await asyncio.gather(*asking) == [1, 1, 1]
        assert await once.answer(ANA, b"1", b"d", act) == 1
        assert await once.answer(BEA, b"1", b"d", act) == 2

    asyncio.run(story())


def test_a_refusal_is_an_answer_too():
    async def story():
        once, act = Once[int](10), Story(ConflictError("no"))
        act.go.set()
        for _ in range(2):
            with pytest.raises(ConflictError):
                await once.answer(ANA, b"1", b"d", act)
        assert act.runs == 1

    asyncio.run(story())


def test_another_content_under_the_same_id_is_refused():
    async def story():
        once, act = Once[int](10), Story()
        act.go.set()
        await once.answer(ANA, b"1", b"d", act)
        with pytest.raises(RemoteProtocolError):
            await once.answer(ANA, b"1", b"e", act)

    asyncio.run(story())


def test_whoever_waits_for_an_interrupted_story_hears_that_it_was():
    async def story():
        once, act = Once[int](10), Story()
        first = asyncio.create_task(once.answer(ANA, b"1", b"d", act))
        second = asyncio.create_task(once.answer(ANA, b"1", b"d", act))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(UnavailableError, match="interrupted"):
            await second
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(story())


def test_the_oldest_answers_are_forgotten_but_never_what_is_under_way():
    async def story():
        once, slow, quick = Once[int](2), Story(), Story()
        quick.go.set()
        waiting = asyncio.create_task(once.answer(ANA, b"slow", b"d", slow))
        await asyncio.sleep(0)
        for number in range(5):
            await once.answer(ANA, bytes([number]), b"d", quick)
        slow.go.set()
        assert await waiting == 1
        assert await once.answer(ANA, b"slow", b"d", slow) in {1, 2}
        assert len(once._courses) <= 2 + 1

    asyncio.run(story())
