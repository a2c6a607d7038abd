"""An instance beside the one that leads: what it does when it ends."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
from tests.kms.fakes import FakeClock, FakeNetwork, FakeStore, make_context, open_session
from tests.kms.pair_world import A, B, PairWorld, a_book
from tests.kms.test_journal import SEGMENT, heading

from trenza.base.errors import StoreUnavailableError, UnavailableError, UnknownKeyError
from trenza.base.names import SaeId
from trenza.base.units import Bits, Nanoseconds, Seconds
from trenza.core.key_records import decode_key_records
from trenza.core.keyid import IdKeys, IdMacs, KeyAddress
from trenza.core.recipe import HYBRID_CATKDF
from trenza.kms import rows, second
from trenza.kms.id_keys import IdKeySet
from trenza.kms.journal import Source
from trenza.kms.ports import Put, Sealed, Table
from trenza.kms.reign import REIGN, ReignRow
from trenza.kms.second import Second
from trenza.kms.slots import Pair


def test_an_instance_that_ends_issues_nothing_while_its_last_records_are_written() -> None:
    async def story() -> None:
        clock, network, store = FakeClock(), FakeNetwork(), FakeStore()
        ctx = make_context(A, network, clock=clock, store=store, book=a_book())
        ctx.shared = store  # type: ignore[assignment]  # nothing of what makes it shared is asked for here
        second = Second(ctx, anchor=None)  # type: ignore[arg-type]  # nobody asks it
        open_session(ctx, make_context(B, network, clock=clock, book=a_book()))
        ctx.sessions[B].lease_until = Seconds(1e9)
        assert second.node.sessions.has_lease(B)
        second.node.journal.note(heading(), Source(B, 1, SEGMENT), (1,), clock.now())
        seen: list[bool] = []
        commit = store.commit

        async def watched(changes: object) -> None:
            seen.append(second.node.sessions.has_lease(B))
            await commit(changes)  # type: ignore[arg-type]

        store.commit = watched  # type: ignore[method-assign]
        await second.end()
        assert seen == [False]
        assert second.node.journal.pending == 0

    asyncio.run(story())


class SharedStore(FakeStore):
    """A FakeStore under a lead, by its own clock."""

    token = 1

    def under(self, token: int) -> None:
        self.token = token

    async def moment(self) -> Seconds:
        return Seconds(0.0)


class Beside:
    """A second of node A, with a key that B has issued and an SAE of A fetches."""

    def __init__(self) -> None:
        self.world = PairWorld()
        self.store = SharedStore()
        self.ctx = make_context(
            A, self.world.network, clock=self.world.clock, store=self.store, sealer=self.world.a.sealer, book=a_book()
        )
        self.ctx.shared = self.store
        self.second = Second(self.ctx, anchor=None)  # type: ignore[arg-type]  # nobody asks it
        self.marked, self.answers = asyncio.Event(), asyncio.Event()

    async def begin(self) -> None:
        await self.world.fill(8, strands=b"s")
        await self.world.b.get_window(8)
        self.store.tables = self.world.a.store.tables
        for count in (1, 2):  # the lead is seen to live
            reign = ReignRow(1, count, bytes(16), 1, 1, 1, (B,))
            await self.store.commit([Put(Table.META, REIGN, rows.encode(reign))])
            await self.second.refresh(1)
        assert self.second.is_trusted
        self.keys = IdKeys(bytes([2]) * 32, bytes([3]) * 32)
        mine = IdKeys(bytes(32), bytes([1]) * 32)
        kept = IdKeySet(bytes(16), Nanoseconds(self.ctx.clock.now()), mine, self.keys, Sealed(0, b""))
        self.second.node.id_keys._sets[B] = [kept]

    @property
    def pair(self) -> Pair:
        book = self.ctx.book
        return Pair(book.sae_by_name[SaeId("B1")], book.sae_by_name[SaeId("A1")], book.policies[0])

    def fetch(self) -> asyncio.Task:
        """Ask for the key; its commit is durable and gets its answer when `answers` is set."""
        pair = self.pair
        address = KeyAddress(0, 3, pair.handle, Bits(256), HYBRID_CATKDF.code)
        key_id = UUID(int=IdMacs(self.keys).seal(address.pack(), pair.binding))

        async def then_wait(_changes: object) -> None:
            self.store.on_commit = None
            self.marked.set()
            await self.answers.wait()

        self.store.on_commit = then_wait
        delivery = self.second.node.delivery
        return asyncio.create_task(delivery.fetch(pair.target.name, pair.initiator.name, [key_id], tls_group="x"))

    def recorded(self, kind: str) -> list[tuple[int, ...]]:
        entries = [one for one in self.store.ledger if one.kind == kind]
        return [record.slots for entry in entries for record in decode_key_records(entry.body)]


def test_what_could_not_be_read_is_read_the_next_time() -> None:
    async def story() -> None:
        beside = Beside()
        await beside.begin()
        held = beside.second.node.pools.pair(B).held
        numbers = set(held)
        assert numbers
        await beside.store.commit([Put(Table.META, REIGN, rows.encode(ReignRow(2, 1, bytes(16), 1, 2, 1)))])
        beside.second.node.pools.forget_all()  # given another life of the lead, and segments to be read anew
        get = beside.store.get

        async def fails(table: Table, key: bytes) -> bytes | None:
            if table is Table.SEGMENT:
                raise StoreUnavailableError("away for a moment")
            return await get(table, key)

        beside.store.get = fails  # type: ignore[method-assign]
        with pytest.raises(StoreUnavailableError):
            await beside.second.refresh(2)
        beside.store.get = get  # type: ignore[method-assign]
        await beside.second.refresh(2)
        assert set(beside.second.node.pools.pair(B).held) == numbers

    asyncio.run(story())


def test_a_key_that_is_not_found_is_unknown_only_while_the_lead_that_is_followed_is_in_force() -> None:
    async def story() -> None:
        beside = Beside()
        await beside.begin()
        pair, delivery = beside.pair, beside.second.node.delivery

        async def ask() -> None:
            await delivery.fetch(pair.target.name, pair.initiator.name, [UUID(int=7)], tls_group="x")

        with pytest.raises(UnknownKeyError):
            await ask()
        # given another instance that leads now, while the look at who does waits long for its answer
        await beside.store.commit([Put(Table.META, REIGN, rows.encode(ReignRow(2, 1, bytes(16), 1, 2, 1, (B,))))])
        with pytest.raises(UnavailableError):  # what that one was granted is not read here yet
            await ask()
        await beside.second.refresh(2)
        with pytest.raises(UnknownKeyError):
            await ask()

    asyncio.run(story())


def test_a_fetch_under_way_is_answered_and_recorded_before_its_instance_ends() -> None:
    async def story() -> None:
        beside = Beside()
        await beside.begin()
        fetch = beside.fetch()
        await beside.marked.wait()
        ending = asyncio.create_task(beside.second.end())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not ending.done()
        beside.answers.set()
        (key,) = await fetch
        assert len(key.key) == 32
        await ending
        assert beside.recorded("delivered") == [(3,)]

    asyncio.run(story())


def test_an_instance_does_not_wait_for_ever_for_a_fetch_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        monkeypatch.setattr(second, "FINISHES_WITHIN", Seconds(0.0))
        beside = Beside()
        await beside.begin()
        fetch = beside.fetch()
        await beside.marked.wait()
        await beside.second.end()
        await beside.store.close()
        beside.answers.set()
        with pytest.raises(StoreUnavailableError):
            await fetch

    asyncio.run(story())
