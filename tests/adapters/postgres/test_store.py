import asyncio

import pytest
from tests.contract import store_contract
from tests.contract.store_contract import entry

from trenza.adapters.postgres import PostgresSettings, PostgresStore, Server
from trenza.adapters.postgres.line import Line
from trenza.adapters.postgres.server import quoted
from trenza.base.errors import ConflictError, InvalidDocumentError, StoreUnavailableError
from trenza.base.units import Nanoseconds, Seconds
from trenza.core.chain import verify_chain
from trenza.kms.ports import Append, ChainHead, Delete, Insert, LedgerQuery, Put, Table

SEGMENT, WINDOW, DELIVERED = Table.SEGMENT, Table.WINDOW, Table.DELIVERED


@pytest.mark.parametrize("clause", store_contract.CLAUSES + store_contract.SHARED_CLAUSES, ids=store_contract.name)
def test_it_keeps_the_contract_of_a_store(clause, memory) -> None:
    asyncio.run(clause(memory.store))


def test_many_commits_at_once_take_few_transactions(memory) -> None:
    async def story() -> None:
        store = await memory.store()
        await asyncio.gather(*(store.commit([Put(SEGMENT, b"%d" % n, b""), entry(n)]) for n in range(64)))
        assert store.counter() == 1  # all of one turn of the loop
        waves = [asyncio.create_task(store.commit([Put(SEGMENT, b"%d" % n, b"")])) for n in range(64)]
        await asyncio.sleep(0)
        waves += [asyncio.create_task(store.commit([Put(SEGMENT, b"%d" % n, b"")])) for n in range(64)]
        await asyncio.gather(*waves)
        assert store.counter() == 3  # what gathers while a transaction is under way becomes the next
        await store.close()

    asyncio.run(story())


def test_a_group_needs_four_trips_to_the_server(memory) -> None:
    async def story() -> None:
        store = await memory.store()
        await store.commit([Insert(DELIVERED, b"0"), Put(SEGMENT, b"s", b""), entry(0)])
        asked: list[str] = []
        async with store._writer._line.connection() as connection:
            connection.add_query_logger(lambda record: asked.append(record.query))
        await asyncio.gather(
            *(
                store.commit(
                    [Insert(DELIVERED, b"%d" % n), Put(SEGMENT, b"%d" % n, b""), Delete(WINDOW, b"w"), entry(n)]
                )
                for n in range(1, 40)
            )
        )
        assert [query.split()[0] for query in asked] == ["BEGIN", "SELECT", "WITH", "COMMIT"]
        await store.close()

    asyncio.run(story())


def test_the_counter_is_told_before_an_answer_is_released(memory) -> None:
    async def story() -> None:
        told: list[int] = []
        store = await memory.store(on_group=told.append)
        for n in range(1, 6):
            await store.commit([Put(SEGMENT, b"k", b"")])
            assert told == list(range(1, n + 1))
        await store.close()

    asyncio.run(story())


def test_a_cancelled_caller_leaves_the_others_alone(memory) -> None:
    async def story() -> None:
        store = await memory.store()
        tasks = [asyncio.create_task(store.commit([Put(SEGMENT, b"%d" % n, b"")])) for n in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert outcomes[0] is outcomes[2] is None
        reading = asyncio.create_task(store.scan(SEGMENT))
        await asyncio.sleep(0.001)
        reading.cancel()
        assert len(await store.scan(SEGMENT)) == 3
        await store.close()

    asyncio.run(story())


def test_what_the_database_cannot_hold_is_its_callers_bug_alone(memory) -> None:
    async def story() -> None:
        store = await memory.store()
        commits = [[entry(n), Put(SEGMENT, b"%d" % n, b"")] for n in range(5)]
        commits[2] = [Append(Nanoseconds(1), "nul\0", b"")]  # PostgreSQL keeps no NUL in a text
        commits[3] = [Append(Nanoseconds(1), "k", b"", ("\ud800",))]
        outcomes = await asyncio.gather(*map(store.commit, commits), return_exceptions=True)
        assert [n for n, outcome in enumerate(outcomes) if outcome is not None] == [2, 3]
        assert not isinstance(outcomes[2], StoreUnavailableError)
        verify_chain(await store.entries(LedgerQuery()), ChainHead())
        assert (await store.head()).sequence == 3
        await store.close()

    asyncio.run(story())


def test_a_row_that_somebody_wrote_past_the_lock_is_still_a_conflict(memory) -> None:
    async def story() -> None:
        store = await memory.store()
        async with store.reading._line.connection() as past:
            await past.execute("BEGIN; INSERT INTO delivered_row VALUES ('k', '')")  # not visible until it commits
            late = asyncio.create_task(store.commit([Insert(DELIVERED, b"k"), entry(1)]))
            other = asyncio.create_task(store.commit([Insert(DELIVERED, b"other"), entry(2)]))
            await somebody_waits_for_a_lock(past)
            await past.execute("COMMIT")
        outcomes = await asyncio.gather(late, other, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ConflictError, type(None)]
        assert [e.time for e in await store.entries(LedgerQuery())] == [2_000]
        await store.close()

    asyncio.run(story())


async def somebody_waits_for_a_lock(connection) -> None:
    while not await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
        pass  # each look takes a moment, and there is nothing else to wait for


# --- a server that fails


async def kill_connections(memory) -> None:
    """Do what a restart of the server does to the store's connections."""
    async with memory.visitor() as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = current_setting('application_name') AND pid <> pg_backend_pid()"
        )


def test_a_connection_that_was_lost_while_idle_costs_nobody_a_commit(memory) -> None:
    async def story() -> None:
        store = await memory.store()
        await store.commit([Put(SEGMENT, b"before", b"")])
        assert await store.get(SEGMENT, b"before") == b""
        await kill_connections(memory)
        await store.commit([Put(SEGMENT, b"after", b"")])
        await asyncio.sleep(0)
        assert [key for key, _ in await store.scan(SEGMENT)] == [b"after", b"before"]
        await store.close()

    asyncio.run(story())


def test_a_connection_that_is_lost_before_commit_is_sent_is_replaced_and_nothing_is_written_twice(memory) -> None:
    async def story() -> None:
        store = await memory.store()
        await store.commit([Insert(DELIVERED, b"0")])
        async with memory.visitor() as holder:
            await holder.execute("BEGIN; SELECT 1 FROM store_state FOR UPDATE")  # given a transaction that has begun
            commit = asyncio.create_task(store.commit([Insert(DELIVERED, b"1"), entry(1)]))
            await somebody_waits_for_a_lock(holder)
            await holder.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted")
            await holder.execute("ROLLBACK")
        await commit
        assert [key for key, _ in await store.scan(DELIVERED)] == [b"0", b"1"]
        assert (await store.head()).sequence == 1
        await store.close()

    asyncio.run(story())


def test_a_commit_whose_answer_is_lost_is_doubtful_and_the_store_goes_on(memory, monkeypatch) -> None:
    async def story() -> None:
        store = await memory.store()
        await store.commit([Put(SEGMENT, b"before", b"")])
        writer = store._writer._line._connection
        execute = writer.execute

        async def lose_the_answer(statement, *given):
            answer = await execute(statement, *given)
            if statement == "COMMIT":
                monkeypatch.undo()
                writer.terminate()
                raise ConnectionResetError("the answer is lost")
            return answer

        monkeypatch.setattr(type(writer), "execute", lambda _self, *given: lose_the_answer(*given))
        with pytest.raises(StoreUnavailableError):
            await store.commit([Insert(DELIVERED, b"d"), entry(1)])
        with pytest.raises(ConflictError):  # it was written, as it happens; nobody was told, and it is not redone
            await store.commit([Insert(DELIVERED, b"d"), entry(2)])
        await store.commit([entry(3)])
        ledger = await store.entries(LedgerQuery())
        assert [e.time for e in ledger] == [1_000, 3_000]
        verify_chain(ledger, ChainHead())
        await store.close()

    asyncio.run(story())


def test_a_database_that_does_not_answer_is_told_within_the_deadline(memory) -> None:
    async def story() -> None:
        store = await memory.store()
        await store.commit([Put(SEGMENT, b"before", b"")])
        async with memory.visitor() as holder:
            await holder.execute("BEGIN; SELECT 1 FROM store_state FOR UPDATE; LOCK TABLE segment_row")
            store.server.deadline = Seconds(0.2)  # given a server that holds every call up for longer
            with pytest.raises(StoreUnavailableError, match="no answer in time"):
                await store.commit([Put(SEGMENT, b"k", b"")])
            with pytest.raises(StoreUnavailableError, match="no answer in time"):
                await store.get(SEGMENT, b"k")
            store.server.deadline = Seconds(20.0)
            await holder.execute("ROLLBACK")
        assert [key for key, _ in await store.scan(SEGMENT)] == [b"before"]
        await store.commit([Put(SEGMENT, b"k", b"")])
        await store.close()

    asyncio.run(story())


def test_more_commits_than_can_wait_are_refused_at_once(memory, monkeypatch) -> None:
    monkeypatch.setattr("trenza.adapters.postgres.writer._MOST_WAITING", 10)

    async def story() -> None:
        store = await memory.store()
        outcomes = await asyncio.gather(
            *(store.commit([Put(SEGMENT, b"%d" % n, b"")]) for n in range(15)), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [type(None)] * 10 + [StoreUnavailableError] * 5
        await store.close()

    asyncio.run(story())


def test_a_server_that_cannot_be_reached_is_told_at_once_and_asked_again_later(memory) -> None:
    async def story() -> None:
        nowhere = Server(PostgresSettings("postgresql://x@/postgres?host=/nowhere", "s"))
        line = Line(nowhere)
        for _ in range(3):
            with pytest.raises(StoreUnavailableError, match="cannot be reached"):
                async with line.connection():
                    pass
        nowhere.settings = memory.settings
        while True:
            try:
                async with line.connection() as connection:
                    assert await connection.fetchval("SELECT 1") == 1
                break
            except StoreUnavailableError:
                await asyncio.sleep(0.05)
        await line.close()

    asyncio.run(story())


# --- whose schema it is


def test_instances_that_start_together_make_the_tables_once(memory) -> None:
    async def story() -> None:
        stores = await asyncio.gather(*(memory.store() for _ in range(5)))
        for store in stores:
            await store.commit([Put(SEGMENT, b"k", b"")])
            await store.close()

    asyncio.run(story())


def test_a_schema_of_another_program_or_of_a_newer_release_is_refused_and_left_alone(memory) -> None:
    async def story() -> None:
        async with memory.visitor() as connection:
            schema = quoted(memory.settings.schema)
            await connection.execute(f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.friends (name text)")
            with pytest.raises(InvalidDocumentError, match="another program"):
                await memory.store()
            await connection.execute("DROP TABLE friends")
            await (await memory.store()).close()
            await connection.execute("UPDATE store_format SET version = version + 1")
            with pytest.raises(InvalidDocumentError, match="newer release"):
                await memory.store()

    asyncio.run(story())


def test_a_role_that_may_not_make_a_schema_is_told_what_to_do(memory, postgres) -> None:
    async def story() -> None:
        async with memory.visitor() as connection:
            await connection.execute("CREATE ROLE plain LOGIN")
            plain = PostgresSettings(postgres.dsn(user="plain"), memory.settings.schema)
            with pytest.raises(StoreUnavailableError, match=r"CREATE SCHEMA .* AUTHORIZATION"):
                await PostgresStore.open(Server(plain))
            await connection.execute(f"CREATE SCHEMA {quoted(plain.schema)} AUTHORIZATION plain")
        store = await PostgresStore.open(Server(plain))
        await store.commit([Put(SEGMENT, b"k", b""), entry(1)])
        await store.close()

    asyncio.run(story())


def test_stores_of_one_schema_are_at_one_place_and_another_schema_is_another(memory) -> None:
    async def story() -> None:
        one, same = [await memory.store() for _ in range(2)]
        other = await PostgresStore.open(Server(PostgresSettings(memory.settings.dsn, "elsewhere")))
        places = [await store.place() for store in (one, same, other)]
        assert places[0] == places[1] != places[2]
        assert {len(place) for place in places} == {16}
        for store in (one, same, other):
            await store.close()

    asyncio.run(story())


def test_nodes_in_one_database_do_not_see_each_other(memory) -> None:
    async def story() -> None:
        other_settings = PostgresSettings(memory.settings.dsn, memory.settings.schema + " too")
        one, other = await memory.store(), await PostgresStore.open(Server(other_settings))
        await one.commit([Put(SEGMENT, b"k", b"")])
        assert await other.scan(SEGMENT) == []
        await one.close()
        await other.close()

    asyncio.run(story())
