"""The store's file: its tables, its version, and how a connection to it must be set up.

A file of an earlier version is brought to this one by the migrations in between, in one transaction: a crash leaves
the earlier version whole. A file that is not ours, or was written by a newer Trenza, is refused and left as it is.

Settings (sqlite.org/pragma.html): WAL with synchronous=FULL syncs the log at every commit, so what was acknowledged
survives power loss; secure_delete=ON overwrites what is deleted. Checkpoints are the writer's own affair.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import MappingProxyType

import apsw

from trenza.base.errors import InvalidDocumentError

_log = logging.getLogger(__name__)

APPLICATION_ID = 0x54525A41  # "TRZA", in the file's header

_PATIENCE_MS = 1_000  # with another tool that looks into the file

_SETTINGS = (
    "PRAGMA synchronous=FULL",
    "PRAGMA secure_delete=ON",
    "PRAGMA temp_store=MEMORY",  # no key bytes in temporary files
    "PRAGMA trusted_schema=OFF",
    "PRAGMA wal_autocheckpoint=0",
)


def _rows(table: str) -> str:
    return f"CREATE TABLE {table} (key BLOB PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID"


def _large_rows(table: str) -> str:
    """A table whose values may be longer than a quarter of a page.

    Without a rowid, the search for a key would read whole every long row that it compares with.
    """
    return f"CREATE TABLE {table} (key BLOB NOT NULL PRIMARY KEY, value BLOB NOT NULL) STRICT"


def _enlarge(*tables: str) -> Iterator[str]:
    for table in tables:
        yield f"ALTER TABLE {table} RENAME TO small_{table}"
        yield _large_rows(table)
        yield f"INSERT INTO {table} SELECT key, value FROM small_{table} ORDER BY key"  # noqa: S608 - a closed list
        yield f"DROP TABLE small_{table}"


MIGRATIONS = MappingProxyType(
    {
        1: (
            _rows("meta"),
            _rows("link_block"),
            _rows("link_used"),
            _rows("session"),
            _rows("segment"),
            _rows("segment_bytes"),
            _rows("window"),
            _rows("delivered"),
            _rows("wrapped"),
            """CREATE TABLE ledger (
                sequence INTEGER PRIMARY KEY, time INTEGER NOT NULL, kind TEXT NOT NULL,
                body BLOB NOT NULL, hash BLOB NOT NULL, terms TEXT NOT NULL  -- JSON, as the hash covers them
            ) STRICT""",
            "CREATE INDEX ledger_time ON ledger (time)",
            "CREATE INDEX ledger_kind ON ledger (kind, sequence)",
            """CREATE TABLE ledger_term (
                term TEXT NOT NULL, sequence INTEGER NOT NULL, PRIMARY KEY (term, sequence)
            ) STRICT, WITHOUT ROWID""",
            "CREATE TABLE store_state (id INTEGER PRIMARY KEY CHECK (id = 1), counter INTEGER NOT NULL) STRICT",
            "INSERT INTO store_state VALUES (1, 0)",
            f"PRAGMA application_id={APPLICATION_ID}",
        ),
        2: (  # the entry before the first that is kept: a ledger whose old entries were taken away goes on from there
            """CREATE TABLE ledger_start (
                id INTEGER PRIMARY KEY CHECK (id = 1), sequence INTEGER NOT NULL, hash BLOB NOT NULL
            ) STRICT""",
            "INSERT INTO ledger_start VALUES (1, 0, zeroblob(48))",
        ),
        3: (  # how much the ledger is (kms.ports.footprint), so that nobody has to add it up
            "ALTER TABLE store_state ADD COLUMN ledger_bytes INTEGER NOT NULL DEFAULT 0",
            """UPDATE store_state SET ledger_bytes = (
                SELECT coalesce(sum(180 + length(body) + 2 * length(CAST(terms AS BLOB))), 0) FROM ledger
            )""",
        ),
        4: tuple(_enlarge("meta", "link_block", "segment", "segment_bytes")),
    }
)
"""By version, what brings a file of the version before to it. Never change one that a release has: add another.

A new member of kms.ports.Table needs one, with its `_rows`, or its `_large_rows`."""

VERSION = max(MIGRATIONS)


def connect(path: str, *, vfs: str | None = None) -> apsw.Connection:
    """Open an existing store file and set the connection up; the first one calls `prepare` too.

    Raises:
        InvalidDocumentError: it is no database; it was not touched.
    """
    connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE, vfs=vfs)
    connection.set_busy_timeout(_PATIENCE_MS)
    try:
        for setting in _SETTINGS:
            connection.execute(setting)
    except apsw.NotADBError:
        connection.close()
        raise InvalidDocumentError(path, ("it is not a database",)) from None
    return connection


def prepare(connection: apsw.Connection) -> None:
    """Create the tables in an empty file, or bring a store of an earlier version to this one.

    Raises:
        InvalidDocumentError: it is another program's file or a newer Trenza's; it was not touched.
    """
    version = version_of(connection)
    connection.pragma("journal_mode", "WAL")
    if version:
        # What a killed predecessor had written to the log but not yet synced is visible now: make it durable before
        # anyone acts on it, or a power loss could take it back.
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    if version < VERSION:
        _migrate(connection, version)


def version_of(connection: apsw.Connection) -> int:
    """Return the version of the store that a connection leads to; 0 for an empty file.

    Raises:
        InvalidDocumentError: it is another program's file or a newer Trenza's.
    """
    application, version = connection.pragma("application_id"), connection.pragma("user_version")
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").get
    if application == 0 and version == 0 and tables == 0:
        return 0
    if application != APPLICATION_ID:
        raise InvalidDocumentError(connection.filename, ("it is a database of another program, not a Trenza store",))
    if version > VERSION:
        mistake = f"it has format {version}; this Trenza reads up to {VERSION}: use the newer release that wrote it"
        raise InvalidDocumentError(connection.filename, (mistake,))
    return int(version)


def _migrate(connection: apsw.Connection, version: int) -> None:
    with connection:  # all or nothing: a crash here leaves an empty file, or the earlier version
        for number in range(version + 1, VERSION + 1):
            for statement in MIGRATIONS[number]:
                connection.execute(statement)
        connection.pragma("user_version", VERSION)
    if version:
        _log.info("the store %s was brought from format %d to %d", connection.filename, version, VERSION)
