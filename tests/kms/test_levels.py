from __future__ import annotations

import asyncio

from tests.kms.fakes import Fault
from tests.kms.link_world import World

from trenza.base.names import LinkId, NodeId
from trenza.wire.peer import LinkLevel, LinkLevels


def levels_sent(world: World) -> list[tuple[str, str, LinkLevels]]:
    return [each for each in world.network.sent if isinstance(each[2], LinkLevels)]


async def tick_all(world: World, times: int = 1) -> None:
    for _ in range(times):
        for node in world.nodes.values():
            await node.levels.tick()


def name(link: str, sender: str) -> tuple[LinkId, NodeId]:
    return LinkId(link), NodeId(sender)


def test_every_node_of_a_row_comes_to_know_every_level():
    async def story():
        world = World("abcd", ["a-b", "b-c", "c-d"])
        await world.stock()
        await tick_all(world, 3)
        expected = {name(link, end): 32 for link in ("a-b", "b-c", "c-d") for end in link.split("-")}
        assert all(node.levels.view() == expected for node in world.nodes.values())

    asyncio.run(story())


def test_nothing_is_said_while_nothing_changes_and_all_is_said_again_after_five_seconds():
    async def story():
        world = World("abc", ["a-b", "b-c"])
        await world.stock()
        await tick_all(world, 3)
        world.network.sent.clear()
        world.clock.advance(4.0)
        await tick_all(world)
        assert levels_sent(world) == []
        world.clock.advance(1.0)
        await tick_all(world)
        assert levels_sent(world)

    asyncio.run(story())


def test_small_changes_are_not_worth_a_message_and_large_ones_are():
    async def story():
        world = World("ab", ["a-b"])
        await world.stock()
        await tick_all(world, 2)
        stream = world["a"].pads.stream(LinkId("a-b"), NodeId("a"))
        stream.allocate(4)
        await world["a"].levels.tick()
        assert world["b"].levels.view()[name("a-b", "a")] == 32
        stream.allocate(1)
        await world["a"].levels.tick()
        assert world["b"].levels.view()[name("a-b", "a")] == 27

    asyncio.run(story())


def test_without_a_reserve_a_link_counts_as_empty():
    async def story():
        world = World("ab", ["a-b"])
        await world.stock()
        world["a"].pads.stream(LinkId("a-b"), NodeId("a")).allocate(8, reserve=True)
        await world["a"].levels.tick()
        assert world["a"].levels.view()[name("a-b", "a")] == 0
        assert world["b"].levels.view()[name("a-b", "a")] == 0

    asyncio.run(story())


def test_a_neighbour_that_did_not_hear_is_told_at_the_next_tick():
    async def story():
        world = World("ab", ["a-b"])
        await world.stock()
        world.network.faults = lambda *_: Fault.DROP_REQUEST
        await world["a"].levels.tick()
        assert name("a-b", "a") not in world["b"].levels.view()
        world.network.faults = lambda *_: None
        await world["a"].levels.tick()
        assert world["b"].levels.view()[name("a-b", "a")] == 32

    asyncio.run(story())


def test_a_neighbour_that_started_anew_between_two_ticks_is_told_everything_again():
    async def story():
        world = World("abc", ["a-b", "b-c"])
        await world.stock()
        await tick_all(world, 3)
        known = world["a"].levels.view()
        world["a"].crash()
        await world["a"].start()
        assert name("b-c", "c") not in world["a"].levels.view()
        await world["b"].levels.tick()
        assert name("b-c", "c") in known
        assert world["a"].levels.view() == known

    asyncio.run(story())


def test_a_neighbour_without_a_session_is_told_nothing():
    async def story():
        world = World("ab", ["a-b"])
        world["a"].ctx.sessions.clear()
        await world["a"].levels.tick()
        assert levels_sent(world) == []

    asyncio.run(story())


def test_the_links_of_a_silent_node_are_forgotten():
    async def story():
        world = World("abc", ["a-b", "b-c"])
        await world.stock()
        await tick_all(world, 3)
        del world.network.handlers["c"], world.nodes["c"]
        for _ in range(5):
            world.clock.advance(5.0)
            await tick_all(world)
        assert set(world["a"].levels.view()) == {name("a-b", "a"), name("a-b", "b"), name("b-c", "b")}

    asyncio.run(story())


def test_older_words_foreign_links_and_clocks_far_ahead_change_nothing():
    async def story():
        world = World("abc", ["a-b", "b-c"])
        now = world.clock.now()
        told = [
            LinkLevel("b-c", "c", 7, 1, now),
            LinkLevel("b-c", "c", 8, 1, now - 1),
            LinkLevel("b-c", "c", 9, 1, now + 10**15),
            LinkLevel("b-c", "a", 9, 1, now),  # not an end of it
            LinkLevel("a-b", "a", 9, 1, now),  # what only node a can say
            LinkLevel("x-y", "x", 9, 1, now),
        ]
        await world["a"].levels.handle(NodeId("b"), LinkLevels(tuple(told), ()))
        assert world["a"].levels.view() == {name("a-b", "a"): 0, name("b-c", "c"): 7}

    asyncio.run(story())


def test_what_a_restarted_node_says_is_newer_than_what_it_said_before():
    async def story():
        world = World("ab", ["a-b"])
        await world.stock()
        await tick_all(world)
        world.clock.advance(0.1)
        world["a"].crash()
        await world["a"].start()
        world["a"].pads.stream(LinkId("a-b"), NodeId("a")).allocate(32)
        await world["a"].levels.tick()
        assert world["b"].levels.view()[name("a-b", "a")] == 0

    asyncio.run(story())


def test_a_leader_restocks_what_the_other_end_burnt_without_its_seeing():
    async def story():
        world = World("ab", ["a-b"])
        await world.stock()
        world["b"].pads.stream(LinkId("a-b"), NodeId("b")).allocate(30)  # and no message ever came
        assert not await world["a"].ingest.step(LinkId("a-b"))
        await world["b"].levels.tick()
        await world.stock()
        assert world["b"].free("a-b", "b") >= 32

    asyncio.run(story())


def test_a_block_used_up_by_units_that_never_arrived_is_erased_at_the_far_end_too_but_not_in_haste():
    async def story():
        world = World("ab", ["a-b"])
        await world.stock()
        stream = world["a"].pads.stream(LinkId("a-b"), NodeId("a"))
        (burnt,) = {named.block for named in stream.allocate(16)}
        await world["a"].pads.sweep()
        await world["a"].levels.tick()
        assert world["b"].pads.holds(burnt)  # a message under it may still be on its way
        world.clock.advance(2 * world.settings.relay_timeout)
        await world["a"].levels.tick()
        assert not world["b"].pads.holds(burnt)
        assert burnt not in world["b"].blocks_on_disk()[0]

    asyncio.run(story())


def test_no_neighbour_is_told_what_it_told_or_what_is_its_own():
    async def story():
        world = World("abc", ["a-b", "b-c"])
        await world.stock()
        await tick_all(world, 3)
        for sender, receiver, message in levels_sent(world):
            assert receiver not in {level.sender for level in message.levels}
            assert not (sender == "b" and receiver == "a" and any(level.sender == "a" for level in message.levels))
        pairs = [(sender, receiver) for sender, receiver, _ in levels_sent(world)]
        assert sorted(pairs) == [("a", "b"), ("b", "a"), ("b", "a"), ("b", "c"), ("c", "b")]

    asyncio.run(story())


def test_a_far_end_that_says_little_does_not_make_the_leader_draw_without_end():
    async def story():
        world = World("ab", ["a-b"])
        link, sender = name("a-b", "b")
        await world["a"].levels.handle(sender, LinkLevels((LinkLevel(link, sender, 0, 0, world.clock.now()),), ()))
        await world.stock()  # each new block counts, though the far end has said nothing of it yet
        assert world["a"].free("a-b", "b") == 32
        for later in range(1, 9):
            level = LinkLevel(link, sender, 0, 0, world.clock.now() + later)
            await world["a"].levels.handle(sender, LinkLevels((level,), ()))
            await world.stock()
        assert world["a"].free("a-b", "b") <= 2 * 32 + 16
        assert world["a"].free("a-b", "b", reserve=True) <= 2 * 8 + 8

    asyncio.run(story())


def test_only_blocks_shared_with_the_speaker_can_be_gone():
    async def story():
        world = World("abc", ["a-b", "b-c"])
        await world.stock()
        (block, *_) = world["b"].ingest.blocks_with("c")
        await world["b"].levels.handle(NodeId("a"), LinkLevels((), (block, b"unknown")))
        assert world["b"].pads.holds(block)

    asyncio.run(story())
