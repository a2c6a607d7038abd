"""The short way of a request that comes again and again: as right as the long one, and never longer."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from tests.simulation.acts import fetch, issue, node_of, started
from tests.simulation.networks import network

from trenza.base.errors import UnauthorisedError, UnavailableError
from trenza.base.names import NodeId, SaeId
from trenza.core.delivery import IssueRequest
from trenza.core.plan import KeyPlan
from trenza.core.segment import OpenSegment
from trenza.core.strand import STRAND_BYTES, Origin
from trenza.core.window import IssuerWindow
from trenza.kms import issuing
from trenza.kms.orders import Order
from trenza.lab.loop import run
from trenza.lab.world import World

TWO = network("AB", "AB", {"A1 B1": "default", "A1 A2": "local"})
A, B = NodeId("A"), NodeId("B")


def order_of(world: World) -> Order:
    order = node_of(world, "A1").delivery.order(SaeId("A1"), IssueRequest(SaeId("B1"), tls_group="lab"))
    assert order is not None
    return order


def strands_of(world: World, order: Order) -> tuple[IssuerWindow, OpenSegment]:
    """Return the window that an order draws on, and its strands."""
    window = order._lane._window
    assert window is not None
    return window, node_of(world, "A1").pools.strands.open_segment(B, window.facts.record.segment)


async def ready() -> tuple[World, Order]:
    """Return a world in which something is in hand, and an order."""
    world = await started(TWO)
    await issue(world, "A1", "B1")
    await asyncio.sleep(1.0)
    return world, order_of(world)


def test_what_an_order_gives_is_fetched_at_the_other_end_and_explained_at_both() -> None:
    async def story() -> None:
        world, order = await ready()
        keys = [*order.serve(1), *order.serve(3)]
        assert len({fresh.number for fresh in keys}) == 4
        got = await fetch(world, "B1", "A1", [UUID(int=fresh.number) for fresh in keys])
        assert [bytes(key.key.view()) for key in got] == [bytes(fresh.key) for fresh in keys]
        told = await node_of(world, "A1").explain.key(UUID(int=keys[2].number))
        assert [event.kind for event in told.events] == ["issued"]
        assert len(told.events[0].record.slots) == 1, "of the others in its entry nothing is said"
        await world.stop_all()
        assert world.failures == {}

    run(story())


def test_pairs_that_take_turns_at_a_window_share_what_is_prepared_and_each_gets_its_own_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[tuple[object, ...]] = []
    plan = issuing.KeyPlan

    def counted(*given: Any, **named: Any) -> KeyPlan:
        made.append(given)
        return plan(*given, **named)

    monkeypatch.setattr(issuing, "KeyPlan", counted)

    async def story() -> None:
        pairs = [("A1", "B1"), ("A2", "B1"), ("A1", "B2"), ("A2", "B2")]
        world = await started(network("AB", "AB", {f"{one} {other}": "default" for one, other in pairs}))
        for one, other in pairs:
            await issue(world, one, other)
        await asyncio.sleep(1.0)
        door = node_of(world, "A1").delivery
        for _ in range(3):
            for one, other in pairs:
                order = door.order(SaeId(one), IssueRequest(SaeId(other), tls_group="lab"))
                assert order is not None
                (fresh,) = order.serve(1)
                (key,) = await fetch(world, other, one, [UUID(int=fresh.number)])
                assert bytes(key.key.view()) == bytes(fresh.key)
                told = await node_of(world, one).explain.key(UUID(int=fresh.number))
                assert [(event.record.initiator, event.record.target) for event in told.events] == [(one, other)]
        assert len(made) == len({segment for segment, *_ in made}), "once for each window, not for each pair"
        await world.stop_all()
        assert world.failures == {}

    run(story())


def test_an_order_waits_for_nothing() -> None:
    async def story() -> None:
        world, order = await ready()
        served = 0
        while some := order.serve(7):
            served += len(some)
            assert served < 1_000
        assert order.serve(1) == []
        await issue(world, "A1", "B1")  # the long way brings more into hand
        assert len(order.serve(1)) == 1
        await world.stop_all()

    run(story())


def test_a_dead_strand_costs_one_slot_and_none_of_the_keys_that_are_made_with_it() -> None:
    async def story() -> None:
        world, order = await ready()
        keys = order.serve(1)
        window, strands = strands_of(world, order)
        first = window.next
        strands._dead = frozenset({strands._starts[Origin.QKD] + (first + 2) * STRAND_BYTES})
        keys += order.serve(5)
        assert len(keys) == 6
        assert window.next == first + 6
        got = await fetch(world, "B1", "A1", [UUID(int=fresh.number) for fresh in keys])
        assert [bytes(key.key.view()) for key in got] == [bytes(fresh.key) for fresh in keys]
        strands._dead = frozenset(range(STRAND_BYTES * 100_000))
        with pytest.raises(ValueError, match="all zeros"):
            order.serve(1)
        await world.stop_all()

    run(story())


def test_what_stops_an_order_midway_takes_back_none_of_the_keys_that_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        world, order = await ready()
        keys = order.serve(1)
        window, _ = strands_of(world, order)
        in_hand = window.reserved - window.next

        def gone(*_: object, **__: object) -> None:
            raise UnavailableError("the strands of this key are gone")

        monkeypatch.setattr(node_of(world, "A1").issuing, "window_in_hand", gone)
        keys += order.serve(in_hand + 3)
        assert len(keys) == 1 + in_hand
        assert all(any(fresh.key) for fresh in keys)
        with pytest.raises(UnavailableError):
            order.serve(1)
        got = await fetch(world, "B1", "A1", [UUID(int=fresh.number) for fresh in keys[-3:]])
        assert [bytes(key.key.view()) for key in got] == [bytes(fresh.key) for fresh in keys[-3:]]
        await world.stop_all()

    run(story())


def test_an_order_ends_with_its_lease_its_session_and_its_book() -> None:
    async def story() -> None:
        world, order = await ready()
        assert order.serve(1) != []
        world.network.cut ^= {frozenset((A, B))}
        await asyncio.sleep(world.settings.lease + 1.0)
        assert order.serve(1) == [], "the lease is over"
        world.network.cut.clear()
        await asyncio.sleep(5.0)
        await issue(world, "A1", "B1")
        assert order.serve(1) != []
        node = node_of(world, "A1")
        node.sessions.end(B)
        assert order.serve(1) == []
        await node.books.install(world.sign_book(version=2))
        assert not order.is_good
        await world.stop_all()

    run(story())


def test_no_order_is_taken_for_what_takes_round_trips_or_is_not_allowed() -> None:
    async def story() -> None:
        world = await started(TWO)
        delivery = node_of(world, "A1").delivery
        for request in (
            IssueRequest(SaeId("A2")),
            IssueRequest(SaeId("B1"), number=2),
            IssueRequest(SaeId("B1"), additional_targets=(SaeId("A2"),)),
        ):
            assert delivery.order(SaeId("A1"), request) is None
        with pytest.raises(UnauthorisedError):
            delivery.order(SaeId("A2"), IssueRequest(SaeId("B1")))
        await world.stop_all()

    run(story())


def test_a_crash_before_the_journal_was_written_leaves_keys_that_are_doubtful_and_explained() -> None:
    async def story() -> None:
        world, order = await ready()
        (fresh,) = order.serve(1)
        key_id = UUID(int=fresh.number)
        await world.crash(A)
        await world.start(A)
        await asyncio.sleep(8.0)
        told = await world.node("A").explain.key(key_id)
        assert [event.kind for event in told.events] == ["doubtful"]
        assert told.segment is not None
        assert world.node("A").ctx.counters["slots_doubtful"] >= 1
        (got,) = await fetch(world, "B1", "A1", [key_id])
        assert bytes(got.key.view()) == bytes(fresh.key)
        await world.stop_all()

    run(story())
