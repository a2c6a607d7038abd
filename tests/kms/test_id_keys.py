"""ID keys at a start: what cannot be opened."""

from __future__ import annotations

import asyncio

import pytest
from tests.kms.fakes import FakeClock, FakeNetwork, FakeSealer, FakeStore, make_context
from tests.kms.pair_world import A, B, a_book
from tests.kms.test_id_keys_machine import session

from trenza.base.errors import StoreUnavailableError
from trenza.kms.id_keys import IdKeyRing
from trenza.kms.node import Node


class World:
    """A node's disk and keyring, with the ID keys of three sessions; those of the second are in no keyring."""

    def __init__(self) -> None:
        self.clock, self.store, self.sealer = FakeClock(), FakeStore(), FakeSealer()

    def context(self):
        return make_context(A, FakeNetwork(), clock=self.clock, store=self.store, sealer=self.sealer, book=a_book())

    async def meet(self) -> None:
        ring = IdKeyRing(self.context())
        for number in (1, 2, 3):
            await ring.keep(B, session(number))
            self.clock.advance(1.0)
        await self.sealer.erase([1])


def test_a_node_starts_without_the_id_keys_that_cannot_be_opened_and_says_so() -> None:
    async def story() -> None:
        world = World()
        await world.meet()
        node = Node(world.context(), anchor=NoAnchor())
        await node.start()
        left = {one.session for one in node.id_keys.all_of(B)}
        assert left == {session(1).session_id, session(3).session_id}
        assert node.ctx.counters["id_keys_unreadable"] == 1
        assert "1 past sessions" in node.troubles["id keys"]
        await node.id_keys.refresh()
        assert node.ctx.counters["id_keys_unreadable"] == 1  # it is one session, however often it is looked at

    asyncio.run(story())


def test_a_keyring_that_is_away_is_no_reason_to_go_on_without_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        world = World()
        await world.meet()

        async def away(_sealed: object, *, associated: bytes) -> None:
            raise StoreUnavailableError(f"no token for {len(associated)} bytes")

        monkeypatch.setattr(world.sealer, "unseal", away)
        ring = IdKeyRing(world.context())
        with pytest.raises(StoreUnavailableError):
            await ring.load()
        assert not ring.unreadable

    asyncio.run(story())


class NoAnchor:
    """Knows nothing: a first start."""

    def recall(self) -> tuple[bytes, int] | None:
        return None

    def remember(self, identity: bytes, counter: int) -> None:
        """Remember nothing."""
