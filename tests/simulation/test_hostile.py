"""What a dishonest partner node can do to an honest one: refuse to serve its own pairs, and no more (decision 13)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from tests.simulation.networks import network

from trenza.base.errors import UnknownKeyError
from trenza.base.names import NodeId, SaeId
from trenza.base.units import Bits
from trenza.core.recipe import HYBRID_CATKDF, QKD_ONLY, Recipe
from trenza.kms.slots import Pair
from trenza.lab.loop import run
from trenza.lab.story import SMALL
from trenza.lab.world import World
from trenza.wire.peer import Beat, Hello, Knock, PeerMessage, StockMark, Superseded, WindowMark

A, B = NodeId("A"), NodeId("B")
A1, B1 = SaeId("A1"), SaeId("B1")


async def started() -> World:
    world = World(network("AB", "AB", {"A1 B1": "default"}), seed=1, settings=SMALL)
    await world.start_all()
    await world.until_ready(within=60.0)
    return world


def answers(world: World, name: NodeId, say: Callable[[PeerMessage], PeerMessage | None]) -> None:
    """Let a node answer with what `say` makes of a request, and honestly where that is None."""
    honest = world.network.handlers[name]

    async def handle(peer: NodeId, message: PeerMessage) -> PeerMessage:
        return say(message) or await honest(peer, message)

    world.network.handlers[name] = handle


def test_a_life_is_not_ended_by_showing_it_to_itself() -> None:
    async def story() -> None:
        world = await started()
        node = world.node(A)
        held, life = node.pools.ready_segments(B), node.ctx.presence
        answers(world, B, lambda said: Superseded(said.presence) if isinstance(said, Hello | Knock) else None)
        node.sessions.end(B)
        await asyncio.sleep(10.0)
        assert node.ctx.presence == life
        assert node.pools.ready_segments(B) == held
        assert node.ctx.counters["lives_superseded"] == 0
        assert node.ctx.counters["lives_unproved"] > 0
        await world.stop_all()

    run(story())


def test_demand_that_a_peer_claims_does_not_fill_the_disk() -> None:
    async def story() -> None:
        world = await started()
        node = world.node(A)
        session = node.ctx.session(B).id
        for _ in range(60):
            mark = StockMark(0, 0, 1e12, 1e12)
            await node.handle(B, Beat(session, (), mark, node.ctx.book.version))
            await asyncio.sleep(1.0)
        slots = sum(one.facts.record.slots for one in node.pools.pair(B).segments.values())
        assert slots <= 4 * 16 * SMALL.stock_target  # two kinds, two directions, sixteen times the target each
        await world.stop_all()

    run(story())


def test_void_marks_outside_a_window_are_not_kept() -> None:
    async def story() -> None:
        world = await started()
        node = world.node(A)
        number, window = next(iter(node.pools.pair(B).held.items()))
        session = node.ctx.session(B).id
        mark = WindowMark(number, 1, (window.first, *range(100_000, 101_000)))
        await node.handle(B, Beat(session, (mark,), StockMark(0, 0, 0.0, 0.0), node.ctx.book.version))
        assert window.void <= set(range(window.first, window.first + window.count))
        await world.stop_all()

    run(story())


@pytest.mark.parametrize(("recipe", "delivered"), [(HYBRID_CATKDF, True), (QKD_ONLY, False)])
def test_the_target_s_node_refuses_a_recipe_outside_the_policy(recipe: Recipe, delivered: bool) -> None:
    async def story() -> None:
        world = await started()
        issuer, book = world.node(A), world.node(A).ctx.book
        policy = book.policy_between(A1, B1)
        assert policy is not None
        assert [rung.name for rung in policy.recipes][:1] == ["hybrid-catkdf"]
        pair = Pair(book.sae_by_name[A1], book.sae_by_name[B1], policy)
        (key,) = await issuer.slots.issue(
            pair, recipe, number=1, size=Bits(256), accept=lambda _facts: True, tls_group=""
        )
        if delivered:
            (same,) = await world.node(B).delivery.fetch(B1, A1, [key.key_id], tls_group="")
            assert same.key == key.key
        else:
            with pytest.raises(UnknownKeyError):
                await world.node(B).delivery.fetch(B1, A1, [key.key_id], tls_group="")
            assert world.node(B).ctx.counters["keys_outside_policy"] == 1
        await world.stop_all()

    run(story())
