"""What can be asked of a store file: rows by key or prefix, ledger entries by term, kind and time.

Each question is answered whole before the next, so no read transaction stays open to hold up a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import apsw
import msgspec

from trenza.base.errors import StoreUnavailableError
from trenza.kms.ports import LedgerEntry, LedgerQuery, Table

_GET = {table: f"SELECT value FROM {table.value} WHERE key = ?" for table in Table}  # noqa: S608 - a closed list
_SCAN = {table: f"SELECT key, value FROM {table.value} WHERE key >= ?" for table in Table}  # noqa: S608

_terms = msgspec.json.Decoder(tuple[str, ...])


class Reading:
    """The questions, on one connection; one caller at a time."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def get(self, table: Table, key: bytes) -> bytes | None:
        with _failures_told():
            found: list[Any] = self._connection.execute(_GET[table], (key,)).fetchall()
        return found[0][0] if found else None

    def scan(self, table: Table, prefix: bytes) -> list[tuple[bytes, bytes]]:
        end = after_prefix(prefix)
        bound = "" if end is None else " AND key < ?"
        with _failures_told():
            rows: list[Any] = self._connection.execute(
                f"{_SCAN[table]}{bound} ORDER BY key", (prefix,) if end is None else (prefix, end)
            ).fetchall()
        return rows

    def entries(self, query: LedgerQuery) -> list[LedgerEntry]:
        statement, bindings = _statement(query)
        with _failures_told():
            rows: list[Any] = self._connection.execute(statement, bindings).fetchall()
        return [
            LedgerEntry(sequence, time, kind, body, digest, _terms.decode(terms))
            for sequence, time, kind, body, digest, terms in rows
        ]

    def close(self) -> None:
        self._connection.close()


def after_prefix(prefix: bytes) -> bytes | None:
    """Return the least key greater than all keys that start with `prefix`, or None when there is no such key."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None


def _statement(query: LedgerQuery) -> tuple[str, list[Any]]:
    tables, conditions, bindings = "ledger", ["ledger.sequence > ?"], [query.after_sequence]
    wanted: list[tuple[str, Any]] = [
        ("ledger.kind = ?", query.kind),
        ("ledger.time >= ?", query.since),
        ("ledger.time <= ?", query.until),
        ("ledger_term.term = ?", query.term),
    ]
    if query.term is not None:
        tables = "ledger_term JOIN ledger USING (sequence)"
    for condition, value in wanted:
        if value is not None:
            conditions.append(condition)
            bindings.append(value)
    statement = (
        f"SELECT ledger.sequence, time, kind, body, hash, terms FROM {tables} "  # noqa: S608 - values are bound
        f"WHERE {' AND '.join(conditions)} ORDER BY ledger.sequence LIMIT ?"
    )
    return statement, [*bindings, query.limit]


@contextmanager
def _failures_told() -> Iterator[None]:
    try:
        yield
    except apsw.Error as error:
        raise StoreUnavailableError(f"the store could not be read: {error}") from error
