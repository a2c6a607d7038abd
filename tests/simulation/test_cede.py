"""Slots that change direction, and slots that come back, in whole networks (docs/adr/0019)."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest
from tests.simulation.acts import fetch, issue, judged, node_of, started
from tests.simulation.networks import network

from trenza.base.errors import NotEnoughKeyError
from trenza.base.names import NodeId, SaeId
from trenza.core.delivery import IssueRequest
from trenza.kms.context import Settings
from trenza.lab.disk import DeathAt
from trenza.lab.history import violations
from trenza.lab.loop import run
from trenza.lab.story import SMALL, Client
from trenza.lab.world import World

TWO = network("AB", "AB", {"A1 B1": "default"})
A, B = NodeId("A"), NodeId("B")

SHORT = replace(SMALL, reserve_slots=2)
"""Little is reserved and granted ahead, so that most of the stock is in nobody's hand."""


def stop_filling(world: World) -> None:
    """Let no segment be large enough to be worth making."""
    may_fill(world, 1 << 20)


def may_fill(world: World, segment_min: int) -> None:
    ctx = world.node("A").ctx
    ctx.settings = replace(ctx.settings, segment_min=segment_min)


def stock(world: World) -> dict[str, int]:
    """Return the slots that each direction can issue, granted or not."""
    found: dict[str, int] = {}
    for one, other in (("A", "B"), ("B", "A")):
        pools = world.node(one).pools
        granted = pools.issuable(NodeId(other), full=True)
        found[one] = granted + pools.ungranted(NodeId(other), NodeId(one), full=True)
    return found


async def drain(world: World, caller: str, target: str) -> int:
    """Issue and fetch key after key until a request is refused; return how many there were."""
    issued = 0
    while True:
        try:
            keys = await issue(world, caller, target)
        except NotEnoughKeyError:
            return issued
        issued += len(keys)
        assert len(await fetch(world, target, caller, [key.key_id for key in keys])) == 1


@pytest.mark.parametrize(("caller", "target"), [("A1", "B1"), ("B1", "A1")])
def test_one_sided_demand_drains_both_directions_before_anything_is_refused(caller, target) -> None:
    async def story() -> None:
        world = await started(TWO, settings=SHORT)
        await asyncio.sleep(5.0)
        stop_filling(world)
        before = stock(world)
        in_use = node_of(world, target).pools.issuable(node_of(world, caller).ctx.name, full=True)
        issued = await drain(world, caller, target)
        assert issued == sum(before.values()) - in_use  # all but the windows that the other end has in hand
        assert issued > max(before.values())
        assert node_of(world, caller).ctx.counters["slots_ceded_here"] > 0
        may_fill(world, SMALL.segment_min)
        await judged(world, ("A1", "B1"))

    run(story())


def test_both_ends_explain_a_key_of_a_ceded_slot_alike_and_in_its_direction() -> None:
    async def story() -> None:
        world = await started(TWO, settings=SHORT)
        await asyncio.sleep(5.0)
        stop_filling(world)
        kept = []
        for _ in range(200):
            keys = await issue(world, "A1", "B1")
            one = await node_of(world, "A1").explain.key(keys[0].key_id)
            if one.segment is not None and one.segment.issuer == B:
                kept = keys
                break
        assert kept, "no key of a ceded slot"
        await asyncio.sleep(1.5)  # the target hears with the beats how far ceded windows are issued
        told = {mark.window: mark.issued for mark in world.node("A").pools.marks(B)}
        held = world.node("B").pools.pair(A).held
        assert told
        assert {number: held[number].issued for number in told} == told
        await fetch(world, "B1", "A1", [kept[0].key_id])
        other = await node_of(world, "B1").explain.key(kept[0].key_id)
        one = await node_of(world, "A1").explain.key(kept[0].key_id)
        assert (one.segment, one.segment_digest) == (other.segment, other.segment_digest)
        assert one.issuer == other.issuer == A  # though the segment was B's to issue from at first
        assert [event.kind for event in (*one.events, *other.events)] == ["issued", "delivered"]
        await judged(world, ("A1", "B1"))

    run(story())


def test_a_restart_in_good_order_costs_no_slot() -> None:
    async def story() -> None:
        world = await started(TWO, settings=SHORT)
        await asyncio.sleep(5.0)
        stop_filling(world)
        keys = await issue(world, "B1", "A1", number=3)
        await asyncio.sleep(1.0)
        before = stock(world)
        machine = world.machines[B]
        await world.node("B").leave()
        await world.crash(B)
        await world.start(B)
        assert machine.lives == 2
        await world.until_ready(within=30.0)
        assert stock(world) == before
        assert len(await fetch(world, "A1", "B1", [key.key_id for key in keys])) == 3
        may_fill(world, SMALL.segment_min)
        await judged(world, ("A1", "B1"))

    run(story())


def test_a_crash_costs_what_was_granted_and_no_more() -> None:
    async def story() -> None:
        world = await started(TWO, settings=SHORT)
        await asyncio.sleep(5.0)
        stop_filling(world)
        before = stock(world)
        granted = world.node("B").pools.issuable(A, full=True)
        await world.crash(B)
        await world.start(B)
        await world.until_ready(within=30.0)
        assert stock(world) == {"A": before["A"], "B": before["B"] - granted}
        may_fill(world, SMALL.segment_min)
        await judged(world, ("A1", "B1"))

    run(story())


# --- every commit may be the last

TINY = Settings(
    stock_target=12,
    segment_min=8,
    segment_max=12,
    window_slots=4,
    link_target_units=64,
    reserve_units=8,
    block_units=32,
    reserve_slots=1,
)


async def lived(name: NodeId | None = None, death: DeathAt | None = None) -> World:
    """Demand from one side only, without filling, and a stop in good order; whoever dies is started again."""
    world = World(TWO, seed=5, settings=replace(TINY))
    if name is not None:
        world.machines[name].death = death
    client = Client(world)
    await world.start_all()
    await asyncio.sleep(4.0)
    for turn in range(6):
        for machine in world.machines.values():
            if machine.node is None:
                machine.death = None
                await world.start(machine.name)
        if world.machines[A].node is not None:
            may_fill(world, 1 << 20 if turn < 3 else TINY.segment_min)
        for _ in range(3):
            for key in await client.issue(SaeId("B1"), IssueRequest(SaeId("A1"), number=2)):
                await client.fetch(SaeId("A1"), SaeId("B1"), [key.key_id])
        if turn == 4:
            await asyncio.sleep(3.0)
        if turn == 4 and world.machines[B].node is not None:
            with contextlib.suppress(TimeoutError):  # whoever dies meanwhile never returns
                async with asyncio.timeout(5.0):
                    await world.node("B").leave()
            if world.machines[B].node is not None:
                await world.crash(B)
        await asyncio.sleep(1.0)
    return world


async def all_is_well(world: World) -> None:
    for machine in world.machines.values():
        if machine.node is None:
            machine.death = None
            await world.start(machine.name)
    may_fill(world, TINY.segment_min)
    await asyncio.sleep(12.0)
    await world.until_ready(within=60.0)
    client = Client(world)
    for caller, target in (("A1", "B1"), ("B1", "A1")):
        keys = await client.issue(SaeId(caller), IssueRequest(SaeId(target)))
        assert len(await client.fetch(SaeId(target), SaeId(caller), [key.key_id for key in keys])) == 1
    await world.stop_all()
    assert world.failures == {}
    assert violations(world.history) == []


async def _whole() -> tuple[dict[NodeId, int], int, int]:
    world = await lived()
    counts = {name: machine.store.commits for name, machine in world.machines.items() if machine.store is not None}
    ceded = world.node("A").ctx.counters["slots_ceded_away"]
    back = world.node("A").ctx.counters["slots_handed_back"]
    await all_is_well(world)
    return counts, ceded, back


def test_the_small_history_has_a_cede_and_a_hand_back() -> None:
    _, ceded, back = run(_whole())
    assert ceded > 0
    assert back > 0


def died_at(name: NodeId, death: DeathAt) -> None:
    async def story() -> None:
        await all_is_well(await lived(name, death))

    run(story())


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["A", "B"])
def test_a_node_may_die_at_some_commits_of_a_cede_and_a_hand_back(name, when) -> None:
    counts, _, _ = run(_whole())
    for nth in range(counts[NodeId(name)] // 3, counts[NodeId(name)], max(1, counts[NodeId(name)] // 6)):
        died_at(NodeId(name), DeathAt(nth, when))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["A", "B"])
def test_a_node_may_die_at_every_commit_of_a_cede_and_a_hand_back(name) -> None:
    counts, _, _ = run(_whole())
    for nth in range(1, counts[NodeId(name)] + 1):
        died_at(NodeId(name), DeathAt(nth, "before" if nth % 2 else "after"))
