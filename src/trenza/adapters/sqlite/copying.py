"""A copy of a store, made while a node writes to it: the ledger, and the rows that are asked for.

The ledger comes in batches, each read whole before the next, so no read transaction holds up the node's checkpoints;
what it gained meanwhile comes at the end, in the one short transaction that reads the rows. Every entry's hash is
computed anew on the way: a copy of a damaged ledger is refused, not kept. Nothing is written to the source.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from trenza.adapters.sqlite import schema
from trenza.adapters.sqlite.directory import STORE_NAME
from trenza.adapters.sqlite.reading import Reading
from trenza.base.errors import InvalidDocumentError, StoreUnavailableError
from trenza.core.chain import verify_chain
from trenza.kms.ports import ChainHead, LedgerEntry, LedgerQuery, Table

_BATCH: Final = 5_000  # entries
_ENTRY: Final = "INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?)"
_TERM: Final = "INSERT OR IGNORE INTO ledger_term VALUES (?, ?)"

Rows = Sequence[tuple[bytes, bytes]]
Progress = Callable[[int, int], None]
"""Told how many ledger entries are copied, and of how many."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy holds: a moment of the source."""

    version: int
    counter: int
    start: ChainHead  # before the first entry that is kept
    head: ChainHead
    rows: Mapping[Table, Rows]  # of the tables that were asked for; the caller decides which of them to write


def copy_store(source: Path, target: Path, *, tables: Sequence[Table], progress: Progress) -> Copied:
    """Copy the ledger of the store in a data directory into a new store, and read some tables at the same moment.

    Args:
        source: the data directory; a node may be running there.
        target: of the new store, a file that does not exist.
        tables: whose rows to return; they must be small.
        progress: told now and then.

    Raises:
        StoreUnavailableError: there is no store, or it cannot be read or written.
        InvalidDocumentError: it is not of this release's format.
        AuthenticationError: its ledger is damaged.
    """
    with _failures_told(source):
        reading = _opened(source / STORE_NAME)
        try:
            target.touch(mode=0o600, exist_ok=False)
            writing = schema.connect(str(target))
            try:
                schema.prepare(writing)
                return _copy(reading, writing, tables, progress)
            finally:
                writing.close()
        finally:
            reading.close()


def ledger_of(connection: apsw.Connection) -> tuple[ChainHead, Iterator[LedgerEntry]]:
    """Return where a store's ledger starts, and its entries."""
    start = _start(connection)
    return start, _entries(Reading(connection), start.sequence)


def _opened(path: Path) -> apsw.Connection:
    if not path.is_file():
        raise StoreUnavailableError(f"there is no store {path}: has the node ever run?")
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    connection.set_busy_timeout(5_000)
    version = schema.version_of(connection)
    if version != schema.VERSION:
        connection.close()
        why = (
            f"it has format {version}, this release's is {schema.VERSION}: start the node once, which brings it there"
        )
        raise InvalidDocumentError(str(path), (why,))
    return connection


def _copy(reading: apsw.Connection, writing: apsw.Connection, tables: Sequence[Table], progress: Progress) -> Copied:
    source = Reading(reading)
    start = head = _start(reading)
    whole = reading.execute("SELECT max(sequence) FROM ledger").get or 0
    while batch := source.entries(LedgerQuery(after_sequence=head.sequence, limit=_BATCH)):
        if batch[0].sequence > head.sequence + 1 and (now := _start(reading)).sequence > head.sequence:
            start = head = _begun_anew(writing, now)  # it was pruned beyond what is copied
            continue
        head = _add(writing, head, batch)
        progress(head.sequence - start.sequence, max(whole, head.sequence) - start.sequence)
        if len(batch) < _BATCH:
            break
    with reading:  # one moment for all the rest
        if (now := _start(reading)).sequence > head.sequence:
            head = _begun_anew(writing, now)
        while batch := source.entries(LedgerQuery(after_sequence=head.sequence, limit=_BATCH)):
            head = _add(writing, head, batch)
        rows = {table: source.scan(table, b"") for table in tables}
        counter: int = reading.execute("SELECT counter FROM store_state").get
        size: int = reading.execute("SELECT ledger_bytes FROM store_state").get
        start = _start(reading)
    with writing:  # what was taken away from the source's ledger meanwhile
        writing.execute("DELETE FROM ledger WHERE sequence <= ?", (start.sequence,))
        writing.execute("DELETE FROM ledger_term WHERE sequence <= ?", (start.sequence,))
        writing.execute("UPDATE ledger_start SET sequence = ?, hash = ?", (start.sequence, start.hash))
        writing.execute("UPDATE store_state SET counter = ?, ledger_bytes = ?", (counter, size))
    progress(head.sequence - start.sequence, head.sequence - start.sequence)
    return Copied(schema.VERSION, counter, start, head, rows)


def _add(writing: apsw.Connection, head: ChainHead, batch: Sequence[LedgerEntry]) -> ChainHead:
    reached = ChainHead(*verify_chain(batch, head))
    with writing:
        for entry in batch:
            terms = msgspec.json.encode(entry.terms).decode()
            values: tuple[Any, ...] = (entry.sequence, entry.time, entry.kind, entry.body, entry.hash, terms)
            writing.execute(_ENTRY, values)
            for term in entry.terms:
                writing.execute(_TERM, (term, entry.sequence))
    return reached


def _begun_anew(writing: apsw.Connection, start: ChainHead) -> ChainHead:
    with writing:
        writing.execute("DELETE FROM ledger")
        writing.execute("DELETE FROM ledger_term")
    return start


def _start(connection: apsw.Connection) -> ChainHead:
    found: list[Any] = connection.execute("SELECT sequence, hash FROM ledger_start").fetchall()
    return ChainHead(*found[0])


def _entries(reading: Reading, after: int) -> Iterator[LedgerEntry]:
    while batch := reading.entries(LedgerQuery(after_sequence=after, limit=_BATCH)):
        yield from batch
        after = batch[-1].sequence


@contextlib.contextmanager
def _failures_told(source: Path) -> Iterator[None]:
    try:
        yield
    except (apsw.Error, OSError) as error:
        raise StoreUnavailableError(f"the store in {source} could not be copied: {error}") from error
