"""Nodes that go back in time, or live twice: what they may not do (design decision 8)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import msgspec
import pytest
from tests.simulation.networks import network

from trenza.base.errors import AuthenticationError, PeerUnavailableError, TrenzaError, UnavailableError
from trenza.base.names import NodeId, SaeId
from trenza.base.units import Seconds
from trenza.core.delivery import DeliveredKey, IssueRequest
from trenza.lab.client import Client
from trenza.lab.disk import DeathAt
from trenza.lab.history import Sent, WentBack, violations
from trenza.lab.loop import run
from trenza.lab.machine import Copy
from trenza.lab.plan import SMALL
from trenza.lab.world import World
from trenza.wire.peer import Done, Knock, Presence, Reached, life_message

A, B = NodeId("A"), NodeId("B")
A1, B1 = SaeId("A1"), SaeId("B1")


def two_nodes(seed: int = 1) -> World:
    return World(network("AB", "AB", {"A1 B1": "default"}), seed=seed, settings=SMALL)


async def started(seed: int = 1) -> World:
    world = two_nodes(seed)
    await world.start_all()
    await world.until_ready(within=60.0)
    return world


async def issued(world: World, number: int, *, caller: SaeId = A1, target: SaeId = B1) -> list[DeliveredKey]:
    return await Client(world).issue(caller, IssueRequest(target, number=number))


async def fetched(
    world: World, keys: Sequence[DeliveredKey], *, caller: SaeId = B1, initiator: SaeId = A1
) -> list[DeliveredKey]:
    return await Client(world).fetch(caller, initiator, [key.key_id for key in keys])


async def judged(world: World) -> None:
    """See that everything works again and that the history breaks no rule."""
    await asyncio.sleep(30.0)
    await world.until_ready(within=60.0)
    for caller, target in ((A1, B1), (B1, A1)):
        keys = await issued(world, 2, caller=caller, target=target)
        assert len(await fetched(world, keys, caller=target, initiator=caller)) == 2
    await world.stop_all()
    assert world.failures == {}
    assert violations(world.history) == []


async def go_back(world: World, names: Sequence[NodeId], *, anchors_lost: bool) -> list[DeliveredKey]:
    """Copy the directories, use many slots in both directions, then put the copies in place.

    Returns:
        The keys from B1 that A1 fetched in the time that is lost.
    """
    had: list[DeliveredKey] = []
    copies = {name: world.machines[name].copy() for name in names}
    for _ in range(4):
        for caller, target in ((A1, B1), (B1, A1)):
            keys = await issued(world, 7, caller=caller, target=target)
            got = await fetched(world, keys[:4], caller=target, initiator=caller)
            had += got if target == A1 else []
        await asyncio.sleep(2.0)
    for name in names:
        await world.crash(name)
        world.restore(name, copies[name])
        if anchors_lost:
            world.lose_anchor(name)
    return had


@pytest.mark.parametrize("anchors_lost", [False, True], ids=["anchor intact", "anchor lost"])
@pytest.mark.parametrize("names", [(A,), (B,), (A, B)], ids=["A", "B", "both"])
def test_a_restored_node_issues_nothing_before_fresh_windows_and_never_a_used_slot(names, anchors_lost) -> None:
    async def story() -> None:
        world = await started()
        await go_back(world, names, anchors_lost=anchors_lost)
        for name in names:
            await world.start(name)
            node = world.node(name)
            other = B if name == A else A
            assert node.pools.issuable(other, full=True) == 0
            assert node.pools.ready_segments(other) == ()
            assert node.ctx.presence.epoch == 2
            assert node.ctx.counters["starts_from_a_copy"] == 1
        await judged(world)

    run(story())


def test_a_restored_node_hands_out_no_key_of_its_past() -> None:
    async def story() -> None:
        world = await started()
        keys = await issued(world, 3)
        copy = world.machines[B].copy()
        assert len(await fetched(world, keys)) == 3
        await world.crash(B)
        world.restore(B, copy)
        await world.start(B)
        assert await fetched(world, keys) == []
        await judged(world)

    run(story())


def test_a_restored_node_that_finds_a_newer_book_at_its_start_is_not_taken_for_whole() -> None:
    async def story() -> None:
        world = await started()
        await go_back(world, (A,), anchors_lost=False)
        world.sign_book(version=2)
        await world.start(A)  # it commits the book before anything else could be known of its past
        assert world.node("A").ctx.presence.epoch == 2
        await judged(world)

    run(story())


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("nth", range(1, 12))
def test_a_restored_node_that_dies_at_any_commit_of_its_start_still_drops_everything(nth, when) -> None:
    async def story() -> None:
        world = await started()
        had = await go_back(world, (A,), anchors_lost=False)
        machine = world.machines[A]
        machine.death = DeathAt(machine.commits + nth, when)
        await world.start(A)
        await asyncio.sleep(30.0)
        assert machine.node is None
        await world.start(A)
        for key in had:
            assert await fetched(world, [key], caller=A1, initiator=B1) == []
        await judged(world)

    run(story())


def test_a_restart_is_no_restore() -> None:
    async def story() -> None:
        world = await started()
        keys = await issued(world, 3)
        await world.crash(B)
        await world.start(B)
        assert world.node("B").ctx.presence.epoch == 1
        assert len(await fetched(world, keys)) == 3  # before any session
        await judged(world)

    run(story())


@pytest.mark.parametrize("name", [A, B])
def test_a_node_that_starts_again_at_the_same_place_waits_for_no_lease(name) -> None:
    async def story() -> None:
        world = await started()
        other = B if name == A else A
        pair = (A1, B1) if name == A else (B1, A1)
        before = await issued(world, 2, caller=pair[0], target=pair[1])
        await world.crash(name)
        await world.start(name)
        await asyncio.sleep(float(SMALL.lease) / 2)
        assert world.node(other).ctx.sessions[name].theirs.incarnation == 2
        keys = await issued(world, 2, caller=pair[0], target=pair[1])
        got = await fetched(world, [*before, *keys], caller=pair[1], initiator=pair[0])
        assert len(got) == 4
        await judged(world)

    run(story())


@pytest.mark.parametrize("anchor_copied", [False, True])
@pytest.mark.parametrize("name", [A, B])
def test_a_clone_beside_a_living_node_is_refused_until_the_lease_is_over(name, anchor_copied) -> None:
    async def story() -> None:
        world = await started()
        other = B if name == A else A
        clone = await world.start_clone(name, anchor_too=anchor_copied)
        before = world.node(other).ctx.sessions[name].theirs
        await asyncio.sleep(4.0)
        assert clone.node is not None
        assert other not in clone.node.ctx.sessions  # the original's lease runs on
        assert world.node(other).ctx.sessions[name].theirs == before
        await world.stop_clone(clone)
        await judged(world)

    run(story())


@pytest.mark.parametrize("anchor_copied", [False, True])
@pytest.mark.parametrize("name", [A, B])
def test_a_clone_that_takes_over_and_the_original_that_comes_back_never_share_a_slot(name, anchor_copied) -> None:
    async def story() -> None:
        world = await started()
        pair = (A1, B1) if name == A else (B1, A1)
        clone = await world.start_clone(name, anchor_too=anchor_copied)
        issuers: set[str] = set()
        for turn in range(6):
            world.attach((clone, world.machines[name])[turn % 2])  # the other is cut off and does not know it
            for _ in range(30):
                await asyncio.sleep(0.5)
                for machine in (world.machines[name], clone):
                    keys = await Client(world, at=machine).issue(pair[0], IssueRequest(pair[1], number=2))
                    await fetched(world, keys[:1], caller=pair[1], initiator=pair[0])
                    issuers |= {machine.tag} if keys else set()
        assert issuers == {"", "clone 1"}  # both did issue, each in its time
        await world.stop_clone(clone)
        await judged(world)

    run(story())


def test_an_original_that_is_cut_off_at_its_copy_sends_nothing_that_the_copy_does_not_know_of() -> None:
    async def story() -> None:
        world = await started()
        starting = asyncio.create_task(world.start_clone(A, anchor_too=True, cut_off=True))
        await asyncio.sleep(0)
        peers = world.machines[A].peers
        assert peers is not None
        for before in (True, False):  # the clone has loaded; it has been attached
            with pytest.raises(PeerUnavailableError):
                await peers.call(B, Knock(world.node(A).ctx.presence), timeout=Seconds(2.0))
            if before:
                clone = await starting
                assert A not in world.network.handlers
                world.attach(clone)
        await world.stop_clone(clone)
        await judged(world)

    run(story())


def later_life(world: World, name: NodeId) -> Presence:
    """Return a life of a node that comes after its present one, as a clone's would: the node signed it."""
    node = world.node(name)
    now = node.ctx.presence
    life = msgspec.structs.replace(now, incarnation=now.incarnation + 1, nonce=bytes(16))
    return msgspec.structs.replace(life, signature=node.ctx.signer.sign(life_message(name, life)))


@pytest.mark.parametrize("name", [A, B])
@pytest.mark.parametrize("turns", range(0, 42, 7))
def test_a_session_that_is_in_the_making_does_not_go_on_into_a_new_life(name, turns) -> None:
    async def story() -> None:
        world = await started()
        leader, node = world.node(A), world.node(name)
        leader.sessions.end(B)
        opening = asyncio.create_task(leader.sessions.open(B))
        for _ in range(turns):
            await asyncio.sleep(0.001)
        await node.life.begin_anew(after=later_life(world, name))
        with contextlib.suppress(TrenzaError):
            await opening
        for session in node.ctx.sessions.values():
            assert session.mine == node.ctx.presence
        await judged(world)

    run(story())


def test_a_later_life_that_several_peers_tell_of_at_once_ends_this_one_once() -> None:
    async def story() -> None:
        world = await started()
        node, after = world.node(A), later_life(world, A)
        await asyncio.gather(*(node.life.begin_anew(after=after) for _ in range(3)))
        assert node.ctx.presence.epoch == 2
        assert node.ctx.counters["lives_superseded"] == 1
        await judged(world)

    run(story())


@pytest.mark.parametrize("name", [A, B])
def test_an_original_that_starts_more_often_than_its_copy_is_told_from_it_all_the_same(name) -> None:
    async def story() -> None:
        world = await started()
        other = B if name == A else A
        clone = await world.start_clone(name, anchor_too=True, cut_off=True)
        world.attach(clone)
        await asyncio.sleep(15.0)
        assert clone.node is not None
        met = clone.node.ctx.presence
        assert world.node(other).ctx.sessions[name].theirs == met
        world.network.cut.add(frozenset((A, B)))
        await world.stop_clone(clone)
        for _ in range(3):
            await world.crash(name)
            await world.start(name)
        node = world.node(name)
        assert node.ctx.presence.incarnation > met.incarnation
        world.network.cut.clear()
        await judged(world)
        assert node.ctx.presence.epoch == 2

    run(story())


def test_a_request_that_comes_while_a_node_stops_begins_nothing_in_the_background() -> None:
    async def story() -> None:
        world = await started()
        node, main = world.node(A), world.machines[A].main
        assert main is not None
        main.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
            assert not node._refill(B, True, lambda _: True)
        await world.crash(A)
        await world.start(A)
        await judged(world)

    run(story())


def test_a_new_life_that_was_begun_is_finished_though_whoever_heard_of_it_waits_no_longer() -> None:
    async def story() -> None:
        world = await started()
        node, going_on = world.node("A"), asyncio.Event()
        drop, old = node.life.on_new, node.ctx.presence
        assert drop is not None

        async def slowly() -> None:
            going_on.set()
            await asyncio.sleep(1.0)
            await drop()

        node.life.on_new = slowly
        later = node.life._signed(msgspec.structs.replace(old, epoch=old.epoch + 1))
        hearing = asyncio.create_task(node.life.begin_anew(after=later))
        await going_on.wait()
        hearing.cancel()
        await asyncio.wait([hearing])
        assert node.life.is_past(old), "no session of it is made any more"
        await asyncio.sleep(2.0)
        assert node.ctx.presence.epoch > later.epoch
        await judged(world)

    run(story())


# --- counters: a copy that brought its anchor along


async def rewound(world: World, name: NodeId, copy: Copy, anchor: tuple[bytes, int] | None) -> None:
    """Put a snapshot of a whole virtual machine in place, and start it."""
    await world.crash(name)
    world.restore_whole(name, copy, anchor)
    await world.start(name)


@pytest.mark.parametrize("name", [A, B])
def test_a_machine_that_is_put_back_with_its_anchor_is_found_by_the_peer_that_heard_more(name) -> None:
    async def story() -> None:
        world = await started()
        caller, target = (B1, A1) if name == A else (A1, B1)  # keys that the node which goes back delivers
        keys = await issued(world, 3, caller=caller, target=target)
        copy, anchor = world.machines[name].copy(), world.machines[name].anchor.recall()
        assert len(await fetched(world, keys, caller=target, initiator=caller)) == 3
        await asyncio.sleep(2.0)
        await rewound(world, name, copy, anchor)
        node = world.node(name)
        assert node.ctx.presence.epoch == 1  # by itself it cannot tell
        assert await fetched(world, keys, caller=target, initiator=caller) == []
        assert node.ctx.counters["fetches_before_meeting"] == 1
        await judged(world)
        assert await fetched(world, keys, caller=target, initiator=caller) == []
        assert node.ctx.presence.epoch == 2
        assert node.ctx.counters["lives_superseded"] == 1

    run(story())


@pytest.mark.parametrize("name", [A, B])
def test_link_key_used_since_a_snapshot_is_not_used_again_by_it_even_where_the_message_was_lost(name) -> None:
    async def story() -> None:
        world = await started()
        node, other = world.node(name), B if name == A else A
        copy, anchor = world.machines[name].copy(), world.machines[name].anchor.recall()
        tell, is_told = node.relays.before_sending, asyncio.Event()
        assert tell is not None

        async def tells(peer: NodeId) -> None:
            await tell(peer)
            is_told.set()

        node.relays.before_sending = tells
        carrying = asyncio.create_task(node.relays.carry(bytes([7]) * 16, [NodeId(name), other], 4))
        await is_told.wait()
        await asyncio.sleep(0)  # it is on the wire
        await world.crash(name)
        carrying.cancel()
        assert any(isinstance(one, Sent) and one.message.segment == bytes([7]) * 16 for one in world.history.events)
        await rewound(world, name, copy, anchor)
        again = world.node(name)
        await judged(world)
        assert again.ctx.presence.epoch == 2

    run(story())


def test_a_machine_that_was_booted_delivers_what_another_issued_only_when_it_has_met_that_node() -> None:
    async def story() -> None:
        world = await started()
        keys = await issued(world, 3)
        await world.crash(B, power=True)
        world.network.cut.add(frozenset((A, B)))
        await world.start(B)
        await asyncio.sleep(3.0)
        assert await fetched(world, keys) == []
        world.network.cut.clear()
        await asyncio.sleep(8.0)
        assert world.node("B").ctx.presence.epoch == 1
        assert len(await fetched(world, keys)) == 3
        await judged(world)

    run(story())


def test_an_original_that_is_cut_off_since_its_restart_delivers_only_until_it_is_heard_what_its_copy_did() -> None:
    """What no peer can prevent (docs/adr/0023-counters-among-peers.md), and where it ends."""

    async def story() -> None:
        world = await started()
        keys = await issued(world, 4)
        world.network.cut.add(frozenset((A, B)))
        await world.crash(B)
        await world.start(B)  # at the same place, where A has met the life before
        original = world.machines[B]
        since = world.clock.elapsed()
        clone = await world.start_clone(B, anchor_too=True, cut_off=True)
        world.attach(clone)
        world.history.add(WentBack(since, B, since))
        world.network.cut.clear()
        await asyncio.sleep(12.0)
        assert len(await Client(world, at=clone).fetch(B1, A1, [key.key_id for key in keys])) == 4
        await asyncio.sleep(2.0)  # A hears of it
        assert len(await fetched(world, keys[:2])) == 2
        assert violations(world.history) == []
        world.attach(original)
        await asyncio.sleep(12.0)
        assert await fetched(world, keys[2:]) == []
        assert world.node(B).ctx.counters["lives_superseded"] == 1
        await world.stop_clone(clone)
        await judged(world)

    run(story())


def test_how_far_a_node_has_got_is_believed_only_in_its_own_words() -> None:
    async def story() -> None:
        world = await started()
        node, known = world.node(A), world.node(B).ctx.presence
        session = node.ctx.session(B).id
        forged = msgspec.structs.replace(known, reached=10**9)
        with pytest.raises(AuthenticationError):
            await node.handle(B, Reached(session, forged))
        stranger = msgspec.structs.replace(known, epoch=known.epoch + 1, nonce=bytes(16), reached=10**9)
        with pytest.raises(UnavailableError):
            await node.handle(B, Reached(session, stranger))
        with pytest.raises(UnavailableError):
            await node.handle(B, Reached(bytes(16), known))
        await world.crash(B)
        await world.start(B)
        again = world.node(B)
        await judged(world)
        assert again.ctx.presence.epoch == 1

    run(story())


def test_of_what_a_peer_says_late_or_twice_the_furthest_counts() -> None:
    async def story() -> None:
        world = await started()
        node, other = world.node(A), world.node(B)
        near = other.life.now()
        await issued(world, 2)
        await fetched(world, await issued(world, 2))
        far = other.life.now()
        assert far.reached > near.reached
        session = node.ctx.session(B).id
        for life in (far, near, far):
            assert isinstance(await node.handle(B, Reached(session, life)), Done)
        await world.crash(A)
        await world.start(A)
        known = world.node("A").met.life_of(B)
        assert known.reached >= far.reached
        await judged(world)

    run(story())
