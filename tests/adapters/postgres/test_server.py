"""Servers that must not keep keys, and servers that change under way: each test has a server of its own."""

import asyncio
from contextlib import contextmanager

import pytest
from tests import postgres as servers

from trenza.adapters.anchor import MemoryAnchor
from trenza.adapters.postgres import Lease, PostgresAnchor, PostgresSettings, PostgresStore, Server, ServerIdentity
from trenza.adapters.postgres.line import Line
from trenza.base.clock import SystemClock
from trenza.base.entropy import SystemEntropy
from trenza.base.errors import FencedError, StoreUnavailableError
from trenza.base.units import Seconds
from trenza.kms.ports import Insert, Put, Table

SEGMENT, DELIVERED = Table.SEGMENT, Table.DELIVERED


@pytest.fixture(scope="module")
def own():
    """A server that this module may mislead."""
    if (why := servers.missing()) is not None:
        pytest.skip(why)
    with servers.cluster() as cluster:
        yield cluster


def server_of(cluster: servers.Cluster, schema: str = "madrid") -> Server:
    return Server(PostgresSettings(cluster.dsn(), schema), deadline=Seconds(20.0))


async def asked(cluster: servers.Cluster, statement: str, **options) -> object:
    """Ask something of a server as its administrator."""
    from trenza.adapters.postgres.driver import asyncpg

    connection = await asyncpg.connect(cluster.dsn(), **options)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


@contextmanager
def told(cluster: servers.Cluster, statement: str, undo: str):
    """Change the server's settings for a while."""

    async def tell(*statements: str) -> None:
        for one in statements:
            await asked(cluster, one)

    asyncio.run(tell(statement, "SELECT pg_reload_conf()"))
    try:
        yield
    finally:
        asyncio.run(tell(undo, "SELECT pg_reload_conf()"))


async def refusal(cluster: servers.Cluster) -> str:
    """Open until the server has taken up its settings, and return why it was refused."""
    for _ in range(200):
        try:
            store = await PostgresStore.open(server_of(cluster))
        except StoreUnavailableError as error:
            return error.message
        await store.close()
    raise AssertionError("the server was not refused")


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
def test_a_server_that_may_forget_what_it_acknowledged_is_refused(own, setting) -> None:
    with told(own, f"ALTER SYSTEM SET {setting} = off", f"ALTER SYSTEM RESET {setting}"):
        message = asyncio.run(refusal(own))
        assert f"{setting} is off" in message
        assert f"set {setting} = on" in message


def test_a_server_that_is_told_to_forget_while_it_runs_is_refused_with_the_next_commit(own) -> None:
    async def story() -> None:
        store = await PostgresStore.open(server_of(own))
        await store.commit([Put(SEGMENT, b"k", b"")])
        await asked(own, "ALTER SYSTEM SET fsync = off")
        await asked(own, "SELECT pg_reload_conf()")
        head, refused = await store.head(), None
        while refused is None:
            try:
                await store.commit([Put(SEGMENT, b"k", b"")])  # until the reload has reached its connection
            except StoreUnavailableError as error:
                refused = error.message
        assert "fsync" in refused
        assert await store.head() == head
        await asked(own, "ALTER SYSTEM RESET fsync")
        await asked(own, "SELECT pg_reload_conf()")
        await store.close()

    asyncio.run(story())


def test_a_server_that_does_not_wait_for_its_disk_by_default_does_so_for_us(own) -> None:
    async def story() -> None:
        for setting, kept in (("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")):
            await asked(own, f"ALTER ROLE {servers.USER} SET synchronous_commit = {setting}")
            line = Line(server_of(own))
            async with line.connection() as connection:
                assert await connection.fetchval("SHOW synchronous_commit") == kept
            await line.close()
        await asked(own, f"ALTER ROLE {servers.USER} RESET synchronous_commit")

    asyncio.run(story())


def test_a_role_that_only_reads_is_refused(own) -> None:
    async def story() -> None:
        await asked(own, f"ALTER ROLE {servers.USER} SET default_transaction_read_only = on")
        try:
            assert "default_transaction_read_only" in await refusal(own)
        finally:
            reset = f"ALTER ROLE {servers.USER} RESET default_transaction_read_only"
            await asked(own, reset, server_settings={"default_transaction_read_only": "off"})

    asyncio.run(story())


def test_an_older_server_is_refused(own, monkeypatch) -> None:
    monkeypatch.setattr("trenza.adapters.postgres.server.OLDEST", 990_000)
    assert "PostgreSQL 99 or newer is needed" in asyncio.run(refusal(own))


def test_a_commit_that_no_longer_waits_for_a_synchronous_standby_is_doubtful(own) -> None:
    """PostgreSQL answers COMMIT to one that is told to wait no longer, with a warning: a failover would lose it."""

    async def story() -> None:
        store = await PostgresStore.open(server_of(own))
        await store.commit([Put(SEGMENT, b"before", b"")])
        await asked(own, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        await asked(own, "SELECT pg_reload_conf()")
        try:
            while await asked(own, "SHOW synchronous_standby_names") != "nobody":
                pass
            commit = asyncio.create_task(store.commit([Put(SEGMENT, b"k", b"")]))
            waiting = "FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query = 'COMMIT'"
            while not await asked(own, f"SELECT pg_cancel_backend(pid) {waiting}"):
                assert not commit.done()
            with pytest.raises(StoreUnavailableError, match="did not confirm"):
                await commit
        finally:
            await asked(own, "ALTER SYSTEM RESET synchronous_standby_names")
            await asked(own, "SELECT pg_reload_conf()")
        await store.close()

    asyncio.run(story())


# --- the anchor


def anchor(kept: MemoryAnchor, *, system: int = 7, timeline: int = 1, reign: int = 20, succeeds: int = 10):
    return PostgresAnchor(kept, ServerIdentity(system, timeline), reign=reign, succeeds=succeeds)


def test_an_anchor_recalls_only_on_the_same_history_of_the_same_cluster() -> None:
    kept = MemoryAnchor()
    anchor(kept, reign=10).remember(b"store", 41)
    assert anchor(kept).recall() == (b"store", 41)
    assert anchor(kept, timeline=2).recall() is None
    assert anchor(kept, system=8).recall() is None
    assert anchor(MemoryAnchor()).recall() is None


def test_an_anchor_vouches_only_for_a_lead_that_it_has_seen() -> None:
    kept = MemoryAnchor()
    anchor(kept, reign=10).remember(b"store", 41)
    assert anchor(kept, reign=30, succeeds=20).recall() is None  # it was away while 20 led
    anchor(kept, reign=20, succeeds=20).observe(b"store", 50)  # it serves beside 20
    assert anchor(kept, reign=30, succeeds=20).recall() == (b"store", 50)


def test_what_is_seen_of_a_memory_that_went_back_does_not_hide_it() -> None:
    kept = MemoryAnchor()
    second = anchor(kept, reign=20, succeeds=20)
    second.observe(b"store", 50)
    second.observe(b"store", 60)
    second.observe(b"store", 55)
    assert anchor(kept, reign=30, succeeds=20).recall() == (b"store", 60)


def test_a_database_that_goes_back_in_time_under_a_process_is_noticed(own) -> None:
    async def story() -> None:
        store = await PostgresStore.open(server_of(own, "went back"))
        for n in range(5):
            await store.commit([Insert(DELIVERED, b"%d" % n)])
        async with Line(store.server).connection() as connection:
            await connection.execute("UPDATE store_state SET counter = 3")  # as a restore of its files leaves it
            await connection.close()
        with pytest.raises(FencedError, match="went back from commit group 5 to 3"):
            await store.look()
        for _ in range(2):
            with pytest.raises(FencedError, match="went back"):
                await store.commit([Put(SEGMENT, b"k", b"")])
        await store.close()

    asyncio.run(story())


# --- a server that restarts, and one that is replaced


@pytest.mark.slow
def test_a_store_goes_on_after_its_server_has_crashed_and_is_back(own) -> None:
    async def story() -> None:
        store = await PostgresStore.open(server_of(own, "restart"))
        before = await store.head()
        await store.commit([Insert(DELIVERED, b"before")])
        await asyncio.to_thread(own.stop)
        for _ in range(3):
            with pytest.raises(StoreUnavailableError):
                await store.commit([Insert(DELIVERED, b"meanwhile")])
            with pytest.raises(StoreUnavailableError):
                await store.get(DELIVERED, b"before")
        await asyncio.to_thread(own.start)
        while True:
            try:
                await store.commit([Insert(DELIVERED, b"after")])
                break
            except StoreUnavailableError:
                await asyncio.sleep(0.05)  # the pause between two attempts to connect
        assert [key for key, _ in await store.scan(DELIVERED)] == [b"after", b"before"]
        assert await store.head() == before
        await store.close()

    asyncio.run(story())


@pytest.mark.slow
def test_a_promoted_standby_is_another_memory(own) -> None:
    """A commit that an asynchronous failover loses leads to a new epoch, wherever the node runs on."""

    async def before_the_failover(kept: MemoryAnchor) -> PostgresStore:
        store = await PostgresStore.open(server_of(own, "failover"))
        lease = Lease(store.server, name="a", clock=SystemClock(), entropy=SystemEntropy())
        assert await lease.acquire()
        store.under(lease.token)
        await store.commit([Insert(DELIVERED, b"replicated")])
        await lease.close()
        while await asked(own, "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn >= sent_lsn") != 1:
            pass
        standby.stop()
        await store.commit([Insert(DELIVERED, b"lost")])  # acknowledged, and a key may be out under it
        own_anchor = PostgresAnchor(kept, store.server.identity, reign=lease.token, succeeds=lease.succeeded)
        own_anchor.remember(b"store", store.counter())
        return store

    async def after_the_failover(kept: MemoryAnchor, old: PostgresStore) -> None:
        old.server.settings = PostgresSettings(standby.dsn(), "failover")  # as a name that moves does
        for _ in range(2):
            with pytest.raises(FencedError, match="timeline 2, before 1"):
                await old.commit([Insert(DELIVERED, b"late")])
        await old.close()
        store = await PostgresStore.open(server_of(standby, "failover"))
        assert [key for key, _ in await store.scan(DELIVERED)] == [b"replicated"]
        assert store.server.identity.timeline == 2
        lease = Lease(store.server, name="b", clock=SystemClock(), entropy=SystemEntropy())
        while not await lease.acquire():
            pass  # its former lease ends within two seconds
        assert kept.recall() is not None
        found = PostgresAnchor(kept, store.server.identity, reign=lease.token, succeeds=lease.succeeded)
        assert found.recall() is None  # then memory is not whole: a new epoch begins
        store.under(lease.token)
        await store.commit([Insert(DELIVERED, b"new life")])
        await lease.close()
        await store.close()

    kept = MemoryAnchor()
    with servers.empty_cluster() as standby:
        own.standby(standby)
        standby.start()
        assert "it is a standby" in asyncio.run(refusal(standby))

        async def story() -> None:
            old = await before_the_failover(kept)
            await asyncio.to_thread(own.stop)
            await asyncio.to_thread(standby.start)
            await asyncio.to_thread(standby.promote)
            await after_the_failover(kept, old)

        asyncio.run(story())
        own.start()
