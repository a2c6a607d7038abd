"""A network makes and drops schemas of its own, and touches nobody else's."""

import asyncio

import msgspec
import pytest
from tests import postgres as servers

from trenza.app.config import DatabaseConfig
from trenza.app.network_database import NetworkDatabase, kept_address, schema_of
from trenza.app.network_files import NetworkFiles, Ports
from trenza.app.scenario import load_scenario
from trenza.app.state_directory import StateDirectory
from trenza.base.errors import ConflictError, InvalidDocumentError, InvalidRequestError, StoreUnavailableError
from trenza.base.names import NodeId

asyncpg = pytest.importorskip("asyncpg", reason="the extra `postgres` is not installed")

SCENARIO = load_scenario("two-nodes")


@pytest.fixture
def address(tmp_path, postgres):
    file = tmp_path / "address"
    file.write_text(postgres.dsn() + "\n")
    file.chmod(0o600)
    yield file
    names = query(postgres, "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'trenza/%'")
    for row in names:
        query(postgres, f'DROP SCHEMA "{row["nspname"]}" CASCADE')


@pytest.fixture
def network(tmp_path, address):
    state = StateDirectory(tmp_path / "state")
    yield NetworkDatabase(address, SCENARIO, state)
    state.release()


def query(cluster, statement: str):
    async def ask():
        connection = await asyncpg.connect(cluster.dsn())
        try:
            return await connection.fetch(statement)
        finally:
            await connection.close()

    return asyncio.run(ask())


def schemas(cluster) -> set[str]:
    return {row["nspname"] for row in query(cluster, "SELECT nspname FROM pg_namespace")}


def test_each_node_gets_a_schema_and_a_new_start_drops_what_the_last_run_left(postgres, network):
    asyncio.run(network.prepare())
    mine = {schema_of(SCENARIO.name, node.name) for node in SCENARIO.nodes}
    assert mine <= schemas(postgres)
    query(postgres, 'CREATE TABLE "trenza/two-nodes/Alice".kept (id int)')
    asyncio.run(network.check_kept())
    assert query(postgres, 'SELECT * FROM "trenza/two-nodes/Alice".kept') == []
    asyncio.run(network.prepare())
    assert mine <= schemas(postgres)
    with pytest.raises(asyncpg.UndefinedTableError):
        query(postgres, 'SELECT * FROM "trenza/two-nodes/Alice".kept')


def test_a_new_start_of_another_scenario_leaves_no_schema_of_the_last_run(postgres, network):
    asyncio.run(network.prepare())
    other = msgspec.structs.replace(SCENARIO, name="other")
    asyncio.run(NetworkDatabase(network.address, other, network.state).prepare())
    assert "trenza/two-nodes/Alice" not in schemas(postgres)
    assert "trenza/other/Alice" in schemas(postgres)


@pytest.mark.parametrize("mark", [None, "made by `trenza up` for network 00"])
def test_a_schema_that_is_somebody_elses_is_refused_and_nothing_is_changed(postgres, network, mark):
    query(postgres, 'CREATE SCHEMA "trenza/two-nodes/Bob"')
    query(postgres, 'CREATE TABLE "trenza/two-nodes/Bob".precious (id int)')
    if mark is not None:
        query(postgres, f"COMMENT ON SCHEMA \"trenza/two-nodes/Bob\" IS '{mark}'")
    for attempt in (network.prepare, network.check_kept):
        with pytest.raises(ConflictError, match="trenza/two-nodes/"):
            asyncio.run(attempt())
    assert query(postgres, 'SELECT * FROM "trenza/two-nodes/Bob".precious') == []
    assert "trenza/two-nodes/Alice" not in schemas(postgres)


def test_going_on_needs_the_schemas_of_the_last_run(network):
    with pytest.raises(ConflictError, match="without --resume"):
        asyncio.run(network.check_kept())


def test_a_database_with_too_few_connections_is_refused_before_any_node_starts(postgres, network):
    nodes = tuple(msgspec.structs.replace(SCENARIO.nodes[0], name=NodeId(f"N{number}")) for number in range(40))
    large = msgspec.structs.replace(SCENARIO, nodes=nodes)
    with pytest.raises(StoreUnavailableError, match=r"40 nodes need 121: raise max_connections"):
        asyncio.run(NetworkDatabase(network.address, large, network.state).prepare())
    assert "trenza/two-nodes/N0" not in schemas(postgres)


def test_a_role_that_may_make_no_schema_is_refused(postgres, network):
    query(postgres, "CREATE ROLE small LOGIN")
    query(postgres, "REVOKE CREATE ON DATABASE postgres FROM PUBLIC")
    try:
        network.address.write_text(postgres.dsn(user="small"))
        with pytest.raises(StoreUnavailableError, match="GRANT CREATE ON DATABASE"):
            asyncio.run(network.prepare())
    finally:
        query(postgres, "DROP ROLE small")


def test_a_file_that_others_may_read_is_refused(network):
    network.address.chmod(0o644)
    with pytest.raises(InvalidDocumentError, match="chmod 600"):
        asyncio.run(network.prepare())


def test_a_server_that_is_not_there_is_refused_in_one_sentence(tmp_path, network):
    network.address.write_text(f"postgresql://{servers.USER}@/postgres?host={tmp_path}")
    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        asyncio.run(network.prepare())


def test_a_name_too_long_for_a_schema_is_refused_with_its_bytes(network):
    long = msgspec.structs.replace(SCENARIO, name="é" * 30)
    with pytest.raises(InvalidDocumentError, match=r"has 73 bytes, and PostgreSQL takes 63"):
        asyncio.run(NetworkDatabase(network.address, long, network.state).prepare())


def test_what_a_network_keeps_is_gone_on_with_only_where_it_is(tmp_path):
    state, ports = StateDirectory(tmp_path / "state"), Ports()
    files = NetworkFiles(SCENARIO, state, ports)
    on_disk = [files.node_config(node.name) for node in SCENARIO.nodes]
    files.database = there = tmp_path / "address"
    in_database = [files.node_config(node.name) for node in SCENARIO.nodes]
    ports.release()
    state.release()
    assert in_database[0].database == DatabaseConfig(there, "trenza/two-nodes/Alice")
    assert kept_address(on_disk, None, store=None) is None
    assert kept_address(on_disk, None, store="sqlite") is None
    assert kept_address(in_database, None, store=None) == there
    assert kept_address(in_database, there, store="postgres") == there
    for configs, asked, store in (
        (on_disk, there, "postgres"),
        (in_database, None, "sqlite"),
        (in_database, tmp_path / "other", "postgres"),
    ):
        with pytest.raises(InvalidRequestError, match="the network's"):
            kept_address(configs, asked, store=store)
