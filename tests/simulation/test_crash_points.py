"""A node dies right before, or right after, each commit of a small history: keys agree, nothing is used twice, and it
issues again (design decision 5)."""

from __future__ import annotations

import asyncio

import pytest
from tests.simulation.networks import network

from trenza.base.names import NodeId, SaeId
from trenza.base.units import Bits
from trenza.core.delivery import IssueRequest
from trenza.kms.context import Settings
from trenza.lab.client import Client
from trenza.lab.disk import DeathAt
from trenza.lab.history import violations
from trenza.lab.loop import run
from trenza.lab.world import World

THREE = network("ABC", "AB BC", {"A1 C1": "emergency", "A1 B1": "default", "A1 A2": "local", "C1 B1": "pad"})

TINY = Settings(
    stock_target=12,
    segment_min=8,
    segment_max=12,
    window_slots=4,
    link_target_units=64,
    reserve_units=8,
    block_units=32,
)
"""Few commits in all, so that every one of them can be the last."""

PAIRS = (("A1", "C1"), ("C1", "A1"), ("A1", "B1"), ("B1", "C1"), ("A1", "A2"))


async def lived(
    name: NodeId | None = None, death: DeathAt | None = None, *, fatal_step: int = 0, turns: int = 8
) -> World:
    """Live through the small history; whoever dies is started again a second later."""
    world = World(THREE, seed=11, settings=TINY)
    if name is not None:
        world.machines[name].death, world.machines[name].fatal_step = death, fatal_step
    client = Client(world)
    await world.start_all()
    for turn in range(turns):
        await _revive(world)
        for caller, target in PAIRS:
            others = (SaeId("B1"),) if (caller, target) == ("A1", "C1") and turn % 3 == 0 else ()
            size = Bits(512) if turn % 2 else Bits(256)
            request = IssueRequest(SaeId(target), number=1 + turn % 2, size=size, additional_targets=others)
            keys = await client.issue(SaeId(caller), request)
            for key in keys[: 1 + turn % 3]:
                for each in (SaeId(target), *others):
                    await client.fetch(each, SaeId(caller), [key.key_id])
        await asyncio.sleep(1.0)
    return world


async def _revive(world: World) -> None:
    for name, machine in sorted(world.machines.items()):
        if machine.node is None:
            machine.death = None
            await world.start(name)


async def judged(world: World) -> None:
    await _revive(world)
    await asyncio.sleep(12.0)
    await world.until_ready(within=60.0)
    client = Client(world)
    for caller, target in PAIRS:
        keys = await client.issue(SaeId(caller), IssueRequest(SaeId(target), size=Bits(256)))
        assert len(await client.fetch(SaeId(target), SaeId(caller), [key.key_id for key in keys])) == 1
    await world.stop_all()
    assert world.failures == {}
    assert violations(world.history) == []


async def commits_of_all() -> dict[NodeId, int]:
    world = await lived()
    counts = {name: machine.store.commits for name, machine in world.machines.items() if machine.store is not None}
    await judged(world)
    return counts


def died_at(name: NodeId, death: DeathAt) -> None:
    async def story() -> None:
        world = await lived(name, death)
        await judged(world)
        assert world.machines[name].lives == 2, "it did not die"

    run(story())


COMMITS = run(commits_of_all())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["A", "B", "C"])
def test_a_node_may_die_at_every_commit(name) -> None:
    """Before the odd ones and after the even ones: after one and before the next the disk is the same."""
    for nth in range(1, COMMITS[name] + 1):
        died_at(NodeId(name), DeathAt(nth, "before" if nth % 2 else "after"))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["A", "B", "C"])
def test_a_node_may_die_at_any_commit(name, when) -> None:
    for nth in range(5, COMMITS[name], COMMITS[name] // 2):
        died_at(NodeId(name), DeathAt(nth, when))
