"""The store on a real disk without room: nothing is acknowledged that is not there, and room is all it needs."""

import asyncio
import time

import pytest
from tests.small_disk import small_disk

from trenza.adapters.sqlite import SqliteStore
from trenza.base.errors import StoreUnavailableError
from trenza.base.units import Nanoseconds
from trenza.core.chain import verify_chain
from trenza.kms.ports import Append, ChainHead, Insert, LedgerQuery, Table


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", kilobytes=4_096) as made:
        yield made


async def tried(store, number: int) -> bool:
    name = b"%06d" % number
    try:
        await store.commit([Insert(Table.DELIVERED, name, b"x" * 2_000), Append(Nanoseconds(number), "k", name)])
    except StoreUnavailableError:
        return False
    return True


def test_a_store_on_a_full_disk_refuses_and_goes_on_when_there_is_room(disk) -> None:
    async def story() -> None:
        store = SqliteStore.open(disk.path)
        acknowledged: set[int] = set()
        number = 0
        for _ in range(3):
            disk.fill()
            refused = 0
            while refused < 40:
                wave = range(number, number + 20)
                number += 20
                outcomes = await asyncio.gather(*(tried(store, one) for one in wave))
                acknowledged.update(one for one, kept in zip(wave, outcomes, strict=True) if kept)
                refused += outcomes.count(False)
            before = time.process_time()
            await asyncio.sleep(0.5)
            assert time.process_time() - before < 0.25, "nothing spins while nobody asks"
            head = await store.head()  # and what is there can be read
            assert ChainHead(*verify_chain(await everything(store), ChainHead())) == head
            disk.free()
            assert await tried(store, number)
            acknowledged.add(number)
            number += 1
        await store.close()
        again = SqliteStore.open(disk.path)
        kept = {int(key) for key, _ in await again.scan(Table.DELIVERED)}
        assert kept == acknowledged, "what was refused for want of room was not written either"
        assert sorted(int(entry.body) for entry in await everything(again)) == sorted(kept)
        await again.close()

    asyncio.run(story())


async def everything(store) -> list:
    return await store.entries(LedgerQuery(limit=1_000_000))


def test_a_store_that_was_closed_on_a_full_disk_is_whole(disk) -> None:
    async def story() -> None:
        store = SqliteStore.open(disk.path)
        kept = [number for number in range(100) if await tried(store, number)]
        disk.fill()
        kept += [number for number in range(100, 400) if await tried(store, number)]
        await store.close()
        with pytest.raises(StoreUnavailableError, match="disk is full"):  # a start needs room to make all durable
            SqliteStore.open(disk.path)
        disk.free()
        again = SqliteStore.open(disk.path)
        assert await tried(again, 400)
        assert [int(key) for key, _ in await again.scan(Table.DELIVERED)] == [*kept, 400]
        await again.close()

    asyncio.run(story())
