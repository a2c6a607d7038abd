"""Keys for several targets: all or nothing, whoever dies when (design decision 9)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import UUID

import msgspec
import pytest
from tests.simulation.acts import fetch, issue, judged, node_of, started
from tests.simulation.networks import network

from trenza.base.errors import (
    NotEnoughKeyError,
    RefusedError,
    RemoteProtocolError,
    StoreUnavailableError,
    TrenzaError,
    UnauthorisedError,
    UnavailableError,
    UnknownKeyError,
)
from trenza.base.names import NodeId, SaeId
from trenza.base.secret import Secret
from trenza.base.units import Bits
from trenza.core.delivery import KeyFacts, Wishes
from trenza.core.strand import Origin, Supply
from trenza.kms.ports import Change, Insert, Table
from trenza.kms.wrap import Leg
from trenza.lab.loop import run
from trenza.lab.world import World
from trenza.wire.peer import PeerMessage, WrapCommit, WrapOffer

NET = network("ABC", "AB AC BC", {"A1 B1": "default", "A1 C1": "default", "A1 A2": "local", "B1 C2": "classical"})
EVERYONE = ("C1", "A2")
"""Beside B1: a target on another node, and one on the initiator's own."""


def test_all_targets_get_the_same_key_once_and_its_braids_can_be_explained() -> None:
    async def story() -> None:
        world = await started(NET)
        keys = await issue(world, "A1", "B1", additional_targets=EVERYONE, number=2, size=Bits(512))
        for target in ("B1", *EVERYONE):
            got = await fetch(world, target, "A1", [key.key_id for key in keys])
            assert [key.key for key in got] == [key.key for key in keys]
            assert {key.facts for key in got} <= {key.facts for key in keys}
            with pytest.raises(UnknownKeyError):
                await fetch(world, target, "A1", [keys[0].key_id])
        with pytest.raises((UnauthorisedError, UnknownKeyError)):
            await fetch(world, "A1", "B1", [keys[0].key_id])
        node = node_of(world, "A1")
        told = await node.explain.key(keys[0].key_id)
        assert len(told.braids) == 2
        assert (await node.explain.key(told.braids[0])).segment is not None
        assert (await node_of(world, "C1").explain.key(keys[0].key_id)).events[0].kind == "delivered"
        await judged(world, ("A1", "B1"), ("A1", "C1"))

    run(story())


async def braids_of(world: World, key_id: UUID) -> tuple[UUID, ...]:
    return (await node_of(world, "A1").explain.key(key_id)).braids


def test_a_key_is_as_good_as_its_weakest_leg_and_says_so() -> None:
    async def story() -> None:
        world = await started(NET)
        (key,) = await issue(world, "A1", "B1", additional_targets=EVERYONE)
        told = [await node_of(world, "A1").explain.key(braid) for braid in await braids_of(world, key.key_id)]
        hops = max(len(one.segment.hops) for one in told if one.segment is not None)
        assert (key.facts.recipe, key.facts.strength, key.facts.hops) == ("wrapped", "256-bit", hops)
        assert key.facts.origins == (Origin.CLASSICAL, Origin.PQC, Origin.QKD)
        (weak,) = await issue(world, "B1", "A1", additional_targets=("C2",))
        assert weak.facts.origins == (Origin.CLASSICAL, Origin.PQC)
        assert (weak.facts.hops, weak.facts.supply) == (1, key.facts.supply)
        await world.stop_all()

    run(story())


def _nothing_waits(world: World) -> bool:
    return not any(machine.node is not None and len(machine.node.waiting) for machine in world.machines.values())


def test_with_one_node_down_nobody_gets_anything() -> None:
    async def story() -> None:
        world = await started(NET)
        await world.crash(NodeId("C"))
        with pytest.raises(UnavailableError):
            await issue(world, "A1", "B1", additional_targets=EVERYONE)
        await asyncio.sleep(10.0)
        assert _nothing_waits(world)
        with pytest.raises(UnavailableError):  # and once the lease is over it is not even begun
            await issue(world, "A1", "B1", additional_targets=EVERYONE)
        await world.start(NodeId("C"))
        await judged(world, ("A1", "B1"), ("A1", "C1"))

    run(story())


@pytest.mark.parametrize("victim", ["B", "C"])
@pytest.mark.parametrize("kind", [WrapOffer, WrapCommit])
@pytest.mark.parametrize("heard", [False, True], ids=["before it hears", "after it heard"])
def test_a_target_s_node_that_dies_between_the_phases_voids_the_key_everywhere(victim, kind, heard) -> None:
    async def story() -> None:
        world = await started(NET)
        name = NodeId(victim)
        seen: list[PeerMessage] = []
        handle = world.network.handlers[name]

        async def dying(peer: NodeId, message: PeerMessage) -> PeerMessage:
            if not isinstance(message, kind):
                return await handle(peer, message)
            seen.append(message)
            if heard:
                await handle(peer, message)
            world.kill(name)
            return await asyncio.Event().wait()  # type: ignore[func-returns-value]

        world.network.handlers[name] = dying
        with pytest.raises(UnavailableError):
            await issue(world, "A1", "B1", additional_targets=EVERYONE)
        world.network.handlers.pop(name, None)
        assert seen
        await world.start(name)
        await asyncio.sleep(60.0)
        assert _nothing_waits(world)
        assert node_of(world, "A1").ctx.counters["keys_voided"] == 1
        await judged(world, ("A1", "B1"), ("A1", "C1"))

    run(story())


def test_the_initiator_s_node_that_dies_between_the_phases_leaves_nothing_to_fetch() -> None:
    async def story() -> None:
        world = await started(NET)
        ids: list[bytes] = []
        handle = world.network.handlers[NodeId("C")]

        async def watching(peer: NodeId, message: PeerMessage) -> PeerMessage:
            answer = await handle(peer, message)
            if isinstance(message, WrapOffer):
                ids.append(message.key_id)
                world.kill(NodeId("A"))
            return answer

        world.network.handlers[NodeId("C")] = watching
        request = asyncio.create_task(issue(world, "A1", "B1", additional_targets=EVERYONE))
        await asyncio.wait([request], timeout=20.0)
        request.cancel()
        with pytest.raises((TrenzaError, asyncio.CancelledError)):
            await request
        await world.start(NodeId("A"))
        await asyncio.sleep(60.0)
        assert ids
        assert _nothing_waits(world)
        await judged(world, ("A1", "B1"), ("A1", "C1"))

    run(story())


def test_a_cancelled_request_is_voided_by_upkeep() -> None:
    async def story() -> None:
        world = await started(NET)
        world.network.cut.add(frozenset((NodeId("A"), NodeId("C"))))
        request = asyncio.create_task(issue(world, "A1", "B1", additional_targets=EVERYONE))
        await asyncio.sleep(1.0)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await asyncio.sleep(8.0)
        assert _nothing_waits(world)
        world.network.cut.clear()
        await judged(world, ("A1", "B1"), ("A1", "C1"))

    run(story())


def test_a_void_that_meets_a_delivery_breaks_nothing() -> None:
    async def story() -> None:
        world = await started(NET)
        world.set_disk_delay(0.05, 0.05)
        await world.crash(NodeId("B"))
        await world.start(NodeId("B"))
        await asyncio.sleep(20.0)
        (key,) = await issue(world, "A1", "B1", additional_targets=EVERYONE)
        node = node_of(world, "B1")
        getting = asyncio.create_task(fetch(world, "B1", "A1", [key.key_id]))
        await asyncio.sleep(0.01)  # its commit is under way
        await node.waiting.destroy(key.key_id.bytes)
        (got,) = await getting
        assert got.key == key.key
        with pytest.raises(UnknownKeyError):
            await fetch(world, "B1", "A1", [key.key_id])
        await judged(world, ("A1", "B1"), ("A1", "C1"))

    run(story())


# --- how many may wait


def test_local_keys_that_nobody_fetches_are_limited_and_status_tells_the_room_that_is_left() -> None:
    async def story() -> None:
        world = await started(network("AB", "AB", {"A1 A2": "local", "A1 B1": "default"}))
        node = node_of(world, "A1")
        most = (await node.delivery.status("A1", "A2")).max_key_count
        keys = await issue(world, "A1", "A2", number=most - 5)
        assert (await node.delivery.status("A1", "A2")).stored_key_count == 5
        with pytest.raises(NotEnoughKeyError, match="too many keys wait") as refusal:
            await issue(world, "A1", "A2", number=6)
        assert refusal.value.details == ({"available": 5}, {"requested": 6})
        assert len(node.waiting) == most - 5
        await issue(world, "A1", "A2", number=5)
        assert (await node.delivery.status("A1", "A2")).stored_key_count == 0
        assert (await node.delivery.status("A2", "A1")).stored_key_count == most
        await fetch(world, "A2", "A1", [key.key_id for key in keys[:3]])
        assert (await node.delivery.status("A1", "A2")).stored_key_count == 3
        assert node.ctx.counters["requests_without_key"] == 1
        assert node.ctx.counters["keys_voided"] == 0
        await world.stop_all()
        assert world.failures == {}

    run(story())


# --- deliveries that fail half-way


def test_a_mixed_fetch_that_fails_leaves_its_waiting_keys_to_be_fetched() -> None:
    async def story() -> None:
        world = await started(NET)
        (waits,) = await issue(world, "A1", "B1", additional_targets=EVERYONE)
        (computed,) = await issue(world, "A1", "B1")
        store = node_of(world, "B1").ctx.store
        commit = store.commit

        async def failing(changes: list[Change]) -> None:
            if any(isinstance(change, Insert) and change.table is Table.DELIVERED for change in changes):
                raise StoreUnavailableError("the disk refuses")
            await commit(changes)

        store.commit = failing
        with pytest.raises(StoreUnavailableError):
            await fetch(world, "B1", "A1", [waits.key_id, computed.key_id])
        store.commit = commit
        (got,) = await fetch(world, "B1", "A1", [waits.key_id])
        assert got.key == waits.key
        with pytest.raises(UnknownKeyError):
            await fetch(world, "B1", "A1", [computed.key_id])  # doubtful
        await judged(world, ("A1", "B1"))

    run(story())


def test_a_braid_is_wiped_when_there_is_none_for_a_later_leg() -> None:
    async def story() -> None:
        world = await started(NET)
        node, braids = node_of(world, "A1"), []
        issuing = node.issuing.issue

        async def watched(*args, **wanted):
            keys = await issuing(*args, **wanted)
            braids.extend(keys)
            return keys

        node.issuing.issue = watched
        await world.crash(NodeId("C"))
        await asyncio.sleep(10.0)  # its lease is over
        pairs = [node.permits.pair(SaeId("A1"), SaeId("A1"), SaeId(target)) for target in ("B1", "C1")]
        legs = [Leg(pair, pair.policy.recipes[0]) for pair in pairs]
        with pytest.raises(NotEnoughKeyError):
            await node.wrapped.issue(
                pairs[0].initiator, legs, number=1, size=Bits(256), wishes=Wishes(), tls_group=""
            )
        assert len(braids) == 1
        assert not any(braids[0].key)
        await world.stop_all()

    run(story())


# --- offers that lie


LIES = {
    "another recipe": {"recipe": "its"},
    "an origin too many": {"origins": (Origin.CLASSICAL, Origin.PQC, Origin.PRESHARED, Origin.QKD)},
    "a better supply": {"supply": Supply.LIVE},
    "no supply": {"supply": None},
    "more strength": {"strength": "information-theoretic"},
    "fewer hops": {"hops": 0},
    "made tomorrow": {"created": 1 << 62},
    "for ever": {"expires": 1 << 62},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_holder_believes_no_more_of_a_key_than_its_braid_and_policy_allow(lie) -> None:
    async def story() -> None:
        world = await started(NET)
        node = node_of(world, "A1")
        pair = node.permits.pair(SaeId("A1"), SaeId("A1"), SaeId("B1"))
        leg = Leg(pair, pair.policy.recipes[0])
        for lies in ({}, LIES[lie]):
            (braid,) = (await node.wrapped._braids([leg], Bits(256), Wishes(), "")).values()
            now = node.ctx.clock.now()
            facts = replace(braid.facts, recipe="wrapped", created=now, expires=now + 10**9)
            assert facts.supply is Supply.WARM
            offered = _offered(world, leg, braid, replace(facts, **lies))
            if not lies:
                await offered
                continue
            with pytest.raises(RefusedError, match="say more than") as refusal:
                await offered
            assert refusal.value.remote_code == RemoteProtocolError.code
        assert len(world.node("B").waiting) == 1
        await judged(world, ("A1", "B1"))

    run(story())


async def _offered(world: World, leg: Leg, braid, facts: KeyFacts) -> None:
    wrapped, pair = node_of(world, "A1").wrapped, leg.pair
    key, key_id = Secret(bytearray(32)), world.node("A").ctx.entropy.token(16)
    await wrapped._offer(pair.initiator, pair.target, braid, bytes(key_id), key, facts)
    assert not any(braid.key.view())


def test_an_offer_that_was_altered_is_refused() -> None:
    async def story() -> None:
        world = await started(NET)
        handle = world.network.handlers[NodeId("B")]

        async def altered(peer: NodeId, message: PeerMessage) -> PeerMessage:
            if isinstance(message, WrapOffer):
                message = msgspec.structs.replace(message, wrapped=bytes(len(message.wrapped)))
            return await handle(peer, message)

        world.network.handlers[NodeId("B")] = altered
        with pytest.raises(UnavailableError, match="not every target"):
            await issue(world, "A1", "B1", additional_targets=EVERYONE)
        world.network.handlers[NodeId("B")] = handle
        await asyncio.sleep(5.0)
        assert _nothing_waits(world)
        await judged(world, ("A1", "B1"), ("A1", "C1"))

    run(story())
