"""Sessions made while keys are asked for: a key that one end issued, the other finds at once."""

from __future__ import annotations

import asyncio

import pytest
from tests.simulation.networks import network

from trenza.base.names import NodeId, SaeId
from trenza.core.delivery import IssueRequest
from trenza.lab.history import violations
from trenza.lab.loop import run
from trenza.lab.story import SMALL, Client
from trenza.lab.world import World
from trenza.wire.peer import Hello, PeerMessage

A, B = NodeId("A"), NodeId("B")  # A leads
A1, B1 = SaeId("A1"), SaeId("B1")
PAUSE_S = 0.4  # between requests: the small stock outlasts a session's end


async def asked_at_both_ends(world: World, *, seconds: float) -> int:
    """Let each end issue and the other fetch at once, again and again; return how many keys it were."""
    client, count = Client(world), 0
    for _ in range(int(seconds / PAUSE_S)):
        for initiator, target in ((A1, B1), (B1, A1)):
            for key in await client.issue(initiator, IssueRequest(target)):
                assert await client.fetch(target, initiator, [key.key_id]), f"{target} does not find {key.key_id}"
                count += 1
        await asyncio.sleep(PAUSE_S)
    return count


def slow_to_say_hello(world: World, *, seconds: float, lost: bool = False) -> None:
    """Let the follower's answer to a hello take its time on the wire, or never arrive."""
    answer = world.network.handlers[B]

    async def slow(peer: NodeId, message: PeerMessage) -> PeerMessage:
        answered = await answer(peer, message)
        if isinstance(message, Hello):
            await asyncio.sleep(seconds)
            if lost:
                world.network.handlers[B] = answer  # the next one arrives
                await asyncio.Event().wait()
        return answered

    world.network.handlers[B] = slow


@pytest.mark.parametrize("lost", [False, True], ids=["late", "lost"])
def test_a_follower_whose_answer_is_late_or_lost_issues_what_the_leader_finds(lost) -> None:
    async def story() -> None:
        world = World(network("AB", "AB", {"A1 B1": "default"}), seed=1, settings=SMALL)
        await world.start_all()
        await world.until_ready(within=60.0)
        await world.crash(A)  # when the leader comes back, it says hello
        slow_to_say_hello(world, seconds=2.0, lost=lost)
        await world.start(A)
        assert await asked_at_both_ends(world, seconds=40.0) > 100
        await world.stop_all()
        assert world.failures == {}
        assert violations(world.history) == []

    run(story())


def test_keys_go_on_being_issued_while_two_living_nodes_renew_their_session() -> None:
    async def story() -> None:
        world = World(network("AB", "AB", {"A1 B1": "default"}), seed=1, settings=SMALL)
        await world.start_all()
        await world.until_ready(within=60.0)
        slow_to_say_hello(world, seconds=2.0)
        renewing = asyncio.create_task(world.node("A").sessions.open(B))
        assert await asked_at_both_ends(world, seconds=1.6) > 4, "one end, or both, and no end in vain"
        assert not renewing.done()
        await renewing
        await world.until_ready(within=60.0)
        assert await asked_at_both_ends(world, seconds=8.0) == 40
        await world.stop_all()
        assert world.failures == {}
        assert violations(world.history) == []

    run(story())
