from __future__ import annotations

import asyncio
import hmac
from dataclasses import replace as replace_settings
from uuid import UUID

import pytest
from msgspec.structs import replace
from tests.kms.fakes import Fails, Fault
from tests.kms.link_world import SMALL, World

from trenza.base.errors import DeviceUnavailableError, RefusedError, RemoteProtocolError, UnavailableError
from trenza.base.names import LinkId
from trenza.base.secret import Secret
from trenza.base.units import Bits, Seconds
from trenza.core.pads import PadRange
from trenza.core.strand import Supply
from trenza.kms.ingest import Draw, draw_for, joined
from trenza.kms.pads import Pads
from trenza.kms.ports import DeviceLimits, RawKey, Table
from trenza.wire.peer import BlockAccepted, Presence, canonical

LINK = LinkId("a-b")
PURPOSES = [(sender, reserve) for sender in "ab" for reserve in (False, True)]


def pair() -> World:
    return World("ab", ["a-b"])


def stocks(world: World, node: str) -> list[int]:
    return [world[node].free("a-b", sender, reserve=reserve) for sender, reserve in PURPOSES]


async def bits_of(world: World, node: str) -> dict[bytes, bytes]:
    found = {}
    for sender, _ in PURPOSES[::2]:
        for block in world[node].pads.stream(LINK, sender).blocks.values():
            secret = await world[node].pads.bits([PadRange(block.id, 0, block.units)])
            found[block.id] = bytes(secret.view())
    return found


def test_both_ends_hold_the_same_blocks_for_each_direction_and_purpose():
    async def story():
        world = pair()
        await world.stock()
        assert stocks(world, "a") == stocks(world, "b") == [32, 8, 32, 8]
        assert await bits_of(world, "a") == await bits_of(world, "b")
        assert world["a"].ingest.blocks_with("b") == world["b"].ingest.blocks_with("a")
        assert all(block.ready for block in world["a"].pads.stream(LINK, "a").blocks.values())

    asyncio.run(story())


def test_the_reserve_is_filled_before_any_traffic():
    async def story():
        world = pair()
        for _ in range(2):
            assert await world["a"].ingest.step(LINK)
        assert stocks(world, "a") == [0, 8, 0, 8]

    asyncio.run(story())


def test_the_other_end_never_draws():
    async def story():
        world = pair()
        assert not await world["b"].ingest.step(LINK)
        assert world.devices[LINK].drawn == []

    asyncio.run(story())


def test_no_bits_of_a_device_are_written_unsealed():
    async def story():
        world = pair()
        await world.stock()
        written = world["a"].on_disk() + world["b"].on_disk()
        assert world.devices[LINK].drawn
        assert not any(bits in written for bits in world.devices[LINK].drawn)

    asyncio.run(story())


@pytest.mark.parametrize("fault", [Fault.DROP_REQUEST, Fault.DROP_ANSWER])
def test_without_an_answer_the_same_block_is_offered_again(fault):
    async def story():
        world = pair()
        world.network.faults = lambda *_: fault
        assert not await world["a"].ingest.step(LINK)
        offered = world["a"].pads.offered(LINK)
        assert offered is not None
        drawn = len(world.devices[LINK].drawn)
        world.network.faults = lambda *_: None
        assert await world["a"].ingest.step(LINK)
        assert offered.ready
        assert len(world.devices[LINK].drawn) == drawn
        first, second = (message for _, _, message in world.network.sent)
        assert first == second
        assert await bits_of(world, "a") == await bits_of(world, "b")

    asyncio.run(story())


def test_an_offer_heard_twice_at_once_is_taken_once():
    async def story():
        world = pair()
        world.network.faults = lambda *_: Fault.DUPLICATE
        assert await world["a"].ingest.step(LINK)
        assert world["a"].ingest.blocks_with("b") == world["b"].ingest.blocks_with("a")

    asyncio.run(story())


def test_bits_that_a_device_altered_are_found_and_dropped_by_both():
    async def story():
        world = pair()
        world.devices[LINK].alter = True
        assert not await world["a"].ingest.step(LINK)
        for node in (world["a"], world["b"]):
            assert node.ingest.blocks_with("b") == node.ingest.blocks_with("a") == ()
            assert node.blocks_on_disk() == (set(), set())
            assert node.sealer.keys == {}
            assert node.ctx.counters["link_blocks_altered"] == 1
        world.devices[LINK].alter = False
        assert await world["a"].ingest.step(LINK)

    asyncio.run(story())


@pytest.mark.parametrize(("leaders", "followers"), [(Supply.LIVE, Supply.SYNTHETIC), (Supply.SYNTHETIC, Supply.LIVE)])
def test_a_block_of_which_the_two_devices_say_different_supplies_is_kept_by_neither(leaders, followers):
    async def story():
        world = pair()
        world.devices[LINK].supply, world.devices[LINK].supply_at_fetch = leaders, followers
        assert not await world["a"].ingest.step(LINK)
        for node in (world["a"], world["b"]):
            assert node.ingest.blocks_with("b") == node.ingest.blocks_with("a") == ()
            assert node.sealer.keys == {}
        assert world["a"].ctx.counters["link_blocks_lost"] == 1

    asyncio.run(story())


def test_an_offer_that_praises_the_supply_is_refused_in_words():
    async def story():
        world = pair()
        world.devices[LINK].supply_at_fetch = Supply.WARM
        refused = []
        handle = world["b"].handle

        async def listened(peer, message):
            try:
                return await handle(peer, message)
            except RemoteProtocolError as error:
                refused.append(error.message)
                raise

        world.network.handlers["b"] = listened
        assert not await world["a"].ingest.step(LINK)
        assert refused == ["link a-b: the ends' devices disagree about supply: live at node a, warm here"]

    asyncio.run(story())


def test_an_answer_that_was_altered_drops_the_block_and_the_other_end_hears_of_it():
    async def story():
        world = pair()
        handle = world["b"].handle

        async def lying(peer, message):
            answer = await handle(peer, message)
            return BlockAccepted(bytes(48)) if isinstance(answer, BlockAccepted) else answer

        world.network.handlers["b"] = lying
        assert not await world["a"].ingest.step(LINK)
        assert world["a"].ingest.blocks_with("b") == ()
        assert len(world["b"].ingest.blocks_with("a")) == 1
        await world["a"].levels.tick()
        assert world["b"].ingest.blocks_with("a") == ()
        assert world["b"].sealer.keys == {}

    asyncio.run(story())


def test_the_leaders_own_answer_cannot_be_echoed():
    async def story():
        world = pair()

        async def echo(peer, message):
            return BlockAccepted(message.tag)

        world.network.handlers["b"] = echo
        assert not await world["a"].ingest.step(LINK)
        assert world["a"].ctx.counters["link_blocks_altered"] == 1

    asyncio.run(story())


def test_an_answer_under_the_wiped_key_of_a_session_that_ended_proves_nothing():
    async def story():
        world = pair()

        async def forge(_peer, offer):
            world["a"].ctx.sessions["b"].verify_key.wipe()
            world.open_session(world["a"], world["b"])
            bits = b"".join(world.devices[LINK].drawn)[: 8 * 32]
            bare = canonical(replace(offer, tag=b""))
            return BlockAccepted(hmac.digest(bytes(48), b"trenza block v1 follower\0" + bare + bits, "sha384"))

        world.network.handlers["b"] = forge
        assert not await world["a"].ingest.step(LINK)
        assert world["a"].pads.offered(LINK) is not None
        world.network.handlers["b"] = world["b"].handle
        assert await world["a"].ingest.step(LINK)

    asyncio.run(story())


@pytest.mark.parametrize(
    "change",
    [{"from_leader": False}, {"reserve": False}, {"created": 5}, {"supply": "warm"}, {"block": b"another block id"}],
)
def test_what_an_offer_says_of_its_block_is_compared_too(change):
    async def story():
        world = pair()

        world.network.alter = lambda _sender, _receiver, message: replace(message, **change)
        assert not await world["a"].ingest.step(LINK)
        assert world["b"].ingest.blocks_with("a") == ()

    asyncio.run(story())


@pytest.mark.parametrize(
    "change",
    [{"supply": "fresh"}, {"key_ids": ()}, {"key_ids": (b"short",)}, {"key_bytes": 0}, {"key_bytes": 1 << 40}],
)
def test_an_offer_that_cannot_be_is_refused_before_the_device_is_asked(change):
    async def story():
        world = pair()
        world.network.faults = lambda *_: Fault.DROP_REQUEST
        await world["a"].ingest.step(LINK)
        (_, _, offer), waiting = world.network.sent[0], dict(world.devices[LINK].ends[1].waiting)
        wrong = replace(offer, **change)
        world.network.faults = lambda *_: None
        with pytest.raises(RefusedError) as refusal:
            await world["a"].ctx.peers.call("b", wrong, timeout=1.0)
        assert refusal.value.remote_code == "remote-protocol"
        assert world.devices[LINK].ends[1].waiting == waiting

    asyncio.run(story())


def test_a_silent_device_is_tried_again_at_the_next_step():
    async def story():
        world = pair()
        world.devices[LINK].mute = True
        assert not await world["a"].ingest.step(LINK)
        assert world["a"].ctx.counters["device_unavailable"] == 1
        world.devices[LINK].mute = False
        assert await world["a"].ingest.step(LINK)

    asyncio.run(story())


@pytest.mark.parametrize("call", ["limits", "draw"])
def test_a_device_that_hangs_is_as_good_as_a_silent_one(call, monkeypatch):
    async def story():
        world = World("ab", ["a-b"], replace_settings(SMALL, call_timeout=Seconds(0.01)))

        async def hang(**_):
            await asyncio.Event().wait()

        with monkeypatch.context() as patch:
            patch.setattr(world.devices[LINK].ends[0], call, hang)
            assert not await world["a"].ingest.step(LINK)
        assert world["a"].ctx.counters["device_unavailable"] == 1
        assert await world["a"].ingest.step(LINK)

    asyncio.run(story())


def test_without_a_session_nothing_is_drawn():
    async def story():
        world = pair()
        world["a"].ctx.sessions.clear()
        assert not await world["a"].ingest.step(LINK)
        assert world.devices[LINK].drawn == []

    asyncio.run(story())


def test_an_offer_of_a_session_that_ended_is_made_again_in_the_next():
    async def story():
        world = pair()
        session = world["b"].ctx.sessions.pop("a")
        assert not await world["a"].ingest.step(LINK)
        assert world["a"].pads.offered(LINK) is not None
        world["b"].ctx.sessions["a"] = session
        world.open_session(world["a"], world["b"])
        assert await world["a"].ingest.step(LINK)

    asyncio.run(story())


def test_what_was_ready_is_there_after_a_restart_and_what_was_used_stays_used():
    async def story():
        world = pair()
        await world.stock()
        before = await bits_of(world, "a")
        ranges = world["a"].pads.stream(LINK, "a").allocate(5)
        await world["a"].store.commit(world["a"].pads.used_rows(ranges))
        marks = world["a"].marks()
        world["a"].crash()
        await world["a"].start()
        assert world["a"].marks() == marks
        assert await bits_of(world, "a") == before

    asyncio.run(story())


def test_a_leader_that_crashed_offers_again_what_it_had_on_offer():
    async def story():
        world = pair()
        world.network.faults = lambda *_: Fault.DROP_ANSWER
        await world["a"].ingest.step(LINK)
        world.network.faults = lambda *_: None
        world["a"].crash()
        await world["a"].start()
        drawn = len(world.devices[LINK].drawn)
        assert world["a"].pads.offered(LINK) is not None
        assert await world["a"].ingest.step(LINK)
        assert len(world.devices[LINK].drawn) == drawn

    asyncio.run(story())


def test_a_follower_that_crashed_with_the_devices_keys_makes_both_drop_the_block():
    async def story():
        world = pair()
        world["b"].store.fail_next = Fails.AFTER
        assert not await world["a"].ingest.step(LINK)
        assert world["a"].blocks_on_disk() == (set(), set())
        assert world["a"].ctx.counters["link_blocks_lost"] == 1
        world["b"].crash()
        await world["b"].start()
        assert world["b"].blocks_on_disk() == (set(), set())
        assert world["b"].sealer.keys == {}
        assert await world["a"].ingest.step(LINK)

    asyncio.run(story())


def test_a_session_keeps_what_both_hold_and_drops_the_rest_for_good():
    async def story():
        world = pair()
        await world.stock()
        kept = world["a"].ingest.blocks_with("b")[:2]
        await world["a"].ingest.keep_only("b", kept)
        assert world["a"].ingest.blocks_with("b") == kept
        world["a"].crash()
        await world["a"].start()
        assert world["a"].ingest.blocks_with("b") == world["b"].ingest.blocks_with("a") == kept
        assert len(world["a"].sealer.keys) == len(world["b"].sealer.keys) == 2

    asyncio.run(story())


def test_a_restored_node_drops_all_and_blocks_of_an_earlier_epoch_are_not_read():
    async def story():
        world = pair()
        await world.stock()
        await world["a"].ingest.drop_all()
        assert world["a"].blocks_on_disk() == (set(), set())
        assert world["a"].sealer.keys == {}
        world["b"].ctx.presence = Presence(2, 1, bytes(16))
        fresh = Pads(world["b"].ctx)
        await fresh.load()
        assert fresh.blocks_with("a") == ()
        assert world["b"].blocks_on_disk() == (set(), set())

    asyncio.run(story())


def test_a_block_without_the_record_of_its_use_is_not_read():
    async def story():
        world = pair()
        await world.stock()
        spoilt = sorted(world["a"].store.tables[Table.LINK_USED])
        del world["a"].store.tables[Table.LINK_USED][spoilt[0]]
        world["a"].store.tables[Table.LINK_USED][b"of no block"] = b""
        world["a"].crash()
        await world["a"].start()
        assert world["a"].ingest.blocks_with("b") == tuple(spoilt[1:])

    asyncio.run(story())


def test_a_block_whose_sealing_key_is_gone_is_dropped_by_both():
    async def story():
        world = pair()
        await world.stock()
        world["a"].pads._open.clear()
        world["a"].sealer.keys.clear()
        (first, *_) = world["a"].pads.stream(LINK, "a").blocks
        with pytest.raises(UnavailableError, match="unsealed"):
            await world["a"].pads.bits([PadRange(first, 0, 1)])
        await world["a"].levels.tick()
        assert not world["a"].pads.holds(first)
        assert not world["b"].pads.holds(first)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("limits", "units", "expected"),
    [
        ((1 << 20, 128, 1024), 64, Draw(16, Bits(1024))),
        ((1 << 20, 128, 256), 64, Draw(64, Bits(256))),
        ((1 << 20, 10, 1024), 64, Draw(10, Bits(1024))),  # no more than it gives at once
        ((1 << 20, 128, 100), 1, Draw(3, Bits(96))),  # the odd bits are dropped
        ((1 << 20, 128, 1 << 20), 64, Draw(1, Bits(64 * 256))),
        ((4 * 1024, 128, 1024), 64, Draw(4, Bits(1024))),  # what there is, if it is a sixteenth
        ((1023, 128, 1024), 64, None),
        ((0, 128, 1024), 64, None),
        ((1 << 20, 128, 7), 64, None),
        ((1 << 20, 1, 256), 1024, Draw(1, Bits(256))),  # a device that never gives more
    ],
)
def test_a_device_is_asked_for_what_it_can_give(limits, units, expected):
    stored, number, size = limits
    assert draw_for(DeviceLimits(Bits(stored), number, Bits(size), Bits(1)), units) == expected


def test_a_device_that_hands_out_zeros_is_broken():
    keys = [
        RawKey(UUID(int=place), Secret.of(text), Supply.LIVE) for place, text in enumerate((b"x" * 32, bytes(32)))
    ]
    with pytest.raises(DeviceUnavailableError, match="256 zero bits"):
        joined(keys, Draw(2, Bits(256)))
    assert all(not any(key.key.view()) for key in keys)  # and nothing of it is kept
