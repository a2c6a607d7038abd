"""What an instance that died beside the lead had not recorded is named: soon, or when the window goes."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from tests.kms.fakes import make_context
from tests.kms.pair_world import A, B, PairWorld, any_strands

from trenza.base.errors import StoreUnavailableError
from trenza.base.names import SaeId
from trenza.base.units import Bits, Nanoseconds, Seconds
from trenza.core.policy import Policy
from trenza.core.provenance import DoubtfulRecord
from trenza.core.recipe import HYBRID_CATKDF
from trenza.kms import rows
from trenza.kms.journal import Heading, Journal, Source
from trenza.kms.owed import Debts
from trenza.kms.ports import Insert, Put, Table
from trenza.wire.peer import Presence

POLICY = Policy("one", ("hybrid-catkdf",))
SEGMENT = bytes([1]) * 16


class World:
    """Node B, which issues to A out of one window, and node A, which delivers; both with others beside the lead."""

    def __init__(self) -> None:
        self.pair = PairWorld()
        self.lease = self.pair.settings.lease

    async def begin(self) -> None:
        for end in (self.pair.a, self.pair.b):
            end.ctx.shared = end.store  # type: ignore[assignment]  # that it is shared is all that is asked
        await self.pair.fill(8)
        await self.pair.b.get_window(8)
        (self.window,) = self.pair.b.pair.issuer

    async def reserved_beside(self, mark: int) -> None:
        """Let the other instance of B reserve up to `mark`, and the lead hear of it."""
        key = rows.window_key(rows.ISSUER, A, self.window.number)
        row = rows.IssuerWindowRow(SEGMENT, self.window.first, self.window.count, mark)
        await self.pair.b.store.commit([Put(Table.WINDOW, key, rows.encode(row))])
        self.pair.b.pools.reserving.note_reserved_by_others([(key, rows.encode(row))])

    async def record(self, end, deed: str, slots: range, *, journal: Journal | None = None) -> None:
        """Record keys in the ledger: another instance does, unless its journal is given."""
        heading = Heading(deed, SaeId("b"), SaeId("a"), HYBRID_CATKDF, Bits(256), POLICY, "")
        source = Source(end.peer, self.window.number, SEGMENT)
        if journal is None:
            beside = Presence(1, 1, b"beside the lead!")
            journal = Journal(
                make_context(end.name, self.pair.network, clock=self.pair.clock, store=end.store, presence=beside)
            )
        for slot in slots:
            journal.note(heading, source, (slot,), end.ctx.clock.now())
        await journal.flush()

    async def retire(self) -> None:
        await self.pair.b.pools.retire_issued(A, self.pair.b.marks())

    @staticmethod
    def doubts(end) -> list[tuple[str, set[int]]]:
        found = [one.body for one in end.store.ledger if one.kind == "doubtful"]
        records = [msgspec.msgpack.decode(body, type=DoubtfulRecord) for body in found]
        return [(record.deed, set(record.slots)) for record in records]


def run(story) -> None:
    async def live() -> None:
        world = World()
        await world.begin()
        await story(world)

    asyncio.run(live())


def test_what_was_issued_beside_the_lead_and_never_recorded_is_named_when_its_window_is_used_up() -> None:
    async def story(world: World) -> None:
        b = world.pair.b
        await world.reserved_beside(5)
        assert [slot for _, slot in await b.issue(3)] == [5, 6, 7]
        await world.record(b, "issued", range(5, 8), journal=b.pools._journal)
        await world.record(b, "issued", range(2))  # of five keys; then it died
        await world.retire()
        assert (len(list(b.pair.issuer)), world.doubts(b)) == (1, [])  # it may only be slow
        world.pair.clock.advance(2 * world.lease)
        await world.retire()
        assert world.doubts(b) == [("issued", {2, 3, 4})]
        assert not list(b.pair.issuer)
        assert not b.store.tables[Table.WINDOW]

    run(story)


def test_where_all_is_recorded_nothing_is_in_doubt() -> None:
    async def story(world: World) -> None:
        b = world.pair.b
        await world.reserved_beside(8)
        await world.record(b, "issued", range(8))
        for _ in range(2):
            await world.retire()
            world.pair.clock.advance(2 * world.lease)
        assert not list(b.pair.issuer)
        assert world.doubts(b) == []

    run(story)


def test_a_lead_that_shared_no_window_waits_for_nobody() -> None:
    async def story(world: World) -> None:
        b = world.pair.b
        await b.issue(8)
        await world.retire()
        assert not list(b.pair.issuer)
        assert world.doubts(b) == []

    run(story)


def test_what_was_issued_beside_the_lead_is_named_when_its_segment_is_dropped() -> None:
    async def story(world: World) -> None:
        b = world.pair.b
        await world.reserved_beside(3)
        assert await b.issue(2)  # and these were neither used nor recorded, but are the lead's own
        await b.pools.drop_segment(b.segment)
        ((deed, slots),) = world.doubts(b)
        assert (deed, slots & {0, 1, 2}) == ("issued", {0, 1, 2})

    run(story)


def test_what_was_delivered_beside_the_lead_and_never_recorded_is_named_when_its_window_expires() -> None:
    async def story(world: World) -> None:
        a = world.pair.a
        (held,) = a.pair.held.values()
        marks = [Insert(Table.DELIVERED, rows.delivered_key(B, held.number, slot)) for slot in (1, 2, 6)]
        await a.store.commit(list(marks))
        await world.record(a, "delivered", range(1, 2))
        a.pair.held.close(held, a.ctx.clock.now())
        await a.pools.granting.note_deliveries(B)
        world.pair.clock.advance(100.0)
        age = {True: Seconds(1e6), False: Seconds(1e6)}
        await a.pools.tidy(B, key_lifetime=Nanoseconds(60_000_000_000), max_age=age)
        assert world.doubts(a) == [("delivered", {2, 6})]
        assert not a.pair.held
        assert await a.pools.granting.grant(B, full=True, slots=1, accept=any_strands) == ()

    run(story)


# --- windows that stay, of an instance that is gone

BOTH, LEAD_ALONE = frozenset({b"lead", b"beside"}), frozenset({b"lead"})


async def debts_of(end) -> Debts:
    """Return the debts of a lead that has had time to look for those from before it knew who lives."""
    debts = Debts(end.ctx, end.pools._journal, given_up=end.pools.given_up)
    debts.note_lives(BOTH)
    for _ in range(2):
        await debts.step()
    return debts


def test_what_an_instance_that_is_gone_issued_without_a_record_is_named_while_its_window_is_in_use() -> None:
    async def story(world: World) -> None:
        b = world.pair.b
        debts = await debts_of(b)
        await world.reserved_beside(5)
        await world.record(b, "issued", range(2))  # of five keys; then it died
        await debts.step()
        await debts.step()
        assert world.doubts(b) == []  # as far as is known it lives
        debts.note_lives(LEAD_ALONE)
        await debts.step()
        assert [slot for _, slot in await b.issue(3)] == [5, 6, 7]  # the lead's own, not recorded yet
        assert world.doubts(b) == []
        await debts.step()
        assert world.doubts(b) == [("issued", {2, 3, 4})]
        assert list(b.pair.issuer)
        debts.note_lives(LEAD_ALONE)
        await debts.step()
        await debts.step()
        assert len(world.doubts(b)) == 1  # once

    run(story)


def test_what_an_instance_that_is_gone_delivered_without_a_record_is_named_while_its_window_is_open() -> None:
    async def story(world: World) -> None:
        a = world.pair.a
        debts = await debts_of(a)
        (held,) = a.pair.held.values()
        marks = [Insert(Table.DELIVERED, rows.delivered_key(B, held.number, slot)) for slot in (1, 2, 6)]
        await a.store.commit(list(marks))
        await world.record(a, "delivered", range(1, 2))
        debts.note_lives(LEAD_ALONE)
        await debts.step()
        await world.record(a, "delivered", range(6, 7), journal=a.pools._journal)  # who lives was about to
        await debts.step()
        assert world.doubts(a) == [("delivered", {2})]
        assert held.closed is None

    run(story)


def test_what_an_instance_owes_that_went_before_the_lead_first_looked_is_named_too() -> None:
    async def story(world: World) -> None:
        b = world.pair.b
        await world.reserved_beside(2)
        debts = Debts(b.ctx, b.pools._journal, given_up=b.pools.given_up)
        await debts.step()
        await debts.step()
        assert world.doubts(b) == []  # nobody has said who lives
        debts.note_lives(LEAD_ALONE)
        await debts.step()
        await debts.step()
        assert world.doubts(b) == [("issued", {0, 1})]

    run(story)


def test_what_could_not_be_named_is_named_when_the_store_takes_it() -> None:
    async def story(world: World) -> None:
        b = world.pair.b
        debts = await debts_of(b)
        await world.reserved_beside(2)
        debts.note_lives(LEAD_ALONE)
        await debts.step()
        commit = b.store.commit

        async def refused(_changes: object) -> None:
            raise StoreUnavailableError("not now")

        b.store.commit = refused  # type: ignore[method-assign, assignment]
        with pytest.raises(StoreUnavailableError):
            await debts.step()
        b.store.commit = commit  # type: ignore[method-assign]
        await debts.step()
        assert world.doubts(b) == [("issued", {0, 1})]

    run(story)


def test_windows_that_no_other_instance_used_are_not_looked_into() -> None:
    async def story(world: World) -> None:
        b = world.pair.b
        assert await b.issue(3)
        assert await b.pools.given_up() == {A: []}
        assert await world.pair.a.pools.given_up() == {B: []}

    run(story)
