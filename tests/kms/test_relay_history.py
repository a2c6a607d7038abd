"""Random histories of a small network: losses, duplicates, failing disks and crashes; then what must always hold."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest
from tests.kms.fakes import Fails, Fault
from tests.kms.link_world import World

from trenza.base.errors import TrenzaError
from trenza.kms import relay
from trenza.wire.peer import Relay

ROUTES = ["ab", "ba", "bc", "cb", "ac", "abc", "cba", "bac", "bca", "acb", "cab"]


class History:
    """One seed, one history."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.world = World("abc", ["a-b", "b-c", "a-c"])
        self.world.network.faults = self.fault
        self.segments = 0
        self.carried = 0
        self.strands: list[bytes] = []

    def fault(self, *_: object) -> Fault | None:
        return self.random.choice(list(Fault)) if self.random.random() < 0.2 else None

    async def carry(self) -> None:
        route = self.random.choice(ROUTES)
        self.segments += 1
        segment = self.segments.to_bytes(16, "big")
        source = self.world[route[0]].relays
        carried = await source.carry(segment, tuple(route), self.random.randint(1, 6))
        self.strands.append(bytes(carried.strand.view()))
        arrived = self.world[route[-1]].relays.take_arrived(segment, route[0])
        if arrived is not None:  # None: the far end crashed after its answer
            assert arrived.strand == carried.strand
            assert arrived.hops == carried.hops
            self.carried += 1

    async def ingest(self) -> None:
        link = self.random.choice(self.world.book.links)
        await self.world.nodes[min(link.ends)].ingest.step(link.name)

    async def tick(self) -> None:
        self.world.clock.advance(self.random.choice([0.1, 1.0, 30.0]))
        await self.world[self.random.choice("abc")].levels.tick()

    async def round(self) -> None:
        """Several stories at once, perhaps a failing disk and a crash in the midst of them, then the restart."""
        stories: list[Callable[[], Awaitable[None]]] = [self.carry, self.carry, self.carry, self.ingest, self.tick]
        running = [asyncio.ensure_future(self.random.choice(stories)()) for _ in range(self.random.randint(1, 6))]
        victim = self.world[self.random.choice("abc")]
        if self.random.random() < 0.2:
            victim.store.fail_next = self.random.choice(list(Fails))
        crash = self.random.random() < 0.2
        if crash:
            for _ in range(self.random.randint(0, 40)):
                await asyncio.sleep(0)
            victim.crash()
        for outcome in await asyncio.gather(*running, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, TrenzaError):
                raise outcome
        for node in self.world.nodes.values():
            node.store.fail_next = None
        if crash:
            await victim.start()

    def check(self) -> None:
        """No unit serves two messages, and no strand was ever written down."""
        messages = {(m.relay, m.link, m.tag): m for _, _, m in self.world.network.sent if isinstance(m, Relay)}
        units = [
            (named.block, unit)
            for message in messages.values()
            for named in (*message.pads, message.key)
            for unit in range(named.first, named.first + named.count)
        ]
        assert len(units) == len(set(units))
        written = b"".join(node.on_disk() for node in self.world.nodes.values())
        assert not any(strand[:32] in written for strand in self.strands)
        assert len(set(self.strands)) == len(self.strands)


async def history(seed: int, rounds: int) -> int:
    story = History(seed)
    await story.world.stock()
    for _ in range(rounds):
        await story.round()
    story.check()
    return story.carried


@pytest.mark.parametrize("seed", range(12))
def test_no_unit_is_used_twice_whatever_happens(seed, monkeypatch):
    monkeypatch.setattr(relay, "_FIRST_PAUSE", 0.0)
    assert asyncio.run(history(seed, rounds=25)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 400))
def test_no_unit_is_used_twice_in_long_histories(seed, monkeypatch):
    monkeypatch.setattr(relay, "_FIRST_PAUSE", 0.0)
    assert asyncio.run(history(seed, rounds=80)) > 0
