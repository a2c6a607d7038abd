import asyncio
import functools

import pytest
from tests.contract import store_contract

from trenza.adapters.sqlite import InlineStore, SqliteStore, schema
from trenza.base.errors import ConflictError
from trenza.base.units import Nanoseconds
from trenza.kms.ports import Append, Insert, Put, Table


def opened(path) -> InlineStore:
    path.touch()
    return InlineStore(schema.connect(str(path)))


@pytest.mark.parametrize("clause", store_contract.CLAUSES, ids=store_contract.name)
def test_it_keeps_the_contract_of_a_store(clause, tmp_path) -> None:
    asyncio.run(clause(functools.partial(opened, tmp_path / "store.db")))


def test_a_crash_is_starting_from_the_last_image() -> None:
    async def story() -> None:
        store = InlineStore()
        await store.commit([Insert(Table.DELIVERED, b"a"), Append(Nanoseconds(1), "k", b"")])
        image, head = store.image(), await store.head()
        await store.commit([Insert(Table.DELIVERED, b"b")])
        await store.close()
        restored = InlineStore.from_image(image)
        assert await restored.scan(Table.DELIVERED) == [(b"a", b"")]
        assert (restored.counter(), await restored.head()) == (1, head)
        with pytest.raises(ConflictError):
            await restored.commit([Insert(Table.DELIVERED, b"a")])
        await restored.close()

    asyncio.run(story())


def test_a_commit_takes_effect_in_the_callers_turn() -> None:
    store = InlineStore()
    commit = store.commit([Put(Table.WINDOW, b"w", b"1")])
    with pytest.raises(StopIteration):
        commit.send(None)  # it never waits
    assert store.counter() == 1
    asyncio.run(store.close())


def test_it_reads_the_file_of_a_running_nodes_store_after_its_end(tmp_path) -> None:
    async def story() -> None:
        store = SqliteStore.open(tmp_path)
        await store.commit([Put(Table.WINDOW, b"w", b"1")])
        await store.close()
        inline = opened(tmp_path / "store.db")
        assert await inline.get(Table.WINDOW, b"w") == b"1"
        await inline.close()

    asyncio.run(story())
