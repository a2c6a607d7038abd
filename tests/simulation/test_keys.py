"""A key's life in whole networks: ladders, books, expiry, provenance, and IDs that are none."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from tests.simulation.acts import fetch, issue, judged, node_of, started, use_up
from tests.simulation.networks import network, ring

from trenza.base.errors import (
    InvalidRequestError,
    NotEnoughKeyError,
    UnauthorisedError,
    UnavailableError,
    UnknownKeyError,
)
from trenza.base.names import LinkId, NodeId, SaeId
from trenza.base.units import Bits, Nanoseconds
from trenza.core.delivery import IssueRequest, Wishes
from trenza.core.policy import Policy, Rule
from trenza.core.strand import Origin
from trenza.lab.loop import run
from trenza.lab.plan import SMALL
from trenza.lab.world import World

TWO = network("AB", "AB", {"A1 B1": "default", "A2 B2": "emergency", "A1 B2": "default"})
CHAIN = network("ABC", "AB BC", {"A1 C1": "default", "A1 B1": "default", "A2 C2": "emergency", "B1 C1": "raw"})


# --- ladders


def test_without_qkd_a_ladder_goes_down_and_says_so_and_comes_back() -> None:
    async def story() -> None:
        world = await started(TWO)
        world.pairs[LinkId("AB")].disable()
        world.pairs[LinkId("AB")]._stock.take(Bits(world.pairs[LinkId("AB")]._stock.bits // 8 * 8))
        for number in (8, 1):  # until the stock is used up
            with pytest.raises(NotEnoughKeyError) as refusal:
                await use_up(world, "A1", "B1", number=number)
        assert refusal.value.details == ({"available": 0}, {"requested": 1})
        (key,) = await issue(world, "A2", "B2")
        assert key.facts.recipe == "exchange-catkdf"
        assert key.facts.origins == (Origin.CLASSICAL, Origin.PQC)
        assert (key.facts.hops, key.facts.supply) == (0, None)
        assert (await fetch(world, "B2", "A2", [key.key_id]))[0].key == key.key
        counters = node_of(world, "A1").ctx.counters
        assert counters["keys_issued_below_first_rung"] >= 1
        assert counters["requests_without_key"] >= 1
        world.pairs[LinkId("AB")].enable()
        await asyncio.sleep(60.0)
        assert (await issue(world, "A2", "B2"))[0].facts.recipe == "hybrid-catkdf"
        await judged(world, ("A1", "B1"), ("A2", "B2"))

    run(story())


def test_a_wish_that_no_recipe_meets_is_refused_and_one_that_the_ladder_meets_is_followed() -> None:
    async def story() -> None:
        world = await started(TWO)
        (key,) = await issue(world, "A2", "B2", wishes=Wishes(recipe="exchange-catkdf"))
        assert key.facts.recipe == "exchange-catkdf"
        for wishes in (Wishes(recipe="its"), Wishes(origins=frozenset({Origin.PRESHARED})), Wishes(max_hops=0)):
            with pytest.raises(InvalidRequestError, match="not all extension_mandatory"):
                await issue(world, "A1", "B1", wishes=wishes)
        await world.stop_all()

    run(story())


def test_status_counts_what_can_be_issued() -> None:
    async def story() -> None:
        world = await started(TWO)
        node = node_of(world, "A1")
        before = await node.delivery.status("A1", "B1")
        assert before.stored_key_count == node.pools.issuable(NodeId("B"), full=True)
        await issue(world, "A1", "B1", number=7)
        assert (await node.delivery.status("A1", "B1")).stored_key_count == before.stored_key_count - 7
        both = await node.delivery.status("A2", "B2")
        plain = node.pools.issuable(NodeId("B"), full=False)
        assert both.stored_key_count == min(both.max_key_count, before.stored_key_count - 7 + plain)
        with pytest.raises(UnauthorisedError):
            await node.delivery.status("A1", "A2")
        await world.stop_all()

    run(story())


def test_stock_that_grew_older_than_the_policy_allows_is_replaced() -> None:
    strict = replace(SMALL, segment_lifetime=3_600.0)
    policies = tuple(
        Policy(one.name, one.ladder, max_age_s=40) if one.name == "default" else one for one in TWO.policies
    )

    async def story() -> None:
        world = World(_changed(TWO, policies=policies), seed=3, settings=strict)
        await world.start_all()
        await world.until_ready()
        for _ in range(12):
            await asyncio.sleep(20.0)
            keys = await issue(world, "A1", "B1", number=4)
            assert all(world.clock.now() - key.facts.created <= 40e9 for key in keys)
            await fetch(world, "B1", "A1", [key.key_id for key in keys])
        await judged(world, ("A1", "B1"))

    run(story())


# --- books


def _changed(scenario, **members):
    import msgspec

    return msgspec.structs.replace(scenario, **members)


async def _install(world: World, version: int, scenario) -> None:
    book = world.sign_book(version, scenario)
    await world.node("A").books.install(book)
    await asyncio.sleep(5.0)  # the others hear of it with a beat


def test_a_new_book_spreads_and_keys_of_the_former_policies_stay_fetchable_even_after_a_restart() -> None:
    async def story() -> None:
        world = await started(TWO)
        old = await issue(world, "A1", "B1", number=4)
        policies = (*TWO.policies, Policy("changed", ("hybrid-catkdf",), max_hops=3))
        rules = (Rule(("A1", "B1"), "changed"), *TWO.rules[1:])
        await _install(world, 2, _changed(TWO, policies=policies, rules=rules))
        assert world.node("B").ctx.book.version == 2
        newer = await issue(world, "A1", "B1", number=2)
        assert [key.key for key in await fetch(world, "B1", "A1", [old[0].key_id, newer[0].key_id])] == [
            old[0].key,
            newer[0].key,
        ]
        await _install(world, 3, _changed(TWO, policies=policies, rules=(*rules, Rule(("A2", "B1"), "default"))))
        assert (await fetch(world, "B1", "A1", [old[1].key_id]))[0].key == old[1].key
        await world.crash(NodeId("B"))
        await world.start(NodeId("B"))
        (again,) = await issue(world, "A2", "B1") if world.node("A").sessions.has_lease("B") else (None,)
        assert world.node("B").ctx.book.version == 3
        assert again is None or (await fetch(world, "B1", "A2", [again.key_id]))
        explained = await node_of(world, "A1").explain.key(old[0].key_id)
        assert explained.events[0].record.policy == "default"
        assert (await node_of(world, "B1").explain.key(old[0].key_id)).segment == explained.segment
        await judged(world, ("A1", "B1"), ("A2", "B1"))

    run(story())


def _with_saes_at(scenario, **homes: str):
    saes = tuple(_changed(sae, node=NodeId(homes.get(sae.name, sae.node))) for sae in scenario.saes)
    return _changed(scenario, saes=saes)


MOVES = _changed(
    network("ABC", "AB BC AC", {"A1 B1": "default", "B1 B2": "local", "A2 B2": "default", "A1 C1": "default"}),
    policies=(
        Policy("default", ("hybrid-catkdf",), key_lifetime_s=60),
        Policy("local", ("local",), key_lifetime_s=60),
    ),
)


@pytest.mark.parametrize("restarts", [False, True])
def test_keys_of_an_sae_that_moves_are_fetched_where_it_was_served_and_new_ones_where_it_is(restarts) -> None:
    async def story() -> None:
        world = await started(MOVES)
        old = await issue(world, "A1", "B1", number=3)
        drawn = await issue(world, "B2", "B1", number=2)
        await _install(world, 2, _with_saes_at(MOVES, B1="C"))
        before, now = world.node("B").delivery, world.node("C").delivery
        if restarts:
            await world.crash(NodeId("B"))
            await world.start(NodeId("B"))
            await asyncio.sleep(5.0)
            before = world.node("B").delivery
        for key, initiator in ((old[0], "A1"), (drawn[0], "B2")):
            (fetched,) = await before.fetch(SaeId("B1"), SaeId(initiator), [key.key_id], tls_group="")
            assert fetched.key == key.key
            with pytest.raises(UnknownKeyError):  # once
                await before.fetch(SaeId("B1"), SaeId(initiator), [key.key_id], tls_group="")
        assert world.node("B").ctx.counters["keys_delivered_after_a_move"] == 2
        with pytest.raises(UnknownKeyError) as refused:
            await now.fetch(SaeId("B1"), SaeId("A1"), [old[1].key_id], tls_group="")
        assert refused.value.details == ({"former_KME_ID": "B"},)
        with pytest.raises(UnauthorisedError):  # nothing new there
            await before.issue(SaeId("B1"), IssueRequest(SaeId("A1")))
        (new,) = await issue(world, "A1", "B1")
        assert (await now.fetch(SaeId("B1"), SaeId("A1"), [new.key_id], tls_group=""))[0].key == new.key
        await asyncio.sleep(70.0)
        with pytest.raises(UnauthorisedError):
            await before.fetch(SaeId("B1"), SaeId("A1"), [old[2].key_id], tls_group="")
        with pytest.raises(UnknownKeyError) as refused:
            await now.fetch(SaeId("B1"), SaeId("A1"), [old[2].key_id], tls_group="")
        assert refused.value.details == ()
        await world.stop_all()

    run(story())


def test_neighbours_that_a_new_book_makes_partners_begin_to_fill() -> None:
    async def story() -> None:
        world = await started(MOVES)
        await _install(world, 2, _with_saes_at(MOVES, A1="C"))
        assert "C" in world.node("B").partners()
        await asyncio.sleep(20.0)
        assert world.node("B").pools.ready_segments(NodeId("C"))
        world.node("B").troubles["fill C"] = "no path to node C has 64 units of link key now"
        await _install(world, 3, MOVES)
        assert "fill C" not in world.node("B").troubles, "what is not to be filled lacks nothing"
        await asyncio.sleep(1.0)
        made = len(world.node("B").pools.ready_segments(NodeId("C")))
        await asyncio.sleep(20.0)
        assert len(world.node("B").pools.ready_segments(NodeId("C"))) <= made  # they share nothing any more
        await world.stop_all()

    run(story())


def test_keys_of_an_initiator_that_moves_are_fetched_as_ever() -> None:
    async def story() -> None:
        world = await started(MOVES)
        old = await issue(world, "A1", "B1", number=2)
        await _install(world, 2, _with_saes_at(MOVES, A1="C"))
        assert (await fetch(world, "B1", "A1", [old[0].key_id]))[0].key == old[0].key
        await asyncio.sleep(20.0)  # C and B have not shared keys before
        (new,) = await world.node("C").delivery.issue(SaeId("A1"), IssueRequest(SaeId("B1")))
        assert (await fetch(world, "B1", "A1", [new.key_id]))[0].key == new.key
        await world.stop_all()

    run(story())


def test_keys_of_an_initiator_that_moved_do_not_wait_for_the_node_that_never_issued_them() -> None:
    async def story() -> None:
        world, b = await started(MOVES), NodeId("B")
        old = await issue(world, "A1", "B1", number=2)
        await _install(world, 2, _with_saes_at(MOVES, A1="C"))
        await world.crash(NodeId("C"))
        copy, anchor = world.machines[b].copy(), world.machines[b].anchor.recall()
        await world.crash(b)
        world.restore_whole(b, copy, anchor)  # with all it knew, at another place
        await world.start(b)
        with pytest.raises(UnavailableError, match="has not met node"):
            await fetch(world, "B1", "A1", [old[0].key_id])
        await asyncio.sleep(8.0)
        (key,) = await fetch(world, "B1", "A1", [old[0].key_id])
        assert key.key == old[0].key
        with pytest.raises(UnavailableError, match="has not met node C"):  # it may have issued what A did not
            await fetch(world, "B1", "A1", [uuid4()])
        await world.stop_all()

    run(story())


def test_an_sae_that_moved_and_lost_its_rule_gets_nothing_where_it_was() -> None:
    async def story() -> None:
        world = await started(MOVES)
        (old,) = await issue(world, "A1", "B1")
        moved = _with_saes_at(MOVES, B1="C")
        await _install(world, 2, _changed(moved, rules=MOVES.rules[1:]))
        with pytest.raises(UnauthorisedError):
            await fetch(world, "B1", "A1", [old.key_id])
        await world.stop_all()

    run(story())


def test_a_rule_taken_away_ends_issuing_and_fetching_and_an_old_book_is_refused() -> None:
    async def story() -> None:
        world = await started(TWO)
        old = world.book
        (key,) = await issue(world, "A1", "B1")
        await _install(world, 2, _changed(TWO, rules=TWO.rules[1:]))
        with pytest.raises(UnauthorisedError):
            await issue(world, "A1", "B1")
        with pytest.raises(UnauthorisedError):
            await fetch(world, "B1", "A1", [key.key_id])
        with pytest.raises(Exception, match="not newer"):
            await world.node("A").books.install(old)
        await judged(world, ("A2", "B2"))

    run(story())


# --- provenance


def test_both_ends_explain_a_key_alike_also_when_its_segment_is_long_gone() -> None:
    async def story() -> None:
        world = await started(CHAIN)
        keys = await issue(world, "A1", "C1", number=3)
        await fetch(world, "C1", "A1", [keys[0].key_id])
        one = await node_of(world, "A1").explain.key(keys[0].key_id)
        other = await node_of(world, "C1").explain.key(keys[0].key_id)
        assert (one.segment, one.segment_digest) == (other.segment, other.segment_digest)
        assert one.segment.known_to == ("B",)
        assert [event.kind for event in (*one.events, *other.events)] == ["issued", "delivered"]
        assert not (await node_of(world, "C1").explain.key(keys[1].key_id)).events  # known, and not yet fetched
        for _ in range(40):
            more = await issue(world, "A1", "C1", number=4)
            await fetch(world, "C1", "A1", [key.key_id for key in more])
            await asyncio.sleep(1.0)
        await fetch(world, "C1", "A1", [key.key_id for key in keys[1:]])
        await asyncio.sleep(30.0)
        for sae in ("A1", "C1"):
            node = node_of(world, sae)
            assert one.segment.segment not in node.pools.ready_segments("C" if sae == "A1" else "A")
            assert (await node.explain.key(keys[0].key_id)).segment == one.segment
        for node in ("A", "B"):
            with pytest.raises(UnknownKeyError):
                await world.node(node).explain.key(uuid4())
        await world.stop_all()

    run(story())


def test_exposed_lists_exactly_the_keys_whose_strands_the_relay_saw() -> None:
    async def story() -> None:
        world = await started(CHAIN)
        start = world.clock.now()
        through = await issue(world, "A1", "C1", number=3)
        direct = await issue(world, "A1", "B1", number=2)
        plain = await issue(world, "A2", "C2", wishes=Wishes(recipe="exchange-catkdf"))
        await asyncio.sleep(1.0)
        end = Nanoseconds(world.clock.now())
        await asyncio.sleep(1.0)
        later = await issue(world, "A1", "C1")
        node = world.node("A")
        exposed = (await node.exposures.page(NodeId("B"), since=start, until=end)).found
        slots = {(one.segment.segment, slot) for one in exposed for slot in one.event.record.slots}
        assert len(slots) == 3
        for key in through:
            told = await node.explain.key(key.key_id)
            assert {(told.segment.segment, slot) for slot in told.events[0].record.slots} <= slots
        for key in (*direct, *plain, *later):
            told = await node.explain.key(key.key_id)
            assert not {(told.segment.segment, slot) for slot in told.events[0].record.slots} & slots
        assert not (await node.exposures.page(NodeId("C"), since=start, until=end)).found
        await world.stop_all()

    run(story())


# --- fetching


def test_a_key_not_fetched_in_its_lifetime_is_gone_and_so_are_its_strands() -> None:
    policies = tuple(
        Policy(one.name, one.ladder, key_lifetime_s=30) if one.name == "default" else one for one in TWO.policies
    )

    async def story() -> None:
        world = World(_changed(TWO, policies=policies, rules=TWO.rules[:1]), seed=4, settings=SMALL)
        await world.start_all()
        await world.until_ready()
        keys = await issue(world, "A1", "B1", number=2)
        await asyncio.sleep(20.0)
        await fetch(world, "B1", "A1", [keys[0].key_id])
        await asyncio.sleep(20.0)
        with pytest.raises(UnknownKeyError):
            await fetch(world, "B1", "A1", [keys[1].key_id])
        await judged(world, ("A1", "B1"))

    run(story())


def test_bad_key_ids_consume_nothing_and_say_no_more_than_they_must() -> None:
    async def story() -> None:
        world = await started(TWO)
        first, second = await issue(world, "A1", "B1", number=2)
        (other,) = await issue(world, "A2", "B2")
        for key_ids in (
            [uuid4()],
            [UUID(int=0)],
            [first.key_id, uuid4()],
            [first.key_id, first.key_id],
            [UUID(int=first.key_id.int ^ 1)],
        ):
            with pytest.raises(UnknownKeyError):
                await fetch(world, "B1", "A1", key_ids)
        with pytest.raises(UnauthorisedError):
            await fetch(world, "B1", "A1", [first.key_id, other.key_id])  # another pair's
        with pytest.raises(UnauthorisedError):
            await fetch(world, "B2", "A1", [first.key_id])  # the right initiator, the wrong target
        with pytest.raises(UnauthorisedError):
            await fetch(world, "B1", "A2", [first.key_id])  # no rule joins them
        with pytest.raises(UnauthorisedError):
            await fetch(world, "A1", "B1", [first.key_id])  # the initiator itself
        with pytest.raises(InvalidRequestError):
            await fetch(world, "B1", "A1", [uuid4() for _ in range(129)])
        got = await fetch(world, "B1", "A1", [second.key_id, first.key_id])
        assert [key.key for key in got] == [second.key, first.key]  # in the order asked, and nothing was lost
        with pytest.raises(UnknownKeyError):
            await fetch(world, "B1", "A1", [first.key_id])
        await judged(world, ("A1", "B1"))

    run(story())


def test_whoever_guesses_key_ids_is_slowed_down_alone() -> None:
    async def story() -> None:
        world = await started(TWO)
        (key,) = await issue(world, "A1", "B1")
        for _ in range(200):
            with pytest.raises(UnknownKeyError):
                await fetch(world, "B1", "A1", [uuid4()])
        with pytest.raises(UnavailableError, match="too many unknown"):
            await fetch(world, "B1", "A1", [key.key_id])
        (other,) = await issue(world, "A2", "B2")
        assert await fetch(world, "B2", "A2", [other.key_id])
        await asyncio.sleep(1.0)
        assert (await fetch(world, "B1", "A1", [key.key_id]))[0].key == key.key
        await world.stop_all()

    run(story())


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"size": Bits(0)}, "positive"),
        ({"size": Bits(65)}, "multiple of 8"),
        ({"size": Bits(8)}, "min_key_size 64"),
        ({"size": Bits(8_192)}, "max_key_size 4096"),
        ({"number": 0}, "1 to max_key_per_request 128"),
        ({"number": 129}, "1 to max_key_per_request 128"),
        ({"additional_targets": tuple(f"X{n}" for n in range(9))}, None),
        ({"additional_targets": ("B1",)}, "twice"),
    ],
)
def test_requests_outside_the_limits_are_refused_with_the_limits(wanted, words) -> None:
    async def story() -> None:
        world = await started(TWO)
        refusal = UnauthorisedError if words is None else InvalidRequestError
        with pytest.raises(refusal, match=words or "policy book"):
            await issue(world, "A1", "B1", **wanted)
        await world.stop_all()

    run(story())


def test_every_recipe_of_the_ring_gives_both_ends_the_same_key() -> None:
    async def story() -> None:
        world = await started(ring())
        for one, other, size in (("A1", "B1", 256), ("B1", "D1", 1_000), ("A2", "D2", 256), ("C1", "D1", 4_096)):
            for caller, target in ((one, other), (other, one)):
                keys = await issue(world, caller, target, number=2, size=Bits(size))
                got = await fetch(world, target, caller, [key.key_id for key in keys])
                assert [key.key for key in got] == [key.key for key in keys]
                assert all(len(key.key) * 8 == size for key in keys)
        (local,) = await issue(world, "A1", "A2")
        assert local.facts.recipe == "local"
        assert (await fetch(world, "A2", "A1", [local.key_id]))[0].key == local.key
        await judged(world, ("A1", "B1"), ("B1", "D1"), ("A2", "D2"), ("A1", "A2"))

    run(story())
