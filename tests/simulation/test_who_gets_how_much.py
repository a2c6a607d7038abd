"""Whole networks in which some may have less than others: classes, rates and quotas on every way to a key."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import msgspec
import pytest
from tests.simulation.acts import issue, judged, node_of, started
from tests.simulation.networks import network

from trenza.app.scenario import Scenario
from trenza.base.errors import LimitedError, NotEnoughKeyError
from trenza.base.names import NodeId, SaeId, TenantId
from trenza.core.delivery import IssueRequest
from trenza.core.policy import Policy, Rule, TenantEntry
from trenza.core.priority import Priority
from trenza.kms.shares import SAVE_EVERY
from trenza.lab.loop import run
from trenza.lab.story import SMALL
from trenza.lab.world import World

BANK = TenantId("bank")
ORDINARY = Policy("ordinary", ("hybrid-catkdf",))
RESCUE = Policy("rescue", ("hybrid-catkdf",), priority=Priority.EMERGENCY)


def scenario_of(
    policies: list[Policy], rules: dict[tuple[str, str], str], *, tenant: TenantEntry | None = None
) -> Scenario:
    """Return a network of A and B; the SAEs of A are of the tenant, if there is one."""
    bare = network("AB", "AB", {})
    name = TenantId("default") if tenant is None else tenant.name
    return msgspec.structs.replace(
        bare,
        saes=tuple(msgspec.structs.replace(sae, tenant=name) if sae.node == "A" else sae for sae in bare.saes),
        policies=tuple(policies),
        rules=tuple(Rule((SaeId(one), SaeId(other)), policy) for (one, other), policy in rules.items()),
        tenants=() if tenant is None else (tenant,),
    )


async def asked(world: World, caller: str, target: str, *, times: int = 1_000) -> int:
    """Ask until it is refused; return how often it went well."""
    for done in range(times):
        try:
            await issue(world, caller, target)
        except NotEnoughKeyError:
            return done
    return times


def cut_off(world: World) -> None:
    """Fill no more, so that what there is is all there will be."""
    for name in ("A", "B"):
        world.node(name).demand.wants = lambda _peer: []  # type: ignore[method-assign]


def test_the_emergency_class_finds_its_floor_when_others_have_taken_all_they_may() -> None:
    async def story() -> None:
        pairs = {("A1", "B1"): "ordinary", ("A2", "B2"): "rescue"}
        world = await started(scenario_of([ORDINARY, RESCUE], pairs), settings=replace(SMALL, stock_target=96))
        await asyncio.sleep(30.0)
        cut_off(world)
        await asked(world, "A1", "B1")
        with pytest.raises(NotEnoughKeyError, match="kept for higher priority"):
            await issue(world, "A1", "B1")
        assert await asked(world, "A2", "B2", times=12) == 12  # an eighth of 96
        assert node_of(world, "A1").ctx.counters["requests_kept_for_higher"] >= 2
        await world.stop_all()

    run(story())


def test_what_is_kept_of_one_kind_leads_down_the_ladder_and_not_to_a_refusal() -> None:
    async def story() -> None:
        degrading = Policy("degrading", ("hybrid-catkdf", "exchange-catkdf"))
        pairs = {("A1", "B1"): "degrading", ("A2", "B2"): "rescue"}
        world = await started(scenario_of([degrading, RESCUE], pairs), settings=replace(SMALL, stock_target=96))
        await asyncio.sleep(30.0)
        cut_off(world)
        stock = world.node("A")._stock_of(NodeId("B"), True)
        recipes = [(await issue(world, "A1", "B1"))[0].facts.recipe for _ in range(stock)]
        assert recipes == ["hybrid-catkdf"] * (stock - 12) + ["exchange-catkdf"] * 12
        assert node_of(world, "A1").ctx.counters["keys_issued_below_first_rung"] == 12
        await world.stop_all()

    run(story())


def test_a_rate_holds_for_keys_from_slots_local_keys_and_keys_for_several_targets() -> None:
    async def story() -> None:
        slow = Policy("slow", ("hybrid-catkdf",), max_keys_per_second=0.1, burst=2)
        near = Policy("near", ("local",), max_keys_per_second=0.1, burst=2)
        pairs = {("A1", "B1"): "slow", ("A1", "B2"): "ordinary", ("A1", "A2"): "near"}
        world = await started(scenario_of([ORDINARY, slow, near], pairs))
        for target in ("B1", "A2"):
            assert await asked(world, "A1", target, times=2) == 2
            with pytest.raises(LimitedError):
                await issue(world, "A1", target)
        with pytest.raises(LimitedError):  # one of the targets is enough
            await issue(world, "A1", "B2", additional_targets=(SaeId("B1"),))
        await asyncio.sleep(10.0)
        assert len(await issue(world, "A1", "B2", additional_targets=(SaeId("B1"),))) == 1
        with pytest.raises(LimitedError):
            await issue(world, "A1", "B1")
        await asyncio.sleep(20.0)
        await judged(world, ("A1", "B1"), ("A1", "B2"))

    run(story())


def test_a_rate_holds_for_requests_that_come_together() -> None:
    async def story() -> None:
        slow = Policy("slow", ("hybrid-catkdf",), max_keys_per_second=1.0, burst=5)
        world = await started(scenario_of([ORDINARY, slow], {("A1", "B1"): "slow"}))
        await issue(world, "A1", "B1")
        await asyncio.sleep(10.0)
        order = node_of(world, "A1").delivery.order(SaeId("A1"), IssueRequest(SaeId("B1"), tls_group="lab"))
        assert order is not None
        assert [len(order.serve(number)) for number in (16, 16)] == [5, 0]
        await world.stop_all()

    run(story())


def test_a_quota_of_a_tenant_survives_a_crash_but_for_what_was_not_stored_yet() -> None:
    async def story() -> None:
        tenant = TenantEntry(BANK, max_bits_per_day=10 * 256)
        world = await started(scenario_of([ORDINARY], {("A1", "B1"): "ordinary"}, tenant=tenant))
        await issue(world, "A1", "B1", number=7)
        await asyncio.sleep(SAVE_EVERY + 5.0)
        await issue(world, "A1", "B1", number=1)
        await world.crash(NodeId("A"))
        await world.start(NodeId("A"))
        await asyncio.sleep(10.0)
        await world.until_ready(within=60.0)
        with pytest.raises(LimitedError, match="quota of this day"):
            await issue(world, "A1", "B1", number=4)
        assert len(await issue(world, "A1", "B1", number=3)) == 3
        assert len(await issue(world, "B1", "A1", number=20)) == 20  # the other direction is not the bank's
        await world.stop_all()

    run(story())


def test_what_the_highest_class_lacks_is_filled_first() -> None:
    async def story() -> None:
        rescue = Policy("rescue", ("hybrid-catkdf",), priority=Priority.EMERGENCY, max_hops=1)
        pairs = {("A1", "B1"): "ordinary", ("A2", "B2"): "rescue"}
        world = World(scenario_of([ORDINARY, rescue], pairs), seed=1, settings=SMALL)
        await world.start_all()
        wants = world.node("A").demand.wants(NodeId("B"))
        assert [want.priority for want in wants] == [Priority.EMERGENCY] * 2 + [Priority.NORMAL] * 2
        assert all(want.low for want in wants)
        await world.stop_all()

    run(story())
