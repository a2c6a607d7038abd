"""The tables in a node's schema, and how a schema of an earlier release becomes one of this.

All migrations run in one transaction under an advisory lock, so instances that start together make the tables once.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from trenza.adapters.postgres.group import relation
from trenza.adapters.postgres.server import quoted
from trenza.base.errors import InvalidDocumentError, StoreUnavailableError
from trenza.kms.ports import Table

if TYPE_CHECKING:
    from asyncpg import Connection, Record

_OFTEN_REPLACED = "fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000"
"""Rows that are replaced many times a second: room for the next version beside them, and no wait for a share of dead
rows that small tables reach too late."""

_FIRST = (
    *(
        f"CREATE TABLE {relation(table)} (key bytea PRIMARY KEY, value bytea NOT NULL) WITH ({_OFTEN_REPLACED})"
        for table in Table
    ),
    # Ciphertext does not compress: large values are kept aside without trying.
    *(f"ALTER TABLE {relation(table)} ALTER COLUMN value SET STORAGE EXTERNAL" for table in Table),
    """CREATE TABLE ledger (
        sequence bigint PRIMARY KEY, time bigint NOT NULL, kind text COLLATE "C" NOT NULL,
        body bytea NOT NULL, hash bytea NOT NULL, terms text NOT NULL  -- JSON, as the hash covers them
    )""",
    "CREATE INDEX ledger_time ON ledger (time)",
    "CREATE INDEX ledger_kind ON ledger (kind, sequence)",
    """CREATE TABLE ledger_term (
        term text COLLATE "C" NOT NULL, sequence bigint NOT NULL, PRIMARY KEY (term, sequence)
    )""",
    # One row: whoever commits holds it, so commits of all instances come one after the other.
    """CREATE TABLE store_state (
        id integer PRIMARY KEY CHECK (id = 1), counter bigint NOT NULL, sequence bigint NOT NULL, hash bytea NOT NULL
    ) WITH (fillfactor = 10)""",
    "INSERT INTO store_state VALUES (1, 0, 0, decode(repeat('00', 48), 'hex'))",
    """CREATE TABLE lead (
        id integer PRIMARY KEY CHECK (id = 1), token bigint NOT NULL, reign bigint NOT NULL,
        holder bytea, name text, until timestamptz
    ) WITH (fillfactor = 10)""",
    "INSERT INTO lead VALUES (1, 0, 0)",
    "CREATE TABLE instance (life bytea PRIMARY KEY, name text NOT NULL, seen timestamptz NOT NULL)",
    "CREATE TABLE keyring (id integer PRIMARY KEY CHECK (id = 1), identity bytea NOT NULL, tag bytea NOT NULL)",
    """CREATE TABLE segment_key (
        key bytea PRIMARY KEY, value bytea NOT NULL, made timestamptz NOT NULL DEFAULT clock_timestamp()
    ) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50)""",
)

_LEDGER_START = (  # where a pruned ledger starts, and how much it is (kms.ports.footprint)
    "ALTER TABLE store_state ADD COLUMN start_sequence bigint NOT NULL DEFAULT 0",
    "ALTER TABLE store_state ADD COLUMN start_hash bytea NOT NULL DEFAULT decode(repeat('00', 48), 'hex')",
    "ALTER TABLE store_state ADD COLUMN ledger_bytes bigint NOT NULL DEFAULT 0",
    """UPDATE store_state SET ledger_bytes = (
        SELECT coalesce(sum(180 + length(body) + 2 * octet_length(terms)), 0) FROM ledger
    )""",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_FIRST, _LEDGER_START)
"""Migration n makes format n + 1 of format n; none is ever changed once it was released."""


async def prepare(connection: Connection[Record], schema: str) -> None:
    """Make or bring up to date the tables in `schema`.

    Raises:
        InvalidDocumentError: the schema is another program's or a newer Trenza's; it was not touched.
        StoreUnavailableError: this role may not make a schema.
    """
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _lock_of(schema))
        await _make_schema(connection, schema)
        present = await _format(connection, schema)
        for migration in MIGRATIONS[present:]:
            for statement in migration:
                await connection.execute(statement)
        if present < len(MIGRATIONS):
            await connection.execute("UPDATE store_format SET version = $1", len(MIGRATIONS))


async def _make_schema(connection: Connection[Record], schema: str) -> None:
    if await connection.fetchval("SELECT to_regnamespace($1) IS NOT NULL", quoted(schema)):
        return
    if not await connection.fetchval("SELECT has_database_privilege(current_database(), 'CREATE')"):
        raise StoreUnavailableError(
            f"the database has no schema {schema} and this role may not make one: "
            f"CREATE SCHEMA {quoted(schema)} AUTHORIZATION its role"
        )
    await connection.execute(f"CREATE SCHEMA {quoted(schema)}")


async def _format(connection: Connection[Record], schema: str) -> int:
    """Return which format the schema has; 0 for an empty one, which is given its first table."""
    tables = {
        row["tablename"]
        for row in await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = $1", schema)
    }
    if not tables:
        await connection.execute("CREATE TABLE store_format (version integer NOT NULL)")
        await connection.execute("INSERT INTO store_format VALUES (0)")
        return 0
    if "store_format" not in tables:
        raise InvalidDocumentError(f"schema {schema}", ("it has tables of another program: give the node its own",))
    version: int = await connection.fetchval("SELECT version FROM store_format")
    if version > len(MIGRATIONS):
        mistake = f"it has format {version}; this Trenza reads up to {len(MIGRATIONS)}: use the newer release"
        raise InvalidDocumentError(f"schema {schema}", (mistake,))
    return version


def _lock_of(schema: str) -> int:
    digest = hashlib.sha256(b"trenza schema " + schema.encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
