"""A sealer that cannot open anything for a while, as where the node key's token was taken out: nothing is dropped."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from tests.simulation.acts import judged
from tests.simulation.networks import network

from trenza.base.errors import StoreUnavailableError
from trenza.base.names import NodeId
from trenza.base.secret import Secret
from trenza.kms.ports import Sealed
from trenza.lab.loop import run
from trenza.lab.story import SMALL
from trenza.lab.world import World

STOCKED = replace(SMALL, stock_target=240, link_target_units=1_024)  # more than the windows that a crash gives up


async def away(sealed: Sealed, *, associated: bytes) -> Secret:
    raise StoreUnavailableError("the token is away")


def test_segments_that_cannot_be_opened_for_a_while_are_kept(monkeypatch) -> None:
    async def story() -> None:
        world = World(network("AB", "AB", {"A1 B1": "default"}), seed=7, settings=STOCKED)
        await world.start_all()
        await world.until_ready(within=60.0)
        await world.crash(NodeId("A"))
        await world.start(NodeId("A"))  # nothing is open yet but the ID keys
        node, peer = world.node("A"), NodeId("B")
        kept = node.pools.ready_segments(peer)
        assert kept
        with monkeypatch.context() as taken_out:
            taken_out.setattr(node.ctx.sealer, "unseal", away)
            await asyncio.sleep(20.0)
            assert node.pools.issuable(peer, full=True) == 0
            assert any("token" in trouble for trouble in node.troubles.values())
            assert set(kept) <= set(node.pools.ready_segments(peer))
        await world.until_ready(within=60.0)
        await judged(world, ("A1", "B1"))

    run(story())
