from __future__ import annotations

import asyncio
from dataclasses import replace

import msgspec
import pytest
from tests.kms.fakes import Fails, FakeClock, FakeNetwork, FakeStore, make_context

from trenza.base.errors import StoreUnavailableError, UnavailableError
from trenza.base.names import NodeId, SaeId
from trenza.base.units import Bits
from trenza.core.key_records import decode_key_records
from trenza.core.policy import Policy
from trenza.core.provenance import FORMAT_VERSION, DoubtfulRecord, ranges_of
from trenza.core.recipe import HYBRID_CATKDF, ITS
from trenza.kms.context import Settings
from trenza.kms.journal import SPAN, Heading, Journal, Source, doubtful_entry
from trenza.kms.ports import LedgerQuery, Table
from trenza.wire.peer import Presence

A, B = NodeId("A"), NodeId("B")
SEGMENT = bytes(16)
POLICY = Policy("one", ("hybrid-catkdf", "its"))


def heading(*, deed="issued", recipe=HYBRID_CATKDF, size=256, initiator="a"):
    return Heading(deed, SaeId(initiator), SaeId("b"), recipe, Bits(size), POLICY, "X25519MLKEM768")


class World:
    def __init__(self, **settings):
        self.clock = FakeClock()
        self.ctx = make_context(A, FakeNetwork(), clock=self.clock, settings=replace(Settings(), **settings))
        self.store = self.ctx.store
        self.journal = Journal(self.ctx)
        self._kept: dict[object, Heading | Source] = {}  # as those who note keep them

    def note(self, *slots, window=1, segment=SEGMENT, **of):
        pair = self._kept.setdefault(str(of), heading(**of))
        source = self._kept.setdefault((window, segment), Source(B, window, segment))
        self.journal.note(pair, source, slots, self.clock.now())

    def records(self, kind="issued"):
        return [one for entry in self.entries(kind) for one in decode_key_records(entry.body)]

    def entries(self, kind="issued"):
        return [entry for entry in self.store.ledger if entry.kind == kind]


def test_keys_of_a_batch_are_one_entry_with_the_time_of_each() -> None:
    async def story() -> None:
        world = World()
        began = world.clock.now()
        for slot in (4, 5, 9):
            world.note(slot)
            world.clock.advance(0.001)
        world.note(3, window=2)
        await world.journal.flush()
        first, second = world.records()
        assert (first.slots, first.times, first.window) == ((4, 5, 9), (0, 1_000, 2_000), 1)
        assert (second.slots, second.times, second.window) == ((3,), (3_000,), 2)
        (entry,) = world.entries()
        assert entry.time == began
        assert set(entry.terms) == {f"segment:{SEGMENT.hex()}", "window:B:1", "window:B:2"}
        assert first.time_of(2, began) == began + 2_000_000
        assert world.journal.pending == 0

    asyncio.run(story())


def test_keys_far_apart_in_time_are_told_in_entries_of_their_own() -> None:
    async def story() -> None:
        world, times = World(), []
        for slot, seconds in ((1, SPAN / 1e9), (2, -2 * SPAN / 1e9), (3, 0.0)):  # the clock is set
            times.append(world.clock.now())
            world.note(slot)
            world.clock.advance(seconds)
        await world.journal.flush()
        assert [record.slots for record in world.records()] == [(1,), (2,), (3,)]
        assert [entry.time for entry in world.entries()] == times

    asyncio.run(story())


def test_what_is_issued_and_what_is_delivered_are_entries_of_their_own_and_none_grows_without_bounds() -> None:
    async def story() -> None:
        world = World()
        world.note(7, deed="delivered")
        for window in range(300):
            world.note(window, window=window)
        await world.journal.flush()
        assert [record.slots for record in world.records("delivered")] == [(7,)]
        assert [len(decode_key_records(entry.body)) for entry in world.entries()] == [256, 44]
        assert [record.window for record in world.records()] == list(range(300))

    asyncio.run(story())


def test_keys_of_pairs_that_take_turns_at_one_window_are_told_pair_by_pair() -> None:
    async def story() -> None:
        world = World()
        for slot, initiator in enumerate("acacc"):
            world.note(slot, initiator=initiator)
        world.note(9, window=2, initiator="c")
        await world.journal.flush()
        told = [(record.initiator, record.window, record.slots) for record in world.records()]
        assert told == [("a", 1, (0, 2)), ("c", 1, (1, 3, 4)), ("c", 2, (9,))]

    asyncio.run(story())

    asyncio.run(story())


@pytest.mark.parametrize("how", Fails)
def test_a_batch_of_unknown_outcome_is_written_again_and_stands_there_once(how) -> None:
    async def story() -> None:
        world = World()
        world.note(1, 2)
        world.store.fail_next = how
        with pytest.raises(StoreUnavailableError):
            await world.journal.flush()
        assert world.journal.pending == 2
        world.note(3)
        await world.journal.flush()
        assert [record.slots for record in world.records()] == [(1, 2), (3,)]
        assert world.journal.pending == 0

    asyncio.run(story())


def test_the_notes_of_one_segment_are_written_when_it_goes_and_others_wait() -> None:
    async def story() -> None:
        world = World()
        world.note(1)
        await world.journal.flush_of(b"another segment.")
        assert world.records() == []
        world.store.fail_next = Fails.BEFORE
        with pytest.raises(StoreUnavailableError):
            await world.journal.flush_of(SEGMENT)
        await world.journal.flush_of(b"another segment.")  # of what was handed over before, nobody knows whose it is
        assert [record.slots for record in world.records()] == [(1,)]

    asyncio.run(story())


def test_while_the_store_takes_nothing_notes_are_bounded_and_more_is_refused() -> None:
    async def story() -> None:
        world = World(journal_records=3)
        world.note(1, 2)
        world.journal.refuse_if_full()
        world.note(3)
        assert world.journal.is_full
        with pytest.raises(UnavailableError):
            world.journal.refuse_if_full()
        await world.journal.flush()
        world.journal.refuse_if_full()

    asyncio.run(story())


def test_notes_are_written_behind_without_being_asked() -> None:
    async def story() -> None:
        world = World(journal_delay=0.0)
        task = asyncio.create_task(world.journal.run())
        world.note(1)
        await _some_turns()
        assert world.journal.pending == 0
        world.store.fail_next = Fails.BEFORE
        world.note(2)
        await _some_turns()
        assert world.journal.pending == 0
        task.cancel()
        assert [record.slots for record in world.records()] == [(1,), (2,)]

    asyncio.run(story())


def test_the_next_life_finds_what_was_recorded_and_what_was_called_doubtful() -> None:
    async def story() -> None:
        world = World()
        world.note(0, 1)
        world.note(8, recipe=ITS, size=512)
        await world.journal.flush()
        world.note(2)  # and then the process dies
        doubt = DoubtfulRecord(FORMAT_VERSION, "issued", SEGMENT, B, 1, ((2, 1), (5, 2)))
        other = replace_deed(doubt, "delivered")
        await world.store.commit([doubtful_entry(world.clock.now(), one) for one in (doubt, other)])
        again = Journal(make_context(A, FakeNetwork(), clock=world.clock, store=world.store.after_crash()))
        await again.load()
        assert await again.recorded("issued", B, 1, SEGMENT) == {0, 1, 2, 5, 6, 8, 9}
        assert await again.recorded("delivered", B, 1, SEGMENT) == {2, 5, 6}
        assert await again.recorded("issued", B, 2, SEGMENT) == set()

    asyncio.run(story())


async def _some_turns() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def replace_deed(record, deed):
    return msgspec.structs.replace(record, deed=deed)


def test_only_one_marker_of_a_batch_is_kept() -> None:
    async def story() -> None:
        world = World()
        for slot in range(3):
            world.note(slot)
            await world.journal.flush()
        assert sum(map(len, world.store.tables.values())) == 1
        assert len(await world.store.entries(LedgerQuery(kind="issued"))) == 3

    asyncio.run(story())


class Shared:
    """Instances of one node on one store: one leads, the others serve beside it."""

    def __init__(self) -> None:
        self.clock, self.store, self.lives = FakeClock(), FakeStore(), 0
        self.lead = self.instance()

    def instance(self) -> World:
        self.lives += 1
        world = World()
        world.clock, world.store = self.clock, self.store
        world.ctx = make_context(
            A,
            FakeNetwork(),
            clock=self.clock,
            store=self.store,
            presence=Presence(1, 1, self.lives.to_bytes(16, "big")),
        )
        world.ctx.shared = self.store  # type: ignore[assignment]  # that it is shared is all that is asked
        world.journal = Journal(world.ctx)
        return world

    def markers(self) -> int:
        return len([key for key in self.store.tables[Table.META] if key.startswith(b"journal:")])

    async def live(self, seconds: float, *, busy=()) -> None:
        """Let time go by, in which the lead looks after things and `busy` instances write records."""
        for turn in range(round(seconds / 5)):
            for number, world in enumerate(busy):
                world.note(turn, window=number)
                await world.journal.flush()
            await self.lead.journal.settle_others()
            self.clock.advance(5.0)


def test_the_lead_removes_the_markers_of_lives_that_are_over_and_of_no_other() -> None:
    async def story() -> None:
        node = Shared()
        alive = node.instance()
        for _ in range(40):  # instances that were killed, each with its last batch written
            dead = node.instance()
            dead.note(1)
            await dead.journal.flush()
        assert node.markers() == 40
        await node.live(300.0, busy=(alive, node.lead))
        assert node.markers() == 42  # not yet: they may be slow
        await node.live(400.0, busy=(alive, node.lead))
        assert node.markers() == 2
        written = len(node.store.ledger)
        await node.live(50.0, busy=(alive,))
        assert len(node.store.ledger) == written + 10

    asyncio.run(story())


@pytest.mark.parametrize("how", Fails)
def test_a_batch_whose_marker_was_removed_stands_in_the_ledger_once(how) -> None:
    async def story() -> None:
        node = Shared()
        cut_off = node.instance()
        cut_off.note(1, 2)
        node.store.fail_next = how
        with pytest.raises(StoreUnavailableError):
            await cut_off.journal.flush()
        await node.live(1_000.0)
        assert node.markers() == 0
        await cut_off.journal.flush()  # it reaches the store again
        assert [record.slots for record in cut_off.records()] == [(1, 2)]
        cut_off.note(3)
        await cut_off.journal.flush()
        assert [record.slots for record in cut_off.records()] == [(1, 2), (3,)]

    asyncio.run(story())


def test_ranges_name_each_slot_once() -> None:
    assert ranges_of([5, 3, 4, 9]) == ((3, 3), (9, 1))
    assert ranges_of([]) == ()
