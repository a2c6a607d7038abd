"""Which keys a node saw, page by page."""

from __future__ import annotations

import asyncio

from tests.kms.fakes import FakeClock, FakeNetwork, FakeStore, make_context

from trenza.base.names import NodeId, SaeId
from trenza.base.units import Bits, Nanoseconds
from trenza.core.policy import Policy
from trenza.core.provenance import FORMAT_VERSION, DoubtfulRecord, Hop, Lineage, SegmentRecord
from trenza.core.recipe import HYBRID_CATKDF
from trenza.core.segment import FULL_ORIGINS
from trenza.core.strand import Supply
from trenza.kms.exposed import START, Exposures
from trenza.kms.journal import Heading, Journal, Source, doubtful_entry
from trenza.kms.ports import Append, LedgerQuery

A, B, R = NodeId("A"), NodeId("B"), NodeId("R")
POLICY = Policy("one", ("hybrid-catkdf",))
PAIR = Heading("issued", SaeId("a"), SaeId("b"), HYBRID_CATKDF, Bits(256), POLICY, "X25519MLKEM768")
SEGMENTS, BATCHES, KEYS = 7, 5, 20


class Reads(FakeStore):
    """A store that remembers how much was read of it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.read = 0

    async def entries(self, query: LedgerQuery):
        found = await super().entries(query)
        self.largest = max(self.largest, len(found))
        self.read += len(found)
        return found


class World:
    """A ledger at A: segments to B, every other one relayed by R, each used by several batches of keys."""

    def __init__(self) -> None:
        self.clock, self.store = FakeClock(), Reads()
        self.ctx = make_context(A, FakeNetwork(), clock=self.clock, store=self.store)
        self.journal = Journal(self.ctx)
        self.exposures = Exposures(self.ctx, journal=self.journal)
        self.relayed: set[tuple[bytes, int]] = set()

    async def live(self) -> None:
        for number in range(SEGMENTS):
            segment = bytes([number]) * 16
            relayed = number % 2 == 0
            await self.store.commit([self._made(segment, relayed=relayed)])
            source = Source(B, number, segment)
            for batch in range(BATCHES):
                for slot in range(batch * KEYS, (batch + 1) * KEYS):
                    self.journal.note(PAIR, source, (slot,), self.clock.now())
                    if relayed:
                        self.relayed.add((segment, slot))
                await self.journal.flush()
                self.clock.advance(60.0)

    def _made(self, segment: bytes, *, relayed: bool) -> Append:
        way = [("AR", A, R), ("RB", R, B)] if relayed else [("AB", A, B)]
        hops = tuple(Hop(link, one, other, Supply.LIVE, True, "computational", None) for link, one, other in way)
        record = SegmentRecord(
            version=FORMAT_VERSION,
            segment=segment,
            leader=A,
            follower=B,
            issuer=A,
            slots=BATCHES * KEYS,
            origins=FULL_ORIGINS,
            lineage=Lineage(bytes(16), "scheme", bytes(96), ("ml-dsa-65",)),
            hops=hops,
            created=self.clock.now(),
            uncertainty=0,
        )
        terms = tuple(f"node:{node}" for node in sorted({A, B, *record.known_to}))
        return Append(self.clock.now(), "segment", record.encode(), (f"segment:{segment.hex()}", *terms))

    async def pages(self, node: NodeId = R, *, until: Nanoseconds | None = None, **most: int):
        """Return all pages."""
        after, pages = START, []
        while after is not None:
            self.store.read = 0
            page = await self.exposures.page(
                node, since=Nanoseconds(0), until=until or self.clock.now(), after=after, **most
            )
            pages.append(page)
            assert page.next is None or page.next > after
            after = page.next
        return pages


def slots_of(pages) -> list[tuple[bytes, int]]:
    return [(one.segment.segment, slot) for page in pages for one in page.found for slot in one.event.record.slots]


def test_every_key_is_on_one_page_however_small_pages_are() -> None:
    async def story() -> None:
        world = World()
        await world.live()
        for most in (
            {},
            {"most_keys": 1},
            {"most_keys": 70},
            {"most_entries": 2},
            {"most_keys": 50, "most_entries": 3},
        ):
            pages = await world.pages(**most)
            found = slots_of(pages)
            assert len(found) == len(set(found))
            assert set(found) == world.relayed
            assert len(pages) > 1 or not most
        assert not slots_of(await world.pages(NodeId("X")))

    asyncio.run(story())


def test_a_page_reads_no_more_than_it_may() -> None:
    async def story() -> None:
        world = World()
        await world.live()
        for page in await world.pages(most_keys=40):
            assert sum(len(one.event.record.slots) for one in page.found) <= 40 + KEYS
        assert world.store.largest <= 50
        await world.exposures.page(B, since=Nanoseconds(0), until=world.clock.now(), most_entries=4)

    asyncio.run(story())


def test_others_have_their_turns_while_a_page_is_read() -> None:
    async def story() -> None:
        world = World()
        await world.live()
        turns = 0

        async def another() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        beside = asyncio.create_task(another())
        await world.exposures.page(R, since=Nanoseconds(0), until=world.clock.now())
        beside.cancel()
        assert turns >= SEGMENTS + len(world.relayed) // KEYS  # one for each entry

    asyncio.run(story())


def test_only_what_was_used_in_the_time_is_told_and_what_is_in_doubt_of_before() -> None:
    async def story() -> None:
        world = World()
        began = world.clock.now()
        await world.live()
        segment = bytes(16)
        doubt = DoubtfulRecord(FORMAT_VERSION, "issued", segment, B, 0, ((90, 3),))
        await world.store.commit([doubtful_entry(world.clock.now(), doubt)])
        pages = await world.pages(until=Nanoseconds(began + 61_000_000_000))
        found = slots_of(pages)
        assert [slot for _, slot in found if slot < 90] == list(range(2 * KEYS))
        assert [slot for _, slot in found if slot >= 90] == [90, 91, 92]

    asyncio.run(story())
