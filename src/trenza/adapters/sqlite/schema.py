"""The store's file: its tables, its version, and how a connection to it must be set up.

A file that is not ours, or was written by a newer Trenza, is refused and left as it is.

Settings (sqlite.org/pragma.html): WAL with synchronous=FULL syncs the log at every commit, so what was acknowledged
survives power loss; secure_delete=ON overwrites what is deleted. Checkpoints are the writer's own affair.
"""

from __future__ import annotations

import apsw

from trenza.base.errors import InvalidDocumentError
from trenza.kms.ports import Table

APPLICATION_ID = 0x54525A41  # "TRZA", in the file's header
VERSION = 1

_PATIENCE_MS = 1_000  # with another tool that looks into the file

_SETTINGS = (
    "PRAGMA synchronous=FULL",
    "PRAGMA secure_delete=ON",
    "PRAGMA temp_store=MEMORY",  # no key bytes in temporary files
    "PRAGMA trusted_schema=OFF",
    "PRAGMA wal_autocheckpoint=0",
)

_ROWS = tuple(
    f"CREATE TABLE {table.value} (key BLOB PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID" for table in Table
)

_LEDGER = (
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
    f"PRAGMA user_version={VERSION}",
)


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
    """Create the tables in an empty file, or check that the file is a store of this version.

    Raises:
        InvalidDocumentError: it is another program's file or a newer Trenza's; it was not touched.
    """
    if _is_fresh(connection):
        connection.pragma("journal_mode", "WAL")
        with connection:  # all or nothing: a crash here leaves an empty file
            for statement in (*_ROWS, *_LEDGER):
                connection.execute(statement)
        return
    connection.pragma("journal_mode", "WAL")
    # What a killed predecessor had written to the log but not yet synced is visible now: make it durable before
    # anyone acts on it, or a power loss could take it back.
    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)


def _is_fresh(connection: apsw.Connection) -> bool:
    application, version = connection.pragma("application_id"), connection.pragma("user_version")
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").get
    if application == 0 and version == 0 and tables == 0:
        return True
    if application != APPLICATION_ID:
        raise InvalidDocumentError(connection.filename, ("it is a database of another program, not a Trenza store",))
    if version > VERSION:
        mistake = f"it has format {version}; this Trenza reads up to {VERSION}: use the newer release that wrote it"
        raise InvalidDocumentError(connection.filename, (mistake,))
    return False
