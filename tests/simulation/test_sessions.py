"""Sessions whose messages get lost, come twice, or overtake each other; leases; windows; slots in doubt."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest
from tests.simulation.acts import fetch, issue, judged, node_of, started
from tests.simulation.networks import network

from trenza.base.errors import NotEnoughKeyError, StoreUnavailableError, UnavailableError
from trenza.base.names import NodeId
from trenza.core.policy import Policy
from trenza.kms import id_keys
from trenza.kms.demand import Want
from trenza.kms.ports import Change
from trenza.lab.loop import run
from trenza.lab.network import Handler
from trenza.lab.plan import SMALL
from trenza.lab.world import World
from trenza.wire.peer import Hello, Knock, PeerMessage, SegmentCommit, SegmentOffer

A, B = NodeId("A"), NodeId("B")
TWO = network("AB", "AB", {"A1 B1": "default"})


class Wire:
    """What comes in at a node, with answers that get lost or messages that come late, on order."""

    def __init__(self, world: World, name: NodeId) -> None:
        self.world = world
        self.handle: Handler = world.network.handlers[name]
        self.lose_answers: dict[type[PeerMessage], int] = {}
        self.hold: type[PeerMessage] | None = None
        self.held: list[tuple[NodeId, PeerMessage]] = []
        world.network.handlers[name] = self

    async def __call__(self, peer: NodeId, message: PeerMessage) -> PeerMessage:
        if isinstance(message, self.hold or ()):
            self.hold = None
            self.held.append((peer, message))
            await asyncio.Event().wait()
        answer = await self.handle(peer, message)
        if self.lose_answers.get(type(message), 0) > 0:
            self.lose_answers[type(message)] -= 1
            await asyncio.Event().wait()
        return answer


def roots(world: World) -> Sequence[bytes]:
    """Return the root of each end; the follower's candidate where the leader is one generation ahead."""
    leader = world.node(A).exchanges.root(B)
    follower = world.node(B).exchanges.root(A)
    ahead = leader.generation == follower.generation + 1
    theirs = follower.candidate if ahead else follower.secret
    assert theirs is not None
    return bytes(leader.secret.view()), bytes(theirs.view())


def counted(world: World, name: str) -> int:
    return sum(machine.node.ctx.counters[name] for machine in world.machines.values() if machine.node is not None)


def end_session(world: World) -> None:
    world.node(A).sessions.end(B)
    world.node(B).sessions.end(A)


@pytest.mark.parametrize("kind", [Hello, SegmentOffer, SegmentCommit])
def test_answers_lost_again_and_again_leave_the_roots_in_step(kind) -> None:
    async def story() -> None:
        world = await started(TWO)
        wire = Wire(world, B)
        wire.lose_answers = {kind: 4}
        if kind is Hello:
            end_session(world)
        for _ in range(60):
            await asyncio.sleep(1.0)
            world.node(A).tasks.kick("lead", "B")
            if A in world.node(B).ctx.sessions and B in world.node(A).ctx.sessions:
                keys = await _issued(world)
                await _fetched(world, keys)
        assert wire.lose_answers == {kind: 0}
        assert counted(world, "roots_reset") == 0
        assert roots(world)[0] == roots(world)[1]
        await judged(world, ("A1", "B1"))

    run(story())


async def _issued(world: World) -> list:
    try:
        return await issue(world, "A1", "B1", number=4)
    except UnavailableError:
        return []


async def _fetched(world: World, keys: list) -> None:
    if keys:
        await fetch(world, "B1", "A1", [key.key_id for key in keys])


@pytest.mark.parametrize("kind", [Hello, SegmentOffer, Knock])
def test_what_comes_twice_counts_once(kind) -> None:
    async def story() -> None:
        world = await started(TWO)
        wire = Wire(world, A if kind is Knock else B)
        heard: list[tuple[NodeId, PeerMessage]] = []

        async def twice(peer: NodeId, message: PeerMessage) -> PeerMessage:
            answer = await wire.handle(peer, message)
            if isinstance(message, kind):
                heard.append((peer, message))
                await asyncio.gather(wire.handle(peer, message), return_exceptions=True)
            return answer

        world.network.handlers[A if kind is Knock else B] = twice
        if kind is Knock:
            world.node(B).sessions.end(A)  # the leader still believes in the session
        else:
            end_session(world)
        for _ in range(20):
            await asyncio.sleep(1.0)
            await _fetched(world, await _issued(world))
        assert heard
        assert counted(world, "roots_reset") == 0
        await judged(world, ("A1", "B1"))

    run(story())


def test_an_offer_that_comes_after_the_next_costs_a_session_and_nothing_else() -> None:
    async def story() -> None:
        world = await started(TWO)
        wire = Wire(world, B)
        wire.hold = SegmentOffer
        while not wire.held:
            await _fetched(world, await _issued(world))
            await asyncio.sleep(0.5)
        await asyncio.sleep(8.0)  # the leader gave it up, and filled with another
        before = counted(world, "sessions_opened")
        for peer, message in wire.held:
            await wire.handle(peer, message)
        for _ in range(30):
            await asyncio.sleep(1.0)
            await _fetched(world, await _issued(world))
        assert counted(world, "sessions_opened") > before
        await judged(world, ("A1", "B1"))

    run(story())


def test_a_node_that_lost_its_roots_begins_anew_and_it_is_counted() -> None:
    async def story() -> None:
        world = await started(TWO)
        copy = world.machines[B].copy()
        await _fetched(world, await _issued(world))
        await world.crash(B)
        world.restore(B, copy)
        await world.start(B)
        await asyncio.sleep(15.0)
        assert counted(world, "roots_reset") >= 1
        assert roots(world)[0] == roots(world)[1]
        await judged(world, ("A1", "B1"))

    run(story())


def test_without_a_live_lease_nothing_is_issued() -> None:
    async def story() -> None:
        world = await started(TWO)
        world.network.cut.add(frozenset((A, B)))
        await asyncio.sleep(float(SMALL.lease) + 0.1)
        for caller, target in (("A1", "B1"), ("B1", "A1")):
            with pytest.raises(NotEnoughKeyError):
                await issue(world, caller, target)
        world.network.cut.clear()
        await judged(world, ("A1", "B1"))

    run(story())


def test_a_lease_begins_before_the_hello_that_it_comes_from_is_sent() -> None:
    async def story() -> None:
        world = await started(TWO)
        end_session(world)
        slow = Wire(world, B)

        async def late(peer: NodeId, message: PeerMessage) -> PeerMessage:
            answer = await slow.handle(peer, message)
            if isinstance(message, Hello):
                await asyncio.sleep(4.0)
            return answer

        world.network.handlers[B] = late
        while B not in world.node(A).ctx.sessions:
            await asyncio.sleep(0.05)
            if A in world.node(B).ctx.sessions:
                heard = world.node(B).sessions._heard[A]
        lease = world.node(A).ctx.sessions[B].lease_until
        assert lease <= heard + SMALL.lease
        await world.stop_all()

    run(story())


def test_a_new_session_of_the_same_lives_closes_no_window() -> None:
    short = Policy("default", ("hybrid-catkdf",), key_lifetime_s=20)
    net = msgspec.structs.replace(TWO, policies=(short,))

    async def story() -> None:
        world = await started(net)
        await issue(world, "A1", "B1")
        end_session(world)
        await asyncio.sleep(30.0)  # longer than a key lives
        keys = await issue(world, "A1", "B1", number=3)
        got = await fetch(world, "B1", "A1", [key.key_id for key in keys])
        assert [key.key for key in got] == [key.key for key in keys]
        await judged(world, ("A1", "B1"))

    run(story())


@pytest.mark.parametrize("restarts", [None, A, B])
def test_keys_of_a_segment_that_its_issuer_finished_with_outlive_a_new_session(restarts) -> None:
    async def story() -> None:
        world = await started(TWO)
        keys = await issue(world, "A1", "B1", number=2)
        segment = (await node_of(world, "A1").explain.key(keys[0].key_id)).segment
        assert segment is not None
        while segment.segment in world.node(A).pools.ready_segments(B):
            await _fetched(world, await _issued(world))
            await asyncio.sleep(0.5)
        if restarts is None:
            end_session(world)
        else:
            await world.crash(restarts)
            await world.start(restarts)
        await asyncio.sleep(20.0)
        got = await fetch(world, "B1", "A1", [key.key_id for key in keys])
        assert [key.key for key in got] == [key.key for key in keys]
        await judged(world, ("A1", "B1"))

    run(story())


@pytest.mark.parametrize("written", [False, True], ids=["not written", "written, unheard"])
def test_a_reservation_of_unknown_outcome_burns_nothing_for_it_is_made_again(written) -> None:
    async def story() -> None:
        world = await started(TWO)
        store = world.machines[A].store
        assert store is not None
        commit = store.commit

        async def fails(changes: Sequence[Change]) -> None:
            store.commit = commit  # type: ignore[method-assign]
            if written:
                await commit(changes)
            raise StoreUnavailableError("the answer is lost")

        store.commit = fails  # type: ignore[method-assign]
        with pytest.raises(StoreUnavailableError):
            await issue(world, "A1", "B1", number=3)
        pool = world.node(A).pools.pair(B).issuer
        assert (pool.in_hand(full=True), pool.in_hand(full=False)) == (0, 0)
        assert all(window.issued == 0 for window in pool)
        keys = await issue(world, "A1", "B1", number=3)
        assert len(await fetch(world, "B1", "A1", [key.key_id for key in keys])) == 3
        await judged(world, ("A1", "B1"))

    run(story())


def test_a_delivery_of_unknown_outcome_burns_the_key() -> None:
    async def story() -> None:
        world = await started(TWO)
        (key, other) = await issue(world, "A1", "B1", number=2)
        store = world.machines[B].store
        assert store is not None
        commit = store.commit

        async def fails(_changes: Sequence[Change]) -> None:
            store.commit = commit  # type: ignore[method-assign]
            raise StoreUnavailableError("the answer is lost")

        store.commit = fails  # type: ignore[method-assign]
        with pytest.raises(StoreUnavailableError):
            await fetch(world, "B1", "A1", [key.key_id])
        with pytest.raises(Exception, match="not found on KME"):
            await fetch(world, "B1", "A1", [key.key_id])
        assert node_of(world, "B1").ctx.counters["keys_doubtful"] == 1
        assert await fetch(world, "B1", "A1", [other.key_id])
        await judged(world, ("A1", "B1"))

    run(story())


@pytest.mark.parametrize("issuer", [A, B])
def test_stock_that_only_one_end_holds_is_replaced(issuer) -> None:
    async def story() -> None:
        world = await started(TWO)
        other = B if issuer == A else A
        leader = world.node(A)
        for _ in range(2):  # more than windows are asked for
            kind = leader.demand.kinds(B)[0]
            await leader.fill.fill(B, Want(issuer, kind, slots=64, stock=0))
        pools = world.node(other).pools
        for segment in list(pools.pair(issuer).segments.values()):
            await pools.drop_segment(segment)  # and the issuer does not hear of it
        one, two = ("A1", "B1") if issuer == A else ("B1", "A1")
        for _ in range(80):
            await asyncio.sleep(1.0)
            try:
                await issue(world, one, two, number=4)
            except NotEnoughKeyError:
                continue
        keys = await issue(world, one, two, number=2)
        assert len(await fetch(world, two, one, [key.key_id for key in keys])) == 2
        if issuer == A:  # the leader believed that stock; a follower's leader fills by what it holds itself
            assert node_of(world, one).ctx.counters["slots_ungrantable"] > 0
        await judged(world, ("A1", "B1"))

    run(story())


@pytest.mark.parametrize("flapping", [A, B])
def test_a_peer_that_begins_session_after_session_is_put_off(flapping) -> None:
    async def story() -> None:
        world = await started(TWO)
        other = B if flapping == A else A
        before = world.node(other).ctx.counters["sessions_opened"]
        for _ in range(100):
            world.node(flapping).sessions.end(other)
            if flapping == A:
                world.node(A).tasks.kick("lead", "B")
            else:
                world.node(B).tasks.kick("beat", "A")
            await asyncio.sleep(0.5)
        assert world.node(other).ctx.counters["sessions_opened"] - before <= 10 + 50 / 5 + 1
        assert counted(world, "sessions_put_off") > 0
        await judged(world, ("A1", "B1"))

    run(story())


def test_of_too_many_id_keys_the_oldest_are_forgotten_for_good_once_no_key_can_be_fetched_under_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(id_keys, "_KEPT", 3)
    short = Policy("default", ("hybrid-catkdf",), key_lifetime_s=20)

    async def story() -> None:
        world = await started(msgspec.structs.replace(TWO, policies=(short,)))
        for _ in range(8):
            end_session(world)
            await asyncio.sleep(30.0)
        assert counted(world, "id_keys_forgotten") > 0
        kept = [one.session for one in world.node(A).id_keys.all_of(B)]
        assert 3 <= len(kept) <= 5  # three, and those under which keys may still be fetched
        await world.crash(A)
        await world.start(A)
        await world.until_ready(within=60.0)
        assert set(kept[:2]) <= {one.session for one in world.node(A).id_keys.all_of(B)}
        keys = await issue(world, "A1", "B1", number=2)
        assert len(await fetch(world, "B1", "A1", [key.key_id for key in keys])) == 2
        await judged(world, ("A1", "B1"))

    run(story())
