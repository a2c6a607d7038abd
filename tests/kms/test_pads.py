from __future__ import annotations

import asyncio

import pytest
from tests.kms.fakes import Fails
from tests.kms.link_world import World

from trenza.base.errors import NotEnoughKeyError
from trenza.base.names import LinkId, NodeId
from trenza.core.pads import PadRange
from trenza.kms import pads as module
from trenza.kms.ports import Table

LINK, A = LinkId("a-b"), NodeId("a")


async def stocked() -> World:
    world = World("ab", ["a-b"])
    await world.stock()
    return world


def test_bits_come_end_to_end_in_the_order_of_the_ranges():
    async def story():
        world = await stocked()
        pads = world["a"].pads
        first, second = [block.id for block in pads.stream(LINK, A).blocks.values() if not block.reserve]
        whole = {each: bytes((await pads.bits([PadRange(each, 0, 16)])).view()) for each in (first, second)}
        mixed = await pads.bits([PadRange(second, 3, 2), PadRange(first, 0, 1)])
        assert bytes(mixed.view()) == whole[second][96:160] + whole[first][:32]

    asyncio.run(story())


def test_a_block_outlives_its_last_unit_until_its_bits_are_read():
    async def story():
        world = await stocked()
        pads = world["a"].pads
        ranges = pads.stream(LINK, A).allocate(16)
        with pads.using(ranges):
            await pads.sweep()
            assert any((await pads.bits(ranges)).view())
        await pads.sweep()
        assert not pads.holds(ranges[0].block)
        with pytest.raises(NotEnoughKeyError, match="dropped"):
            await pads.bits(ranges)

    asyncio.run(story())


def test_a_swept_block_is_gone_from_memory_disk_and_keyring():
    async def story():
        world = await stocked()
        node, keys = world["a"], len(world["a"].sealer.keys)
        ranges = node.pads.stream(LINK, A).allocate(16)
        await node.pads.bits(ranges)
        opened = node.pads._open[ranges[0].block]
        await node.pads.sweep()
        assert not any(opened.view())
        assert all(ranges[0].block not in rows for rows in node.blocks_on_disk())
        assert len(node.sealer.keys) == keys - 1

    asyncio.run(story())


def test_a_sweep_whose_commit_failed_has_erased_the_key_and_the_next_start_drops_the_row():
    async def story():
        world = await stocked()
        node = world["a"]
        ranges = node.pads.stream(LINK, A).allocate(16)
        await node.store.commit(node.pads.used_rows(ranges))
        keys = len(node.sealer.keys)
        node.store.fail_next = Fails.BEFORE
        await node.pads.sweep()
        assert len(node.sealer.keys) == keys - 1
        assert ranges[0].block in node.store.tables[Table.LINK_BLOCK]
        node.crash()
        await node.start()
        assert ranges[0].block not in node.store.tables[Table.LINK_BLOCK]

    asyncio.run(story())


def test_few_blocks_are_open_at_once_and_the_others_are_wiped(monkeypatch):
    async def story():
        monkeypatch.setattr(module, "_OPEN_BLOCKS", 1)
        world = await stocked()
        pads = world["a"].pads
        first, second, *_ = pads.stream(LINK, A).blocks
        await pads.bits([PadRange(first, 0, 1)])
        opened = pads._open[first]
        await pads.bits([PadRange(second, 0, 1)])
        assert list(pads._open) == [second]
        assert not any(opened.view())
        assert any((await pads.bits([PadRange(first, 0, 1)])).view())

    asyncio.run(story())


def test_two_stories_that_open_a_block_at_once_share_it():
    async def story():
        world = await stocked()
        pads = world["a"].pads
        pads._open.clear()
        (first, *_) = pads.stream(LINK, A).blocks
        one, other = await asyncio.gather(*(pads.bits([PadRange(first, 0, 8)]) for _ in range(2)))
        assert one == other
        assert any(one.view())

    asyncio.run(story())


def test_a_block_dropped_while_it_is_opened_is_not_kept_open():
    async def story():
        world = await stocked()
        pads = world["a"].pads
        pads._open.clear()
        (first, *_) = pads.stream(LINK, A).blocks
        reading = asyncio.create_task(pads.bits([PadRange(first, 0, 8)]))
        await asyncio.sleep(0)
        await pads.drop([first])
        with pytest.raises(NotEnoughKeyError):
            await reading
        assert first not in pads._open

    asyncio.run(story())


def test_rows_are_not_written_for_blocks_that_are_dropped():
    async def story():
        world = await stocked()
        pads = world["a"].pads
        ranges = pads.stream(LINK, A).allocate(2)
        await pads.drop([ranges[0].block])
        assert pads.used_rows(ranges) == []

    asyncio.run(story())


def test_what_a_peer_has_still_to_hear_is_bounded(monkeypatch):
    async def story():
        monkeypatch.setattr(module, "_TOLD_MAX", 3)
        world = await stocked()
        for number in range(5):
            world["a"].pads.tell_gone(NodeId("b"), bytes([number]) * 16)
        assert [block_id[0] for block_id in world["a"].pads.gone(NodeId("b"))] == [2, 3, 4]

    asyncio.run(story())
