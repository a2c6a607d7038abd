"""A secret installed by hand at both ends of a pair: what it proves, and against whom (design decision 8).

The adversary here signs in a node's name, as one can who broke the certificate authority.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from msgspec.structs import replace
from tests.simulation.acts import fetch, issue, judged, node_of
from tests.simulation.networks import network

from trenza.base.errors import NotEnoughKeyError, UnavailableError
from trenza.base.names import NodeId
from trenza.base.secret import Secret
from trenza.core.exchange import NO_ROOT, answer_message, offer_message, root_tag
from trenza.core.provenance import SegmentRecord
from trenza.kms.node import Node
from trenza.lab.loop import run
from trenza.lab.machine import Machine
from trenza.lab.network import Handler
from trenza.lab.plan import SMALL
from trenza.lab.standins import LabAgreement, SeededEntropy
from trenza.lab.world import World
from trenza.wire.peer import (
    ExchangeAnswer,
    ExchangeOffer,
    Hello,
    HelloAnswer,
    PeerMessage,
    Presence,
    RootReset,
    canonical,
    life_message,
)

A, B = NodeId("A"), NodeId("B")
TWO = network("AB", "AB", {"A1 B1": "default"})
SECRET, ANOTHER = bytes(range(48)), bytes(range(1, 49))
BOTH = {(A, B): SECRET, (B, A): SECRET}
NOT_THE_ROOT = "not authenticated under this pair's end-to-end root"


async def begun(preshared: Mapping[tuple[NodeId, NodeId], bytes], *, ready: bool = True) -> World:
    world = World(TWO, seed=3, settings=SMALL, preshared=preshared)
    await world.start_all()
    if ready:
        await world.until_ready()
    return world


async def provenance(world: World) -> SegmentRecord:
    """Issue a key, fetch it, and return what both ends tell of its strands."""
    (key,) = await issue(world, "A1", "B1", number=1)
    assert [one.key for one in await fetch(world, "B1", "A1", [key.key_id])] == [key.key]
    told = [await node_of(world, sae).explain.key(key.key_id) for sae in ("A1", "B1")]
    assert told[0].segment_digest == told[1].segment_digest
    assert told[0].segment is not None
    return told[0].segment


async def troubles(node: Node, *, seconds: int) -> str:
    """Return all that the leader's upkeep of the pair says in that time."""
    said: set[str] = set()
    for _ in range(4 * seconds):
        await asyncio.sleep(0.25)
        said.add(node.troubles.get(f"lead {B}", ""))
    return " | ".join(sorted(said))


def in_session(machine: Machine, peer: NodeId) -> bool:
    assert machine.node is not None
    return peer in machine.node.ctx.sessions


@pytest.mark.parametrize(
    ("preshared", "root", "bootstrap"),
    [(BOTH, ("ml-dsa-65", "root-preshared"), "preshared"), ({}, ("ml-dsa-65", "root-continuity"), "computational")],
    ids=["installed", "not installed"],
)
def test_provenance_says_whether_a_secret_was_installed(preshared, root, bootstrap) -> None:
    async def story() -> None:
        world = await begun(preshared)
        segment = await provenance(world)
        assert segment.lineage.authentication == root
        assert [hop.bootstrap for hop in segment.hops] == [bootstrap]
        await judged(world, ("A1", "B1"))

    run(story())


@pytest.mark.parametrize(
    "preshared",
    [{(A, B): SECRET}, {(B, A): SECRET}, {(A, B): SECRET, (B, A): ANOTHER}],
    ids=["leader only", "follower only", "unequal"],
)
def test_ends_that_do_not_have_the_same_secret_open_no_session_and_say_why(preshared) -> None:
    async def story() -> None:
        world = await begun(preshared, ready=False)
        assert NOT_THE_ROOT in await troubles(world.node(A), seconds=30)
        for name in (A, B):
            assert world.node(name).ctx.counters["sessions_opened"] == 0
        for caller, target in (("A1", "B1"), ("B1", "A1")):
            with pytest.raises(NotEnoughKeyError):
                await issue(world, caller, target)
        await world.stop_all()
        assert world.failures == {}

    run(story())


def test_a_secret_installed_later_takes_the_place_of_a_root_that_only_certificates_vouched_for() -> None:
    async def story() -> None:
        world = await begun({})
        world.preshared = dict(BOTH)
        for name in (A, B):
            await world.crash(name)
            await world.start(name)
        await asyncio.sleep(20.0)
        assert [world.node(name).exchanges.root(peer).preshared for name, peer in ((A, B), (B, A))] == [True, True]
        await judged(world, ("A1", "B1"))

    run(story())


@pytest.mark.parametrize("forged", [A, B], ids=["leader", "follower"])
def test_a_forged_identity_opens_no_session_where_a_secret_was_installed(forged) -> None:
    async def story() -> None:
        world = await begun(BOTH)
        victim = B if forged == A else A
        await world.crash(forged)
        impostor = await world.start_impostor(forged)
        opened = world.node(victim).ctx.counters["sessions_opened"]
        assert impostor.node is not None
        leader = impostor.node if forged == A else world.node(victim)
        assert NOT_THE_ROOT in await troubles(leader, seconds=60)
        assert not in_session(impostor, victim)
        assert world.node(victim).ctx.counters["sessions_opened"] == opened
        await world.stop_impostor(impostor)
        await world.start(forged)
        await judged(world, ("A1", "B1"))  # and it left nothing behind

    run(story())


@pytest.mark.parametrize("forged", [A, B], ids=["leader", "follower"])
def test_without_an_installed_secret_a_forged_identity_stands_in_the_pair_after_a_root_reset(forged) -> None:
    """The residual risk that docs/threat-model.md tells of, and the positive control of the test before."""

    async def story() -> None:
        world = await begun({})
        victim = B if forged == A else A
        await world.crash(forged)
        impostor = await world.start_impostor(forged)
        opened = world.node(victim).ctx.counters["sessions_opened"]
        await asyncio.sleep(60.0)
        assert in_session(impostor, victim)
        assert in_session(world.machines[victim], forged)
        assert world.node(victim).ctx.counters["sessions_opened"] > opened
        await world.stop_impostor(impostor)
        await world.stop_all()
        assert world.failures == {}

    run(story())


def forger(world: World) -> Handler:
    """Return a follower who checks nothing, signs as B, and tags everything under the root of who has no secret."""
    nonce = bytes(range(16))
    life = Presence(99, 1, nonce, world.notary.tag(B, life_message(B, Presence(99, 1, nonce))))
    agreement = LabAgreement(SeededEntropy("forger"))

    async def answer(peer: NodeId, message: PeerMessage) -> PeerMessage:
        if not isinstance(message, Hello):
            raise UnavailableError("it only wants a session")
        if not message.root_reset:
            return RootReset(life)
        bare = replace(message, exchange=ExchangeOffer(b"", b"", 0, b"", b""))
        public, _, _ = agreement.answer(message.exchange.public)
        offer = offer_message(
            peer, B, message.exchange.exchange_id, 0, message.exchange.public, context=canonical(bare)
        )
        partial = HelloAnswer(life, None, (), (), ExchangeAnswer(b"", b"", b""))
        said = answer_message(offer, public, context=canonical(partial))
        tag = root_tag(Secret.of(NO_ROOT), said)
        return replace(partial, exchange=ExchangeAnswer(public, tag, world.notary.tag(B, said)))

    return answer


@pytest.mark.parametrize(("preshared", "opens"), [(BOTH, False), ({}, True)], ids=["installed", "not installed"])
def test_a_forger_who_claims_a_lost_root_and_checks_nothing_is_stopped_by_an_installed_secret_alone(
    preshared, opens
) -> None:
    async def story() -> None:
        world = await begun(preshared)
        opened = world.node(A).ctx.counters["sessions_opened"]
        await world.crash(B)
        world.network.handlers[B] = forger(world)
        said = await troubles(world.node(A), seconds=60)
        assert (world.node(A).ctx.counters["sessions_opened"] > opened) is opens
        assert (NOT_THE_ROOT in said) is not opens
        await world.stop_all()
        assert world.failures == {}

    run(story())
