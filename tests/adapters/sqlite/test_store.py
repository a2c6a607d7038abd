import asyncio
import os
import stat
import subprocess
import sys
import threading

import apsw
import pytest
from tests.adapters.sqlite.faulty_disk import FaultyDisk
from tests.contract import store_contract

from trenza.adapters.sqlite import SqliteStore
from trenza.base.errors import InvalidDocumentError, StoreUnavailableError
from trenza.base.units import Nanoseconds
from trenza.core.chain import verify_chain
from trenza.kms.ports import Append, ChainHead, Delete, LedgerQuery, Put, Table

SEGMENT = Table.SEGMENT


@pytest.mark.parametrize("clause", store_contract.CLAUSES, ids=store_contract.name)
def test_it_keeps_the_contract_of_a_store(clause, tmp_path) -> None:
    asyncio.run(clause(lambda: SqliteStore.open(tmp_path / "node")))


def test_all_commits_that_wait_become_one_group(tmp_path) -> None:
    busy, gate = threading.Event(), threading.Event()

    def hold(_counter: int) -> None:
        busy.set()
        gate.wait()

    async def story() -> None:
        store = SqliteStore.open(tmp_path, on_group=hold)
        first = asyncio.create_task(store.commit([Put(SEGMENT, b"first", b"")]))
        await asyncio.to_thread(busy.wait)  # given a writer that is busy with the first
        others = [asyncio.create_task(store.commit([Put(SEGMENT, b"%d" % n, b"")])) for n in range(400)]
        await asyncio.sleep(0)
        assert not first.done()  # when the others have called
        gate.set()
        await asyncio.gather(first, *others)
        assert store.counter() == 2  # then one transaction, and one sync, served them all
        await store.close()

    asyncio.run(story())


def test_what_one_turn_of_the_loop_commits_is_one_group(tmp_path) -> None:
    async def story() -> None:
        store = SqliteStore.open(tmp_path)
        await asyncio.gather(*(store.commit([Put(SEGMENT, b"%d" % n, b"")]) for n in range(400)))
        assert store.counter() == 1  # although the writer was idle when the first of them came
        await store.close()

    asyncio.run(story())


def test_a_commit_of_the_turn_in_which_the_store_closes_is_durable(tmp_path) -> None:
    async def story() -> None:
        store = SqliteStore.open(tmp_path)
        commit = asyncio.create_task(store.commit([Put(SEGMENT, b"last", b"")]))
        await asyncio.sleep(0)
        await store.close()
        await commit
        again = SqliteStore.open(tmp_path)
        assert await again.get(SEGMENT, b"last") == b""
        await again.close()

    asyncio.run(story())


def test_the_counter_is_told_before_an_answer_is_released(tmp_path) -> None:
    async def story() -> None:
        told: list[int] = []
        store = SqliteStore.open(tmp_path, on_group=told.append)
        for n in range(1, 6):
            await store.commit([Put(SEGMENT, b"k", b"")])
            assert told == list(range(1, n + 1))
            assert store.counter() == n
        await store.close()

    asyncio.run(story())


@pytest.mark.parametrize("fault", ["full", "sync_fails"])
def test_a_failing_disk_acknowledges_nothing_and_recovers(tmp_path, fault) -> None:
    async def story() -> None:
        disk = FaultyDisk(f"failing-{fault}")
        store = SqliteStore.open(tmp_path, vfs=disk.name)
        await store.commit([Put(SEGMENT, b"before", b""), Append(Nanoseconds(1), "k", b"")])
        head, counter = await store.head(), store.counter()
        setattr(disk, fault, True)  # when the disk fails
        commits = [[Put(SEGMENT, b"%d" % n, b"x" * 3000), Append(Nanoseconds(2), "k", b"")] for n in range(20)]
        outcomes = await asyncio.gather(*map(store.commit, commits), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailableError}  # then every caller knows
        assert (await store.head(), store.counter()) == (head, counter)
        setattr(disk, fault, False)  # and when it works again, so does the store
        await store.commit([Put(SEGMENT, b"after", b""), Append(Nanoseconds(3), "k", b"")])
        assert await store.get(SEGMENT, b"before") == await store.get(SEGMENT, b"after") == b""
        assert [key for key, _ in await store.scan(SEGMENT)] == [b"after", b"before"]
        await store.close()
        again = SqliteStore.open(tmp_path)
        ledger = await again.entries(LedgerQuery())
        assert [entry.time for entry in ledger] == [1, 3]
        verify_chain(ledger, ChainHead())
        await again.close()

    asyncio.run(story())


def test_a_transaction_that_cannot_be_rolled_back_has_the_file_opened_again(tmp_path) -> None:
    async def story() -> None:
        store = SqliteStore.open(tmp_path)
        await store.commit([Put(SEGMENT, b"before", b"")])
        store._writer.engine._connection.close()  # when the connection is beyond use
        with pytest.raises(StoreUnavailableError):
            await store.commit([Put(SEGMENT, b"lost", b"")])
        await store.commit([Put(SEGMENT, b"after", b"")])
        assert [key for key, _ in await store.scan(SEGMENT)] == [b"after", b"before"]
        assert store.counter() == 2
        await store.close()

    asyncio.run(story())


def test_a_writer_that_dies_is_known_to_every_caller(tmp_path) -> None:
    def defect(_counter: int) -> None:
        raise ZeroDivisionError

    async def story() -> None:
        store = SqliteStore.open(tmp_path, on_group=defect)
        commits = [store.commit([Put(SEGMENT, b"%d" % n, b"")]) for n in range(5)]
        outcomes = await asyncio.gather(*commits, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailableError}
        with pytest.raises(StoreUnavailableError):
            await store.commit([Put(SEGMENT, b"later", b"")])
        with pytest.raises(RuntimeError, match="died") as raised:
            await store.close()
        assert isinstance(raised.value.__cause__, ZeroDivisionError)

    asyncio.run(story())


def test_a_cancelled_caller_leaves_the_others_alone(tmp_path) -> None:
    async def story() -> None:
        store = SqliteStore.open(tmp_path)
        tasks = [asyncio.create_task(store.commit([Put(SEGMENT, b"%d" % n, b"")])) for n in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert outcomes[0] is outcomes[2] is None
        await store.close()

    asyncio.run(story())


def test_a_second_process_is_refused_and_told_who_is_there(tmp_path) -> None:
    async def story() -> None:
        store = SqliteStore.open(tmp_path)
        with pytest.raises(StoreUnavailableError, match=f"in use by process {os.getpid()}"):
            SqliteStore.open(tmp_path)
        await store.commit([Put(SEGMENT, b"k", b"")])
        await store.close()
        await SqliteStore.open(tmp_path).close()

    asyncio.run(story())


def test_everything_in_the_data_directory_is_its_owners_alone(tmp_path) -> None:
    async def story() -> None:
        directory = tmp_path / "deep" / "node"
        store = SqliteStore.open(directory)
        await store.commit([Put(SEGMENT, b"k", b"")])
        files = sorted(path.name for path in directory.iterdir())
        assert files == ["lock", "store.db", "store.db-shm", "store.db-wal"]
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
        await store.close()

    asyncio.run(story())


def test_what_is_not_a_store_is_refused_and_left_alone(tmp_path) -> None:
    file = tmp_path / "store.db"
    file.write_bytes(b"a letter to a friend" * 500)
    with pytest.raises(InvalidDocumentError, match="not a database"):
        SqliteStore.open(tmp_path)
    assert file.read_bytes() == b"a letter to a friend" * 500
    file.unlink()
    connection = apsw.Connection(str(file))
    connection.execute("CREATE TABLE friends (name)")
    connection.close()
    content = file.read_bytes()
    with pytest.raises(InvalidDocumentError, match="another program"):
        SqliteStore.open(tmp_path)
    assert file.read_bytes() == content


def test_what_was_deleted_is_not_in_the_files_after_a_close(tmp_path) -> None:
    marks = [b"remember-me-%03d" % n for n in range(50)]

    def present() -> bool:
        content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        return any(mark in content for mark in marks)

    async def story() -> None:
        store = SqliteStore.open(tmp_path)
        await store.commit([Put(SEGMENT, mark, mark * 40) for mark in marks])
        assert present()
        await store.commit([Delete(SEGMENT, mark) for mark in marks])
        await store.close()
        assert not present()

    asyncio.run(story())


def test_the_log_is_moved_into_the_main_file_when_it_grows(tmp_path) -> None:
    async def story() -> None:
        store = SqliteStore.open(tmp_path)
        for n in range(40):
            await store.commit([Put(SEGMENT, b"%d" % (n % 4), os.urandom(1_000_000))])
        log = (tmp_path / "store.db-wal").stat().st_size
        assert log < 20_000_000  # of 40 MB written
        await store.close()

    asyncio.run(story())


_CHILD = """
import asyncio, itertools, os, sys
from pathlib import Path
from trenza.adapters.sqlite import SqliteStore
from trenza.kms.ports import Append, Insert, Put, Table
from trenza.base.units import Nanoseconds

async def client(store, turn, number):
    for step in itertools.count():
        name = b"%s-%d-%d" % (turn.encode(), number, step)
        entry = Append(Nanoseconds(step), "issued", name)
        await store.commit([Insert(Table.DELIVERED, name), Put(Table.SEGMENT, name, b"x" * 500), entry])
        os.write(1, name + b"\\n")

async def main():
    store = SqliteStore.open(Path(sys.argv[1]))
    async with asyncio.TaskGroup() as clients:
        for number in range(16):
            clients.create_task(client(store, sys.argv[2], number))

asyncio.run(main())
"""


def killed_after(acknowledgements: int, directory, turn: int) -> list[bytes]:
    """Run a child that commits without end, kill it in full flight, and return what it had acknowledged."""
    command = [sys.executable, "-c", _CHILD, str(directory), str(turn)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        lines = [child.stdout.readline() for _ in range(acknowledgements)]
        child.kill()
        lines += child.stdout.read().splitlines(keepends=True)
    return [line.strip() for line in lines if line.endswith(b"\n")]


def test_what_was_acknowledged_survives_kill_9_and_nothing_is_half_written(tmp_path) -> None:
    acknowledged: set[bytes] = set()

    async def check() -> None:
        store = SqliteStore.open(tmp_path)
        delivered = {key for key, _ in await store.scan(Table.DELIVERED)}
        assert acknowledged <= delivered
        assert delivered == {key for key, _ in await store.scan(Table.SEGMENT)}
        ledger = await store.entries(LedgerQuery(limit=1_000_000))
        assert sorted(entry.body for entry in ledger) == sorted(delivered)
        assert verify_chain(ledger, ChainHead())[0] == len(delivered)
        assert len(delivered - acknowledged) <= 16 * 10  # at most what was in flight at each kill
        await store.close()

    for turn in range(10):
        acknowledged.update(killed_after(40 + 97 * turn, tmp_path, turn))
        asyncio.run(check())
    assert len(acknowledged) > 4_000
