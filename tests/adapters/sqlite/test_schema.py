import asyncio
import hashlib
import logging
from pathlib import Path
from types import MappingProxyType
from uuid import UUID

import apsw
import pytest
from tests.adapters.sqlite.faulty_disk import FaultyDisk
from tests.adapters.sqlite.old_nodes import NODES, old_nodes, two_nodes

from trenza.adapters.sqlite import InlineStore, SqliteStore, schema
from trenza.base.errors import InvalidDocumentError, StoreUnavailableError
from trenza.base.names import SaeId
from trenza.base.units import Nanoseconds
from trenza.core.chain import verify_chain
from trenza.core.delivery import IssueRequest
from trenza.kms import rows
from trenza.kms.ports import Append, ChainHead, LedgerQuery, Put, Table
from trenza.lab.loop import run
from trenza.lab.story import Client
from trenza.lab.world import Copy

OLD_VERSIONS = range(1, schema.VERSION)
A1, B1 = SaeId("A1"), SaeId("B1")


def written(path, version: int, name=NODES[0]):
    """Put the store that an earlier release wrote into a data directory."""
    path.mkdir(exist_ok=True)
    (path / "store.db").write_bytes(old_nodes(version).files[name]["store.db"])
    return path


def version_in(path) -> int:
    connection = apsw.Connection(str(path / "store.db"))
    try:
        return connection.pragma("user_version")
    finally:
        connection.close()


def everything_in(path) -> list[tuple]:
    connection = apsw.Connection(str(path / "store.db"))
    try:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return [(name, *row) for name in sorted(names) for row in connection.execute(f"SELECT * FROM {name}")]
    finally:
        connection.close()


def test_there_is_a_migration_for_every_version_and_a_table_for_every_port_name() -> None:
    assert list(schema.MIGRATIONS) == list(range(1, schema.VERSION + 1))
    store = InlineStore()
    made = {name for (name,) in store._connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    assert {table.value for table in Table} <= made, "a new table needs a new migration"
    asyncio.run(store.close())


@pytest.mark.parametrize("version", OLD_VERSIONS)
def test_a_store_of_an_earlier_release_is_brought_to_this_one_with_all_it_holds(version, tmp_path, caplog) -> None:
    path = written(tmp_path, version)
    before = everything_in(path)

    async def story() -> None:
        store = SqliteStore.open(path)
        ledger = await store.entries(LedgerQuery())
        assert len(ledger) >= 9
        assert ChainHead(*verify_chain(ledger, ChainHead())) == await store.head()
        await store.commit([Append(Nanoseconds(1), "k", b"")])  # and the chain goes on
        verify_chain(await store.entries(LedgerQuery()), ChainHead())
        await store.close()

    with caplog.at_level(logging.INFO):
        asyncio.run(story())
    assert f"from format {version} to {schema.VERSION}" in caplog.text
    assert version_in(path) == schema.VERSION
    assert {row for row in before if row[0] != "store_state"} <= set(everything_in(path))


@pytest.mark.parametrize("version", OLD_VERSIONS)
def test_nodes_of_an_earlier_release_go_on_with_their_strands_and_explain_their_keys(version) -> None:
    old = old_nodes(version)

    async def story() -> None:
        world = two_nodes()
        for name in NODES:
            machine = world.machines[name]
            machine.disk = Copy(old.files[name])
            store = InlineStore.from_image(old.files[name]["store.db"])
            row = rows.decode(await store.get(Table.META, rows.SELF), rows.SelfRow)
            machine.anchor.remember(row.store, store.counter())  # the machine was not booted meanwhile
            await store.close()
            await world.start(name)
        kept = world.node("A").pools.ready_segments(NODES[1])
        assert kept
        await world.until_ready(within=60.0)
        client = Client(world)
        got = await client.fetch(B1, A1, [UUID(key) for key in old.waiting])
        assert {str(key.key_id): hashlib.sha384(key.key.view()).hexdigest() for key in got} == {
            key: old.sha384_of_keys[key] for key in old.waiting
        }
        assert await client.fetch(B1, A1, [UUID(old.fetched[0])]) == []  # it was delivered before
        for name, kind in zip(NODES, ("issued", "delivered"), strict=True):
            for key in (*old.fetched, *old.waiting):
                told = await world.node(name).explain.key(UUID(key))
                assert [event.kind for event in told.events] == [kind]
        fresh = await client.issue(A1, IssueRequest(B1, number=3))
        assert len(await client.fetch(B1, A1, [key.key_id for key in fresh])) == 3
        for name in NODES:
            store = world.node(name).ctx.store
            assert ChainHead(*verify_chain(await store.entries(LedgerQuery()), ChainHead())) == await store.head()
        await world.stop_all()
        assert world.failures == {}

    run(story())


@pytest.mark.parametrize("version", OLD_VERSIONS)
def test_a_migration_that_fails_leaves_the_earlier_version_whole(version, tmp_path, monkeypatch) -> None:
    path = written(tmp_path, version)
    before = everything_in(path)
    last = (*schema.MIGRATIONS[schema.VERSION], "INSERT INTO no_such_table VALUES (1)")
    with monkeypatch.context() as broken:
        broken.setattr(schema, "MIGRATIONS", MappingProxyType({**schema.MIGRATIONS, schema.VERSION: last}))
        with pytest.raises(StoreUnavailableError, match="no_such_table"):
            SqliteStore.open(path)
    assert (version_in(path), everything_in(path)) == (version, before)
    asyncio.run(SqliteStore.open(path).close())
    assert version_in(path) == schema.VERSION


@pytest.mark.parametrize("version", OLD_VERSIONS)
@pytest.mark.parametrize("fault", ["full", "sync_fails"])
def test_a_disk_that_fails_in_a_migration_leaves_the_earlier_version_whole(version, fault, tmp_path) -> None:
    path = written(tmp_path, version)
    before = everything_in(path)
    disk = FaultyDisk(f"migrating-{version}-{fault}")
    setattr(disk, fault, True)
    with pytest.raises(StoreUnavailableError):
        SqliteStore.open(path, vfs=disk.name)
    assert (version_in(path), everything_in(path)) == (version, before)
    asyncio.run(SqliteStore.open(path).close())
    assert version_in(path) == schema.VERSION


def test_a_file_of_a_newer_release_is_refused_and_left_alone(tmp_path) -> None:
    asyncio.run(SqliteStore.open(tmp_path).close())
    connection = apsw.Connection(str(tmp_path / "store.db"))
    connection.pragma("user_version", schema.VERSION + 1)
    connection.close()
    content = (tmp_path / "store.db").read_bytes()
    with pytest.raises(InvalidDocumentError, match="newer release"):
        SqliteStore.open(tmp_path)
    assert (tmp_path / "store.db").read_bytes() == content


def test_a_ledger_whose_entries_were_all_taken_away_goes_on_where_it_stood(tmp_path) -> None:
    async def story() -> None:
        store = InlineStore()
        await store.commit([Append(Nanoseconds(n), "k", b"") for n in range(3)])
        head = await store.head()
        with store._connection as connection:
            connection.execute("UPDATE ledger_start SET sequence = ?, hash = ?", (head.sequence, head.hash))
            connection.execute("DELETE FROM ledger")
        again = InlineStore.from_image(store.image())
        assert await again.head() == head
        await again.commit([Append(Nanoseconds(3), "k", b"")])
        ledger = await again.entries(LedgerQuery())
        assert [entry.sequence for entry in ledger] == [4]
        verify_chain(ledger, head)
        await store.close()
        await again.close()

    asyncio.run(story())


def test_a_row_written_before_a_migration_is_read_after_it(tmp_path) -> None:
    async def story() -> None:
        store = SqliteStore.open(written(tmp_path, 1))
        assert await store.get(Table.META, rows.SELF) is not None
        await store.commit([Put(Table.WINDOW, b"w", b"1")])
        assert await store.get(Table.WINDOW, b"w") == b"1"
        await store.close()

    asyncio.run(story())


@pytest.mark.parametrize("table", [Table.META, Table.LINK_BLOCK, Table.SEGMENT, Table.SEGMENT_BYTES])
def test_a_row_is_found_without_reading_the_long_rows_beside_it(table, tmp_path) -> None:
    keys, length = [bytes([number]) * 16 for number in range(64)], 100_000

    async def story() -> None:
        store = SqliteStore.open(tmp_path)
        await store.commit([Put(table, key, bytes(length)) for key in keys])
        await store.close()

    asyncio.run(story())
    connection = schema.connect(str(tmp_path / "store.db"))
    before = reads_of_this_process()
    for key in keys[:4]:
        assert connection.execute(f"SELECT length(value) FROM {table.value} WHERE key = ?", (key,)).get == length
    assert reads_of_this_process() - before <= 4 * (length // 4_096 + 6)
    connection.close()


def reads_of_this_process() -> int:
    """Return the system calls that read: SQLite reads long rows around its cache."""
    return int(Path("/proc/self/io").read_text().split("syscr:")[1].split()[0])
