import asyncio
import time

from slow_disk import SlowDisk

from trenza.adapters.sqlite import SqliteStore
from trenza.kms.ports import Put, Table

DELAY_S = 0.02


def test_a_commit_waits_for_the_slow_disk_and_is_there_afterwards(tmp_path):
    async def story() -> float:
        store = SqliteStore.open(tmp_path, vfs="slow for a test")
        began = time.perf_counter()
        await store.commit([Put(Table.META, b"key", b"value")])
        waited = time.perf_counter() - began
        await store.close()
        return waited

    disk = SlowDisk(DELAY_S, name="slow for a test")
    try:
        assert asyncio.run(story()) >= DELAY_S
    finally:
        disk.unregister()

    async def read() -> bytes | None:
        store = SqliteStore.open(tmp_path)
        try:
            return await store.get(Table.META, b"key")
        finally:
            await store.close()

    assert asyncio.run(read()) == b"value"
