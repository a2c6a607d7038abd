"""Nodes whose ledgers may hold very little: they go on, what is pruned is archived, and they say what they forgot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from uuid import UUID

import msgspec
import pytest
from tests.simulation.networks import network

from trenza.base.errors import UnknownKeyError
from trenza.base.names import NodeId, SaeId
from trenza.base.units import Nanoseconds, Seconds
from trenza.core.archive import ArchivedEntry, ArchiveHead, entry_lines, head_line, read_entries, read_head
from trenza.core.chain import verify_chain
from trenza.core.delivery import IssueRequest
from trenza.kms.ports import LedgerEntry, LedgerQuery
from trenza.lab.client import Client
from trenza.lab.history import violations
from trenza.lab.loop import run
from trenza.lab.plan import SMALL
from trenza.lab.world import World

A, B = NodeId("A"), NodeId("B")
A1, B1 = SaeId("A1"), SaeId("B1")
MOST = 60_000
LITTLE = replace(
    SMALL,
    segment_lifetime=Seconds(60.0),
    checkpoint_seconds=Seconds(5.0),
    retention_interval=Seconds(5.0),
    ledger_days=0.0,
    ledger_max_bytes=MOST,
)


class Shelf:
    """Keeps archives in memory, as lines: the Archive port of a machine whose disk outlives its processes."""

    def __init__(self) -> None:
        self.archives: dict[str, bytes] = {}

    async def keep(self, head: ArchiveHead, entries: AsyncIterator[Sequence[LedgerEntry]]) -> str:
        lines = head_line(head)
        async for some in entries:
            lines += entry_lines(some)
        name = f"{head.node}-{head.previous.sequence + 1:06d}-{head.last.sequence:06d}"
        self.archives[name] = lines
        return name

    def read(self) -> list[tuple[ArchiveHead, list[ArchivedEntry]]]:
        found = []
        for name, lines in sorted(self.archives.items()):
            first, *others = lines.splitlines()
            found.append((read_head(first, name=name), list(read_entries(others, name=name))))
        return found


async def lived(world: World, shelves: dict[NodeId, Shelf], *, turns: int) -> list[UUID]:
    """Issue and fetch; half of what is issued is never fetched, so that windows stay open."""
    client, used = Client(world), []
    for _ in range(turns):
        for name, shelf in shelves.items():
            world.node(name).ctx.archive = shelf
        for caller, target in ((A1, B1), (B1, A1)):
            keys = await client.issue(caller, IssueRequest(target, number=4))
            await client.fetch(target, caller, [key.key_id for key in keys[:2]])
            used += [key.key_id for key in keys[:2] if caller == A1]
        await asyncio.sleep(3.0)
    return used


async def audited(world: World, name: NodeId, shelf: Shelf) -> int:
    """See that archives and ledger are one chain from the first entry on; return how many entries that are."""
    reached, store = None, world.node(name).ctx.store
    for head, entries in shelf.read():
        assert head.previous.sequence <= (reached.sequence if reached else 0)
        through = [*head.checkpoints, *([reached] if reached and head.last.sequence >= reached.sequence else [])]
        assert verify_chain(entries, head.previous, through=through) == (head.last.sequence, head.last.hash)
        reached = head.last if reached is None else max(reached, head.last, key=lambda one: one.sequence)
    extent = await store.extent()
    ledger = await store.entries(LedgerQuery())
    assert reached is not None
    return verify_chain(ledger, extent.start, through=[reached])[0]


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power"])
def test_a_ledger_stays_small_whatever_crashes_and_the_archives_have_the_rest(power: bool) -> None:
    async def story() -> None:
        scenario = network("AB", "AB", {"A1 B1": "default"})
        policies = tuple(msgspec.structs.replace(one, key_lifetime_s=30) for one in scenario.policies)
        world = World(msgspec.structs.replace(scenario, policies=policies), seed=7, settings=LITTLE)
        shelves = {A: Shelf(), B: Shelf()}
        await world.start_all()
        await world.until_ready()
        used = await lived(world, shelves, turns=60)
        for name in (A, B):
            await world.crash(name, power=power)
            await world.start(name)
        await world.until_ready()
        used += await lived(world, shelves, turns=60)
        for name, shelf in shelves.items():
            await asyncio.sleep(10.0)
            node = world.node(name)
            extent = await node.ctx.store.extent()
            assert extent.start.sequence > 100
            assert extent.bytes < 1.5 * MOST
            assert await audited(world, name, shelf) == (await node.ctx.store.head()).sequence
            assert "retention" not in node.troubles
        node = world.node("A")
        assert (await node.explain.key(used[-1])).segment is not None
        with pytest.raises(UnknownKeyError, match="were pruned; they are archived, the last of them in A-0"):
            await node.explain.key(used[0])
        until = await node.explain.pruned_until()
        assert until is not None
        assert until <= Nanoseconds(node.ctx.clock.now())
        await world.stop_all()
        assert world.failures == {}
        assert world.lost == []
        assert violations(world.history) == []

    run(story())
