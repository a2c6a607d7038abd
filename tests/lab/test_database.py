"""The lab's PostgreSQL keeps the contracts of the real one, and fails as one does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from tests.contract import sealer_contract, store_contract

from trenza.adapters.keyring.node_key import HeldNodeKey
from trenza.adapters.postgres import PostgresSealer
from trenza.base.errors import ConflictError, FencedError, StoreUnavailableError
from trenza.base.secret import Secret
from trenza.base.units import Nanoseconds
from trenza.core.chain import verify_chain
from trenza.kms.ports import Append, ChainHead, Expect, Insert, LedgerQuery, Prune, Put, Table
from trenza.lab.database import LabPostgres
from trenza.lab.loop import VirtualClock, run
from trenza.lab.shared_store import LabLease, LabServer, LabSharedStore
from trenza.lab.standins import SeededEntropy

pytest.importorskip("asyncpg", reason="the extra `postgres` is not installed")

WINDOW, DELIVERED = Table.WINDOW, Table.DELIVERED


def postgres(seed: int = 1) -> LabPostgres:
    return LabPostgres(chance=random.Random(seed))


class Instance:
    """One process: its way to the server, its store and its lease."""

    def __init__(self, memory: LabPostgres, name: str) -> None:
        self.server = LabServer(memory, name)
        self.store = LabSharedStore(self.server)
        clock = VirtualClock(asyncio.get_running_loop())
        self.lease = LabLease(self.server, name=name, clock=clock, entropy=SeededEntropy(name))

    async def lead(self) -> None:
        assert await self.lease.acquire()
        self.store.under(self.lease.token)


def told(story: Callable[[LabPostgres], Coroutine[Any, Any, None]]) -> None:
    async def begin() -> None:
        await story(postgres())

    run(begin())


@pytest.mark.parametrize("clause", store_contract.CLAUSES + store_contract.SHARED_CLAUSES, ids=store_contract.name)
def test_it_keeps_the_contract_of_a_store(clause) -> None:
    async def story(memory: LabPostgres) -> None:
        await clause(lambda: LabSharedStore.begin(LabServer(memory, "a")))

    told(story)


@pytest.mark.parametrize("clause", sealer_contract.CLAUSES, ids=sealer_contract.name)
def test_keys_sealed_in_it_keep_the_contract_of_a_sealer(clause) -> None:
    async def story(memory: LabPostgres) -> None:
        stores: dict[int, LabSharedStore] = {}

        async def make() -> PostgresSealer:
            store = await LabSharedStore.begin(LabServer(memory, "a"))
            sealer = await PostgresSealer.open(
                store, node_key=HeldNodeKey(Secret.of(bytes(32))), entropy=SeededEntropy(f"sealer {len(stores)}")
            )
            stores[id(sealer)] = store
            return sealer

        async def close(sealer: PostgresSealer) -> None:
            await sealer.close()
            await stores[id(sealer)].close()

        await clause(make, close)

    told(story)


def test_the_lead_is_one_s_until_its_lease_ends_and_then_its_token_writes_nothing() -> None:
    async def story(memory: LabPostgres) -> None:
        a, b = Instance(memory, "a"), Instance(memory, "b")
        await a.lead()
        assert not await b.lease.acquire()
        with pytest.raises(FencedError):
            await b.store.commit([Put(WINDOW, b"w", b"b")])
        await a.store.commit([Put(WINDOW, b"w", b"a")])
        old = a.lease.token
        await asyncio.sleep(2.1)
        seen = await b.lease.look()
        assert (seen.is_free, seen.name, seen.instances) == (True, "a", ("a", "b"))
        assert seen.lives == {a.lease.life, b.lease.life}
        await b.lead()
        assert b.lease.token > old == b.lease.succeeded
        with pytest.raises(FencedError):
            await a.store.commit([Put(WINDOW, b"w", b"late")])
        with pytest.raises(FencedError):
            await a.lease.renew()
        assert await a.store.get(WINDOW, b"w") == b"a"
        reign = b.lease.token
        await b.lease.release()
        free = await a.lease.look()
        assert (free.is_free, free.reign) == (True, reign)
        with pytest.raises(FencedError):
            await b.store.commit([Put(WINDOW, b"w", b"b")])

    told(story)


def test_a_commit_whose_answer_is_lost_is_there_and_says_that_it_may_be() -> None:
    async def story(memory: LabPostgres) -> None:
        a = Instance(memory, "a")
        memory.lose_answers = 1.0
        with pytest.raises(StoreUnavailableError):
            await a.store.commit([Insert(DELIVERED, b"d")])
        memory.lose_answers = 0.0
        with pytest.raises(ConflictError):
            await a.store.commit([Insert(DELIVERED, b"d")])

    told(story)


def test_who_is_cut_off_or_asks_while_it_is_down_is_told_so_and_goes_on_afterwards() -> None:
    async def story(memory: LabPostgres) -> None:
        a, b = Instance(memory, "a"), Instance(memory, "b")
        memory.cut.add("a")
        with pytest.raises(StoreUnavailableError):
            await a.store.commit([Put(WINDOW, b"w", b"a")])
        await b.store.commit([Expect(WINDOW, b"w", None), Put(WINDOW, b"w", b"b")])
        memory.cut.clear()
        memory.crash()
        with pytest.raises(StoreUnavailableError):
            await b.store.get(WINDOW, b"w")
        memory.start()
        assert await a.store.get(WINDOW, b"w") == b"b"

    told(story)


def test_a_failover_takes_whole_groups_back_and_fences_everybody() -> None:
    async def story(memory: LabPostgres) -> None:
        lacked = set()
        for seed in range(20):
            memory = postgres(seed)
            a = Instance(memory, "a")
            for n in range(6):
                await a.store.commit([Put(WINDOW, b"w", b"%d" % n), Append(Nanoseconds(n), "k", b"")])
                if n == 3:
                    entry = (await a.store.entries(LedgerQuery()))[1]
                    await a.store.commit([Prune(2, entry.hash)])
            lacked.add(lacks := memory.fail_over())
            with pytest.raises(FencedError):
                await a.store.commit([Put(WINDOW, b"w", b"late")])
            again = Instance(memory, "a")
            extent, entries = await again.store.extent(), await again.store.entries(LedgerQuery())
            assert again.store.counter() == 7 - lacks
            assert ChainHead(*verify_chain(entries, extent.start)) == extent.head
            assert len(entries) == extent.head.sequence - extent.start.sequence
        assert len(lacked) > 4

    told(story)
