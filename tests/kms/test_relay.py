from __future__ import annotations

import asyncio
import dataclasses

import pytest
from msgspec.structs import replace
from tests.kms.fakes import Fails, Fault
from tests.kms.link_world import SMALL, LinkNode, World

from trenza.base.errors import (
    NotEnoughKeyError,
    PeerUnavailableError,
    RefusedError,
    RemoteProtocolError,
    StoreUnavailableError,
    UnavailableError,
)
from trenza.base.names import LinkId, NodeId
from trenza.base.secret import Secret
from trenza.base.units import Seconds
from trenza.core.pads import PadRange
from trenza.core.strand import Supply
from trenza.kms.ports import Table
from trenza.wire.peer import HopRecord, Relay, Relayed

SEGMENT = b"segment-00000001"


def row() -> World:
    return World("abc", ["a-b", "b-c"])


def plain(secret: Secret) -> bytes:
    return bytes(secret.view())


def relays_sent(world: World) -> list[Relay]:
    return [message for _, _, message in world.network.sent if isinstance(message, Relay)]


async def carry(world: World, route: str = "abc", units: int = 4, segment: bytes = SEGMENT) -> bytes:
    """Carry and check that the far end has the same; return the strand."""
    carried = await world[route[0]].relays.carry(segment, tuple(route), units)
    arrived = world[route[-1]].relays.take_arrived(segment, route[0])
    assert arrived is not None
    assert arrived.hops == carried.hops
    assert plain(arrived.strand) == plain(carried.strand)
    return plain(carried.strand)


def used(node: LinkNode) -> int:
    return sum(marks.bit_count() for marks in node.marks().values())


def fill(node: LinkNode, peer: str, *, reserve: bool) -> None:
    """Use up all that `node` can send to `peer` of one purpose."""
    for end in node.ctx.links.values():
        stream = node.pads.stream(end.link, node.name)
        if end.peer == peer and stream.available(reserve=reserve):
            stream.allocate(stream.available(reserve=reserve), reserve=reserve)


@pytest.mark.parametrize("route", ["ab", "ba", "abc", "cba"])
def test_both_ends_of_a_route_get_the_same_fresh_strand(route):
    async def story():
        world = row()
        await world.stock()
        first, second = await carry(world, route), await carry(world, route, segment=b"another segment!")
        assert len(first) == len(second) == 4 * 32
        assert first != second

    asyncio.run(story())


def test_the_hops_say_what_each_link_was():
    async def story():
        world = row()
        world.devices[LinkId("b-c")].supply = Supply.WARM
        for name, peer in ("ab", "ba"):
            world[name].ctx.preshared[NodeId(peer)] = Secret(bytearray(range(32)))
        for name in "bc":
            world[name].ctx.links[LinkId("b-c")].emulated = False
        await world.stock()
        carried = await world["a"].relays.carry(SEGMENT, ("a", "b", "c"), 1)
        assert carried.hops == (
            HopRecord("a-b", "a", "b", "live", True, "preshared", None),
            HopRecord("b-c", "b", "c", "warm", False, "computational", None),
        )

    asyncio.run(story())


def test_ends_that_describe_their_link_differently_relay_nothing_over_it():
    async def story():
        world = row()
        world["a"].ctx.links[LinkId("a-b")].emulated = False
        await world.stock()
        with pytest.raises(RefusedError, match="link a-b: node a says of its key what this node does not"):
            await world["a"].relays.carry(SEGMENT, ("a", "b", "c"), 1)

    asyncio.run(story())


def test_what_arrived_is_taken_once_and_by_its_source_and_segment_only():
    async def story():
        world = row()
        await world.stock()
        await world["a"].relays.carry(SEGMENT, ("a", "b", "c"), 1)
        assert world["c"].relays.take_arrived(SEGMENT, "b") is None
        assert world["c"].relays.take_arrived(b"the other of two", "a") is None
        assert world["c"].relays.take_arrived(SEGMENT, "a") is not None
        assert world["c"].relays.take_arrived(SEGMENT, "a") is None

    asyncio.run(story())


def test_the_first_hop_carries_no_bits_at_all_and_the_next_only_ciphertext():
    async def story():
        world = row()
        await world.stock()
        strand = await carry(world)
        first, second = relays_sent(world)
        assert first.ciphertext == b""
        assert len(second.ciphertext) == len(strand)
        assert second.ciphertext != strand

    asyncio.run(story())


def test_a_relay_keeps_nothing_of_what_it_carried():
    async def story():
        world = row()
        await world.stock()
        strand = await carry(world, units=32)  # all the traffic key of both links in this direction
        for node in world.nodes.values():
            assert strand[:32] not in node.on_disk()
        assert relays_sent(world)[1].ciphertext[:32] not in world["b"].on_disk()
        relay = world["b"]
        assert not any(held.block.used_up for held in relay.pads._held.values())
        assert len(relay.sealer.keys) == len(relay.pads._held)  # the sealing keys of the used blocks are gone
        assert all(plain(secret) not in strand for secret in relay.pads._open.values())
        assert relay.relays._arrivals._waiting == {}

    asyncio.run(story())


def test_strand_and_pads_are_wiped_at_a_relay_and_the_strand_at_a_source_that_failed(monkeypatch):
    async def story():
        world = row()
        await world.stock()
        seen: dict[str, list[Secret]] = {"b": [], "a": []}
        for name, held in seen.items():
            bits = world[name].pads.bits

            async def watched(ranges, bits=bits, held=held):
                held.append(await bits(ranges))
                return held[-1]

            monkeypatch.setattr(world[name].pads, "bits", watched)
        carried = await world["a"].relays.carry(SEGMENT, ("a", "b", "c"), 4)
        assert len(seen["b"]) == 4  # the MAC key and the strand that came, the pad and the MAC key that went
        assert not any(any(plain(secret)) for secret in seen["b"])
        assert any(plain(carried.strand))
        world.network.handlers.clear()
        with pytest.raises(PeerUnavailableError):
            await carry(world, segment=b"the next segment")
        assert [any(plain(secret)) for secret in seen["a"]] == [True, False, False, False]

    asyncio.run(story())


def test_use_is_durable_at_both_ends_before_the_strand_moves_on():
    async def story():
        world = row()
        await world.stock()
        seen = []

        def look(sender, _receiver, _message):
            rows = world[sender].store.tables[Table.LINK_USED]
            blocks = [held.block for held in world[sender].pads._held.values()]
            now = world[sender].pads.used_rows([PadRange(block.id, 0, 1) for block in blocks])
            seen.append({change.key: change.value for change in now} == rows)

        world.network.faults = look
        await carry(world)
        assert seen == [True, True]

    asyncio.run(story())


def test_the_same_message_again_gets_the_same_answer_and_uses_key_once():
    async def story():
        world = row()
        await world.stock()
        await carry(world)
        before = [used(node) for node in world.nodes.values()]
        first = relays_sent(world)[0]
        answers = [await world["a"].ctx.peers.call("b", first, timeout=1.0) for _ in range(2)]
        assert all(isinstance(answer, Relayed) for answer in answers)
        assert answers[0] == answers[1]
        assert [used(node) for node in world.nodes.values()] == before
        assert world["c"].relays.take_arrived(SEGMENT, "a") is None

    asyncio.run(story())


@pytest.mark.parametrize("fault", [Fault.DUPLICATE, Fault.DELAY])
def test_messages_heard_twice_or_late_carry_one_strand(fault):
    async def story():
        world = row()
        await world.stock()
        world.network.faults = lambda *_: fault
        await carry(world)
        assert used(world["a"]) == used(world["c"]) == 5
        assert used(world["b"]) == 10

    asyncio.run(story())


@pytest.mark.parametrize("fault", [Fault.DROP_REQUEST, Fault.DROP_ANSWER])
@pytest.mark.parametrize("hop", ["ab", "bc"])
def test_a_lost_message_or_answer_is_made_good_by_sending_the_identical_bytes(fault, hop):
    async def story():
        world = row()
        await world.stock()
        lost = []

        def once(sender, receiver, message):
            if sender + receiver != hop or lost:
                return None
            lost.append(message)
            return fault

        world.network.faults = once
        await carry(world)
        same = [message for message in relays_sent(world) if message.link == lost[0].link]
        assert same == [lost[0], lost[0]]

    asyncio.run(story())


def test_one_message_id_for_two_contents_is_refused():
    async def story():
        world = row()
        await world.stock()
        await carry(world)
        other = replace(relays_sent(world)[0], segment=b"the other of two")
        with pytest.raises(RefusedError, match="two requests"):
            await world["a"].ctx.peers.call("b", other, timeout=1.0)

    asyncio.run(story())


@pytest.mark.parametrize(
    "change",
    [
        {"ciphertext": bytes(4 * 32)},
        {"segment": b"another segment!"},
        {"tag": bytes(16)},
        {"hops": (HopRecord("a-b", "a", "b", "live", False, "preshared", None),)},
    ],
)
def test_an_altered_message_is_found_and_its_units_are_burnt_at_both_ends(change):
    async def story():
        world = row()
        await world.stock()

        def alter(sender, receiver, message):
            hops = (*change.get("hops", message.hops[:1]), *message.hops[1:])
            return replace(message, **{**change, "hops": hops}) if receiver == "c" else message

        world.network.alter = alter
        with pytest.raises(RefusedError):
            await carry(world)
        assert world["c"].ctx.counters["relays_altered"] == 1
        assert world["c"].relays.take_arrived(SEGMENT, "a") is None
        assert used(world["a"]) == used(world["c"]) == 5
        marks = world["c"].marks()
        world["c"].crash()
        await world["c"].start()
        assert world["c"].marks() == marks
        world.network.alter = lambda _sender, _receiver, message: message
        await carry(world)

    asyncio.run(story())


@pytest.mark.parametrize(
    "change",
    [
        {"position": 0},
        {"position": 2},
        {"position": 9},
        {"route": ("a", "b", "a")},
        {"route": ("a", "b")},
        {"route": ("c", "b", "a")},
        {"route": ("a", "b", "d")},
        {"route": ("a",) * 2 + ("b",)},
        {"pads": ()},
        {"ciphertext": b"not on the first hop"},
        {"hops": ()},
        {"hops": (HopRecord("b-c", "a", "b", "live", True, "computational", None),)},
    ],
)
def test_a_message_that_makes_no_sense_is_refused_or_found_altered_and_carried_nowhere(change):
    async def story():
        world = row()
        await world.stock()
        world.network.alter = lambda _sender, _receiver, message: replace(message, **change)
        with pytest.raises(RefusedError):
            await world["a"].relays.carry(SEGMENT, ("a", "b", "c"), 4)
        assert len(relays_sent(world)) == 1
        assert world["c"].relays.take_arrived(SEGMENT, "a") is None

    asyncio.run(story())


def test_a_neighbour_cannot_speak_for_a_link_that_it_is_not_an_end_of():
    async def story():
        world = World("abc", ["a-b", "b-c", "a-c"])
        await world.stock()
        await world["a"].relays.carry(SEGMENT, ("a", "b"), 1)
        (message,) = relays_sent(world)
        with pytest.raises(RefusedError) as refusal:
            await world["c"].ctx.peers.call("b", replace(message, relay=bytes(16)), timeout=1.0)
        assert refusal.value.remote_code == "unauthorised"

    asyncio.run(story())


def test_traffic_never_touches_the_reserve():
    async def story():
        world = row()
        await world.stock()
        reserve = {end: world["a"].free("a-b", end, reserve=True) for end in "ab"}
        with pytest.raises(NotEnoughKeyError):
            await world["a"].relays.carry(SEGMENT, ("a", "b"), 33)
        await carry(world, "ab", units=32)
        assert world["a"].free("a-b", "a", reserve=True) == reserve["a"] - 1
        assert world["a"].free("a-b", "b", reserve=True) == reserve["b"]
        with pytest.raises(NotEnoughKeyError):
            await world["a"].relays.carry(b"the next segment", ("a", "b"), 1)

    asyncio.run(story())


def test_with_an_exhausted_reserve_nothing_is_carried_or_used_until_ingest_fills_it_first():
    async def story():
        world = row()
        await world.stock()
        fill(world["a"], "b", reserve=True)
        before = world["a"].free("a-b", "a")
        with pytest.raises(NotEnoughKeyError, match="reserve"):
            await carry(world)
        assert world["a"].free("a-b", "a") == before
        assert world["a"].ctx.counters["relays_without_reserve"] == 1
        fill(world["a"], "b", reserve=False)
        assert await world["a"].ingest.step(LinkId("a-b"))
        assert world["a"].free("a-b", "a", reserve=True) == 8
        assert world["a"].free("a-b", "a") == 0
        assert await world["a"].ingest.step(LinkId("a-b"))
        await carry(world)

    asyncio.run(story())


def test_a_relay_without_key_for_the_next_link_refuses_and_burns_what_came_in():
    async def story():
        world = row()
        await world.stock()
        fill(world["b"], "c", reserve=False)
        with pytest.raises(RefusedError) as refusal:
            await carry(world)
        assert refusal.value.remote_code == "not-enough-key"
        marks = {block: mark for block, mark in world["a"].marks().items() if mark}
        assert marks == {block: mark for block, mark in world["b"].marks().items() if block in marks}
        assert len(relays_sent(world)) == 1

    asyncio.run(story())


def test_a_relay_that_crashes_between_its_commit_and_sending_burns_and_reuses_nothing():
    async def story():
        world = row()
        await world.stock()
        relay = world["b"]

        async def crash(changes):
            relay.store.on_commit = None
            relay.crash()

        relay.store.on_commit = crash
        with pytest.raises((RefusedError, PeerUnavailableError)):
            await carry(world)
        assert len(relays_sent(world)) <= 6
        assert all(message.link == "a-b" for message in relays_sent(world))
        await relay.start()
        lost = {(block, mark) for block, mark in relay.marks().items() if mark}
        assert sum(mark.bit_count() for _, mark in lost) == 10
        before = len(relays_sent(world))
        await carry(world, segment=b"the next segment")
        units = [unit for message in relays_sent(world)[before:] for unit in units_of(message)]
        assert not set(units) & {(block, n) for block, mark in lost for n in range(64) if mark >> n & 1}

    asyncio.run(story())


@pytest.mark.parametrize("failure", list(Fails))
@pytest.mark.parametrize("place", "abc")
def test_a_commit_of_unknown_outcome_carries_nothing_further_and_burns(failure, place):
    async def story():
        world = row()
        await world.stock()
        world[place].store.fail_next = failure
        with pytest.raises((StoreUnavailableError, RefusedError)):
            await carry(world)
        assert len(relays_sent(world)) == "abc".index(place)
        assert world["c"].relays.take_arrived(SEGMENT, "a") is None
        assert world["a"].ctx.counters["link_units_burnt"] == 5
        await carry(world, segment=b"the next segment")

    asyncio.run(story())


def test_without_an_answer_in_all_attempts_the_units_are_burnt_at_the_source():
    async def story():
        world = row()
        await world.stock()
        world.network.faults = lambda *_: Fault.DROP_REQUEST
        with pytest.raises(PeerUnavailableError):
            await carry(world)
        assert len({message.relay for message in relays_sent(world)}) == 1
        assert world["a"].ctx.counters["link_units_burnt"] == 5
        assert used(world["a"]) == 5

    asyncio.run(story())


def test_no_attempt_is_made_beyond_the_deadline():
    async def story():
        world = row()
        await world.stock()

        def slow(*_):
            world.clock.advance(world.settings.relay_timeout)
            return Fault.DROP_REQUEST

        world.network.faults = slow
        with pytest.raises(PeerUnavailableError):
            await carry(world)
        assert len(relays_sent(world)) == 1

    asyncio.run(story())


@pytest.mark.parametrize("late", [0.5, 1.0, 2.0])
def test_what_the_receiver_must_know_first_takes_its_time_from_the_same_deadline(late):
    async def story():
        world = row()
        await world.stock()
        peers, relays = world["a"].ctx.peers, world["a"].relays
        limit, given = world.settings.relay_timeout, []
        deadline = world.clock.elapsed() + limit

        class Watched:
            async def call(self, peer, message, *, timeout):
                given.append((world.clock.elapsed(), timeout))
                return await peers.call(peer, message, timeout=timeout)

        async def slow(_peer):
            world.clock.advance(late * limit)

        world["a"].ctx.peers, relays.before_sending = Watched(), slow
        world["a"].ctx.sessions[NodeId("b")].lease_until = Seconds(1_000.0)
        if late < 1.0:
            await relays.carry(SEGMENT, ("a", "b"), 4)
        else:
            with pytest.raises(PeerUnavailableError) as failed:
                await relays.carry(SEGMENT, ("a", "b"), 4)
            assert not failed.value.sent
        assert all(at + timeout <= deadline for at, timeout in given)
        assert len(given) == (late < 1.0)

    asyncio.run(story())


def test_who_waits_for_a_receiver_to_know_waits_no_longer_than_its_deadline():
    async def story():
        world = World("ab", ["a-b"], dataclasses.replace(SMALL, relay_timeout=Seconds(0.01)))
        await world.stock()
        world["a"].relays.before_sending = lambda _peer: asyncio.get_running_loop().create_future()
        with pytest.raises(PeerUnavailableError) as failed:
            await world["a"].relays.carry(SEGMENT, ("a", "b"), 1)
        assert not failed.value.sent
        assert relays_sent(world) == []

    asyncio.run(story())


def test_a_segment_is_carried_once():
    async def story():
        world = row()
        await world.stock()
        await world["a"].relays.carry(SEGMENT, ("a", "b", "c"), 1)
        with pytest.raises(RefusedError):
            await world["a"].relays.carry(SEGMENT, ("a", "b", "c"), 1)
        assert world["c"].relays.take_arrived(SEGMENT, "a") is not None

    asyncio.run(story())


def test_strands_that_nobody_takes_are_wiped():
    async def story():
        world = row()
        await world.stock()
        await world["a"].relays.carry(SEGMENT, ("a", "b"), 1)
        (waiting,) = world["b"].relays._arrivals._waiting.values()
        world.clock.advance(61.0)
        world["b"].relays.expire()
        assert plain(waiting.carried.strand) == bytes(32)
        assert world["b"].relays.take_arrived(SEGMENT, "a") is None

    asyncio.run(story())


def test_a_route_that_does_not_begin_here_or_turns_back_is_the_callers_mistake():
    async def story():
        world = row()
        for route in (("b", "c"), ("a",), ("a", "b", "a")):
            with pytest.raises(ValueError, match="route"):
                await world["a"].relays.carry(SEGMENT, route, 1)
        with pytest.raises(UnavailableError, match="no link joins"):
            await world["a"].relays.carry(SEGMENT, ("a", "c"), 1)

    asyncio.run(story())


@pytest.mark.parametrize("without", ["a", "b"])
def test_without_a_live_lease_nothing_is_sent_under_the_key_of_a_link(without):
    async def story():
        world = row()
        await world.stock()
        receiver = "c" if without == "b" else "b"
        world[without].ctx.sessions[receiver].lease_until = Seconds(-1.0)
        with pytest.raises((UnavailableError, RefusedError), match="no live lease"):
            await carry(world)
        assert used(world[without]) == (5 if without == "b" else 0)  # what came in is burnt
        assert not [message for message in relays_sent(world) if message.position == (2 if without == "b" else 1)]

    asyncio.run(story())


@pytest.mark.parametrize("slow", ["a", "b"])
def test_a_lease_that_ends_while_the_use_becomes_durable_lets_nothing_out(slow):
    async def story():
        world = row()
        await world.stock()
        receiver = "c" if slow == "b" else "b"

        async def after_long(_changes):
            world[slow].ctx.sessions[receiver].lease_until = Seconds(-1.0)

        world[slow].store.on_commit = after_long
        with pytest.raises((UnavailableError, RefusedError), match="no live lease"):
            await carry(world)
        assert used(world[slow]) == (10 if slow == "b" else 5)  # burnt, on whichever link
        assert not [message for message in relays_sent(world) if message.position == (2 if slow == "b" else 1)]

    asyncio.run(story())


def test_of_parallel_links_the_fullest_carries():
    async def story():
        world = World("ab", ["a-b-1", "a-b-2"])
        await world.stock("a-b-2")
        carried = await world["a"].relays.carry(SEGMENT, ("a", "b"), 1)
        assert carried.hops[0].link == "a-b-2"

    asyncio.run(story())


def test_an_answer_that_tells_another_route_is_not_believed():
    async def story():
        world = World("abcd", ["a-b", "b-c", "b-d", "d-c"])
        await world.stock()
        handle = world["b"].handle

        async def detour(peer, message):
            answer = await handle(peer, message)
            if not isinstance(answer, Relayed):
                return answer
            return Relayed((answer.hops[0], HopRecord("b-d", "b", "d", "live", True, "computational", None)))

        world.network.handlers["b"] = detour
        with pytest.raises(RemoteProtocolError, match="hops"):
            await carry(world)

    asyncio.run(story())


def test_a_block_that_one_end_lost_is_told_to_be_gone_and_the_next_try_succeeds():
    async def story():
        world = World("ab", ["a-b"])
        await world.stock()
        lost = [block.id for block in world["b"].pads.stream(LinkId("a-b"), "a").blocks.values() if not block.reserve]
        await world["b"].pads.drop(lost[:1])
        with pytest.raises(RefusedError):
            await carry(world, "ab")
        await world["b"].levels.tick()
        assert not world["a"].pads.holds(lost[0])
        await carry(world, "ab", segment=b"the next segment")

    asyncio.run(story())


def units_of(message: Relay) -> list[tuple[bytes, int]]:
    named = (*message.pads, message.key)
    return [(each.block, unit) for each in named for unit in range(each.first, each.first + each.count)]
