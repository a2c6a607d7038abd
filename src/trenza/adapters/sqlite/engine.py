"""The transactions: a group of commits becomes one, chained into the ledger and counted.

Synchronous and on one connection; who calls it from where is the fronts' affair (store.py, inline.py). Nothing that
it reports as written is less than durable.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from typing import Any

import apsw
import msgspec

from trenza.adapters.sqlite.reading import after_prefix
from trenza.base.errors import ConflictError, StoreUnavailableError
from trenza.core.chain import chain_hash
from trenza.kms.ports import (
    Append,
    ChainHead,
    Change,
    Delete,
    DeletePrefix,
    Exists,
    Expect,
    Insert,
    LedgerExtent,
    Prune,
    Put,
    Table,
    footprint,
)

_log = logging.getLogger(__name__)

_PUT = {table: f"INSERT OR REPLACE INTO {table.value} VALUES (?, ?)" for table in Table}  # noqa: S608 - a closed list
_INSERT = {table: f"INSERT INTO {table.value} VALUES (?, ?)" for table in Table}  # noqa: S608
_VALUE = {table: f"SELECT value FROM {table.value} WHERE key = ?" for table in Table}  # noqa: S608
_DELETE = {table: f"DELETE FROM {table.value} WHERE key = ?" for table in Table}  # noqa: S608
_DELETE_FROM = {table: f"DELETE FROM {table.value} WHERE key >= ?" for table in Table}  # noqa: S608
_DELETE_RANGE = {table: f"DELETE FROM {table.value} WHERE key >= ? AND key < ?" for table in Table}  # noqa: S608
_ENTRY = "INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?)"
_TERM = "INSERT OR IGNORE INTO ledger_term VALUES (?, ?)"
_COUNT = "UPDATE store_state SET counter = ?, ledger_bytes = ?"
_PRUNED = "SELECT sequence, length(body), terms FROM ledger WHERE sequence <= ?"
_DROP_TERM = "DELETE FROM ledger_term WHERE term = ? AND sequence = ?"
_DROP_ENTRIES = "DELETE FROM ledger WHERE sequence <= ?"
_START = "UPDATE ledger_start SET sequence = ?, hash = ?"

_READS = (Expect, Exists)
_CONDITIONS = (Insert, Expect, Exists, Prune)

_CALLERS_FAULT = (apsw.TooBigError, apsw.MismatchError, apsw.ConstraintError)

Outcome = Exception | None
"""None: durable. ConflictError or a caller's bug: nothing was written. StoreUnavailableError: doubtful."""


class Engine:
    """Applies groups of commits on one connection and knows where the ledger stands.

    `extent` and `counter` only ever speak of what is durable, and may be read from any thread.
    """

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._execute = connection.execute
        self._logged_pages = 0
        self._in_step = True
        self._broken = False
        self._failed_groups = 0  # since the last that was written
        connection.set_wal_hook(self._logged)
        self.counter, self.extent = self._where_it_stands()
        self._next = self.extent  # inside the open transaction

    def apply(self, group: Sequence[Sequence[Change]]) -> list[Outcome]:
        """Make the commits durable in one transaction, and say what became of each."""
        try:
            outcomes = self._transaction(group)
            self._note_recovery()
            return outcomes
        except (apsw.Error, MemoryError) as error:
            if not isinstance(error, _CALLERS_FAULT):
                self._note_failure(error)
                return [_unavailable(error) for _ in group]
            fault: Exception = error
        except Exception as error:  # noqa: BLE001 - a caller's bug (a wrong type) is given to that caller alone
            fault = error
        if len(group) == 1:
            return [fault]
        return [outcome for changes in group for outcome in self.apply([changes])]

    @property
    def is_usable(self) -> bool:
        """False when a failed transaction could not be rolled back: close this and open the file again."""
        return not self._broken

    @property
    def logged_pages(self) -> int:
        """Pages in the write-ahead log that the main file may lack."""
        return self._logged_pages

    def checkpoint(self, *, truncate: bool = False) -> None:
        """Move the log's pages into the main file; what cannot be moved now stays in the log, and is safe there."""
        mode = apsw.SQLITE_CHECKPOINT_TRUNCATE if truncate else apsw.SQLITE_CHECKPOINT_PASSIVE
        try:
            logged, moved = self._connection.wal_checkpoint(mode=mode)
        except apsw.BusyError:
            return
        except apsw.Error as error:
            _log.warning("the log could not be moved into the store's main file: %s", error)
            return
        self._logged_pages = logged - moved

    def close(self) -> None:
        """Move what is logged into the main file and let go of it; may be called twice."""
        with contextlib.suppress(apsw.ConnectionClosedError):
            if not self._broken:
                self.checkpoint(truncate=True)
            self._connection.set_wal_hook(None)
            self._connection.close()

    def _transaction(self, group: Sequence[Sequence[Change]]) -> list[Outcome]:
        try:
            self._execute("BEGIN IMMEDIATE")
            if not self._in_step:
                self.counter, self.extent = self._where_it_stands()
                self._in_step = True
            self._next = self.extent
            outcomes = [self._commit(changes) for changes in group]
            self._execute(_COUNT, (self.counter + 1, self._next.bytes))
            self._execute("COMMIT")
        except BaseException:
            self._in_step = False
            self._roll_back()
            raise
        self.counter += 1
        self.extent = self._next
        return outcomes

    def _commit(self, changes: Sequence[Change]) -> Outcome:
        """Write one commit inside the open transaction, or nothing of it."""
        if not _writes_before_a_condition(changes):
            try:
                self._write(changes)
            except ConflictError as conflict:  # nothing was written before it
                return conflict
            return None
        before = self._next
        self._execute("SAVEPOINT one_commit")
        try:
            self._write(changes)
        except ConflictError as conflict:
            self._next = before
            self._execute("ROLLBACK TO one_commit")
            self._execute("RELEASE one_commit")
            return conflict
        self._execute("RELEASE one_commit")
        return None

    def _write(self, changes: Sequence[Change]) -> None:
        for change in changes:
            match change:
                case Put(table, key, value):
                    self._execute(_PUT[table], (key, value))
                case Insert(table, key, value):
                    self._insert(table, key, value)
                case Expect(table, key, value):
                    self._expect(table, key, value)
                case Exists(table, key):
                    self._check_exists(table, key)
                case Delete(table, key):
                    self._execute(_DELETE[table], (key,))
                case DeletePrefix(table, prefix):
                    self._delete_prefix(table, prefix)
                case Append():
                    self._append(change)
                case Prune(through, digest):
                    self._prune(through, digest)

    def _insert(self, table: Table, key: bytes, value: bytes) -> None:
        try:
            self._execute(_INSERT[table], (key, value))
        except apsw.ConstraintError as error:
            if error.extendedresult != apsw.SQLITE_CONSTRAINT_PRIMARYKEY:  # type: ignore[attr-defined]  # not in its stubs
                raise
            raise ConflictError(f"a row of {table.value} that was to be written once is there already") from None

    def _expect(self, table: Table, key: bytes, value: bytes | None) -> None:
        found: list[Any] = self._execute(_VALUE[table], (key,)).fetchall()
        if (found[0][0] if found else None) != value:
            raise ConflictError(f"a row of {table.value} is not what it was expected to be")

    def _check_exists(self, table: Table, key: bytes) -> None:
        if not self._execute(_VALUE[table], (key,)).fetchall():
            raise ConflictError(f"a row of {table.value} that was to be there is not")

    def _delete_prefix(self, table: Table, prefix: bytes) -> None:
        if not prefix:
            raise ValueError("the prefix is empty: this would delete the whole table")
        end = after_prefix(prefix)
        if end is None:
            self._execute(_DELETE_FROM[table], (prefix,))
        else:
            self._execute(_DELETE_RANGE[table], (prefix, end))

    def _append(self, entry: Append) -> None:
        extent = self._next
        sequence = extent.head.sequence + 1
        digest = chain_hash(
            extent.head.hash, sequence=sequence, time=entry.time, kind=entry.kind, body=entry.body, terms=entry.terms
        )
        terms = msgspec.json.encode(entry.terms).decode()
        self._execute(_ENTRY, (sequence, entry.time, entry.kind, entry.body, digest, terms))
        for term in entry.terms:
            self._execute(_TERM, (term, sequence))
        size = extent.bytes + footprint(body=len(entry.body), terms=len(terms.encode()))
        self._next = LedgerExtent(extent.start, ChainHead(sequence, digest), size)

    def _prune(self, through: int, digest: bytes) -> None:
        extent = self._next
        if through <= extent.start.sequence:
            return
        found: list[Any] = self._execute("SELECT hash FROM ledger WHERE sequence = ?", (through,)).fetchall()
        if not found or found[0][0] != digest:
            raise ConflictError(f"ledger entry {through} is not the one that was to be pruned")
        size = extent.bytes
        pruned: list[Any] = self._execute(_PRUNED, (through,)).fetchall()
        for sequence, body, terms in pruned:
            size -= footprint(body=body, terms=len(terms.encode()))
            for term in msgspec.json.decode(terms, type=tuple[str, ...]):
                self._execute(_DROP_TERM, (term, sequence))
        self._execute(_DROP_ENTRIES, (through,))
        self._execute(_START, (through, digest))
        self._next = LedgerExtent(ChainHead(through, digest), extent.head, size)

    def _where_it_stands(self) -> tuple[int, LedgerExtent]:
        (counter, size), *_ = self._rows("SELECT counter, ledger_bytes FROM store_state")
        start = ChainHead(*self._rows("SELECT sequence, hash FROM ledger_start")[0])
        last = self._rows("SELECT sequence, hash FROM ledger ORDER BY sequence DESC LIMIT 1")
        return counter, LedgerExtent(start, ChainHead(*last[0]) if last else start, size)

    def _rows(self, question: str) -> list[Any]:
        return self._execute(question).fetchall()

    def _note_failure(self, error: Exception) -> None:
        """Say it once: a log that grows with every refusal would fill what is left of the disk."""
        if self._failed_groups == 0:
            _log.warning("the store cannot commit: %s", error)
        self._failed_groups += 1

    def _note_recovery(self) -> None:
        if self._failed_groups:
            _log.warning("the store commits again; %d groups had failed", self._failed_groups)
            self._failed_groups = 0

    def _roll_back(self) -> None:
        try:
            if self._connection.in_transaction:
                self._execute("ROLLBACK")
        except apsw.Error as error:
            self._broken = True
            _log.warning("a failed transaction could not be rolled back: %s", error)

    def _logged(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self._logged_pages = pages
        return apsw.SQLITE_OK


def _writes_before_a_condition(changes: Sequence[Change]) -> bool:
    """Tell whether a conflict may come when something was written already."""
    writes = False
    for change in changes:
        if writes and isinstance(change, _CONDITIONS):
            return True
        writes = writes or not isinstance(change, _READS)
    return False


def _unavailable(error: BaseException) -> StoreUnavailableError:
    return StoreUnavailableError(f"the store could not commit: {error}")
