"""One group of commits as one transaction: lock, look, decide, write, commit; four trips to the server and one sync.

The lock on the one row of `store_state` makes the commits of all instances come one after the other. What is looked
at is read by a later statement than the one that took the lock: in READ COMMITTED that statement sees everything that
was committed before, which the locking statement itself may not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from trenza.adapters.postgres.driver import CALLERS_FAULT, asyncpg
from trenza.adapters.postgres.group import (
    Commit,
    Group,
    Kept,
    Outcome,
    Row,
    asked_about,
    pruned_through,
    sum_up,
    terms_text,
)
from trenza.adapters.postgres.server import Server
from trenza.base.errors import ConflictError, StoreUnavailableError
from trenza.kms.ports import ChainHead, LedgerEntry, LedgerExtent

if TYPE_CHECKING:
    from asyncpg import Connection, PostgresLogMessage, Record

_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SELECT 1 FROM store_state FOR UPDATE"
_LOOK = """
SELECT s.counter, s.sequence, s.hash, s.start_sequence, s.start_hash, s.ledger_bytes, l.token,
       current_setting('fsync') = 'on' AND current_setting('full_page_writes') = 'on'
       AND current_setting('synchronous_commit') IN ('on', 'remote_apply') AS durable, r.name, r.key, r.value
FROM store_state s CROSS JOIN lead l LEFT JOIN ({rows}) r ON true
"""
_NO_ROWS = "SELECT NULL::text AS name, NULL::bytea AS key, NULL::bytea AS value WHERE false"


_KEPT = """
SELECT l.sequence, l.hash, (
    SELECT sum(180 + length(body) + 2 * octet_length(terms)) FROM ledger WHERE sequence <= l.sequence
)::bigint AS bytes
FROM ledger l WHERE l.sequence = ANY($1::bigint[])
"""
_DROP_TERMS = """
DELETE FROM ledger_term t USING ledger l, jsonb_array_elements_text(l.terms::jsonb) AS named
WHERE l.sequence <= {through} AND t.term = named AND t.sequence = l.sequence
"""


def extent_of(row: Record) -> LedgerExtent:
    """Return the ledger's extent, as the row of `store_state` has it."""
    start = ChainHead(row["start_sequence"], row["start_hash"])
    return LedgerExtent(start, ChainHead(row["sequence"], row["hash"]), row["ledger_bytes"])


@dataclass(slots=True)
class Applied:
    """What became of a group, and where the store stands now."""

    outcomes: list[Outcome]
    counter: int


class Transaction:
    """Applies one group on a connection that nobody else uses meanwhile."""

    def __init__(self, connection: Connection[Record], server: Server) -> None:
        self._connection = connection
        self._server = server
        self.may_be_written = False
        """True from the moment a COMMIT is sent: an error after that leaves the outcome unknown."""

    async def apply(self, commits: Sequence[Commit]) -> Applied:
        """Make the commits durable, or as many of them as do not conflict.

        Raises:
            FencedError: the database went back in time.
            StoreUnavailableError, or what the driver raises: outcome unknown if `may_be_written`; else nothing was
                written. The connection must be given up.
        """
        try:
            return await self._apply(commits)
        except CALLERS_FAULT as error:
            await self._connection.execute("ROLLBACK")
            fault: Exception = error
        if len(commits) > 1:
            return await self._one_by_one(commits)
        if isinstance(fault, asyncpg.UniqueViolationError):  # written by somebody who does not keep to the lock
            fault = ConflictError("a row that was to be written once is there already")
        return await self._refused(fault)

    async def _one_by_one(self, commits: Sequence[Commit]) -> Applied:
        applied = [await self.apply([commit]) for commit in commits]
        outcomes = [outcome for one in applied for outcome in one.outcomes]
        return Applied(outcomes, applied[-1].counter)

    async def _refused(self, fault: Exception) -> Applied:
        standing = (await self._look({}))[0]
        return Applied([fault], standing["counter"])

    async def _apply(self, commits: Sequence[Commit]) -> Applied:
        await self._connection.execute(_BEGIN)
        asked = asked_about(commits)
        found = await self._look(asked)
        standing = found[0]
        if not standing["durable"]:
            raise StoreUnavailableError(
                "the database was told not to make commits durable (fsync, full_page_writes or synchronous_commit): "
                "nothing was written; switch them on again"
            )
        present: dict[Row, bytes] = {(row["name"], row["key"]): row["value"] for row in found if row["name"]}
        counter: int = standing["counter"]
        absent = {(table, key) for table, keys in asked.items() for key in keys} - present.keys()
        ledger = await self._kept(pruned_through(commits))
        group = sum_up(commits, present=present, extent=extent_of(standing), token=standing["token"], ledger=ledger)
        if group.is_empty:
            await self._connection.execute("ROLLBACK")
            return Applied(group.outcomes, counter)
        await self._write(group, absent, counter + 1)
        await self._commit()
        return Applied(group.outcomes, counter + 1)

    async def _kept(self, through: list[int]) -> dict[int, Kept]:
        found = await self._connection.fetch(_KEPT, through) if through else []
        return {row["sequence"]: Kept(row["hash"], row["bytes"]) for row in found}

    async def _look(self, asked: dict[str, list[bytes]]) -> list[Record]:
        seen, tables = self._server.counter, sorted(asked)
        rows = " UNION ALL ".join(
            f"SELECT '{table}' AS name, key, value FROM {table} WHERE key = ANY(${n}::bytea[])"  # noqa: S608 - our own names
            for n, table in enumerate(tables, 1)
        )
        found = await self._connection.fetch(_LOOK.format(rows=rows or _NO_ROWS), *(asked[table] for table in tables))
        self._server.witness(found[0]["counter"], at_least=seen)
        return found

    async def _write(self, group: Group, absent: set[Row], counter: int) -> None:
        for table, prefix in group.rows.cleared:
            condition, bounds = prefix_condition(prefix)
            await self._connection.execute(f"DELETE FROM {table} WHERE {condition}", *bounds)  # noqa: S608
        writing = _Writing()
        new: defaultdict[str, dict[bytes, bytes]] = defaultdict(dict)
        put: defaultdict[str, dict[bytes, bytes]] = defaultdict(dict)
        gone: defaultdict[str, list[bytes]] = defaultdict(list)
        for (table, key), value in sorted(group.rows.changed.items(), key=itemgetter(0)):
            if value is None:
                gone[table].append(key)
            else:
                (new if (table, key) in absent else put)[table][key] = value
        for table, rows in new.items():
            writing.insert(table, rows)
        for table, rows in put.items():
            writing.put(table, rows)
        for table, keys in gone.items():
            writing.delete(table, keys)
        if group.entries:
            writing.ledger(group.entries)
        if group.start is not None:
            writing.prune(group.start.sequence)
        await self._connection.execute(*writing.statement(counter, group.extent))

    async def _commit(self) -> None:
        """Commit, and believe only an answer without reservations.

        A COMMIT in a failed transaction answers ROLLBACK. One that waited for a synchronous standby and was told to
        wait no longer answers COMMIT, with a warning that the standby may not have it: a failover would lose it.
        """
        warnings: list[str] = []

        def note(_connection: object, message: PostgresLogMessage) -> None:
            warnings.append(str(message))

        self._connection.add_log_listener(note)
        self.may_be_written = True
        try:
            answer = await self._connection.execute("COMMIT")
        finally:
            self._connection.remove_log_listener(note)
        if answer != "COMMIT" or warnings:
            raise StoreUnavailableError(f"the database did not confirm a commit: {'; '.join(warnings) or answer}")


class _Writing:
    """One statement that writes all rows of a group, each once, so that the order inside does not matter."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._given: list[Any] = []

    def insert(self, table: str, rows: dict[bytes, bytes]) -> None:
        """Write rows that are not there; the unique index has the last word about that."""
        keys, values = self._bind(list(rows), "bytea[]"), self._bind(list(rows.values()), "bytea[]")
        self._part(f"INSERT INTO {table} (key, value) SELECT * FROM unnest({keys}, {values})")  # noqa: S608

    def put(self, table: str, rows: dict[bytes, bytes]) -> None:
        keys, values = self._bind(list(rows), "bytea[]"), self._bind(list(rows.values()), "bytea[]")
        self._part(
            f"INSERT INTO {table} (key, value) SELECT * FROM unnest({keys}, {values}) "  # noqa: S608
            "ON CONFLICT (key) DO UPDATE SET value = excluded.value"
        )

    def delete(self, table: str, keys: list[bytes]) -> None:
        self._part(f"DELETE FROM {table} WHERE key = ANY({self._bind(keys, 'bytea[]')})")  # noqa: S608

    def ledger(self, entries: list[LedgerEntry]) -> None:
        columns = (
            self._bind([entry.sequence for entry in entries], "bigint[]"),
            self._bind([entry.time for entry in entries], "bigint[]"),
            self._bind([entry.kind for entry in entries], "text[]"),
            self._bind([entry.body for entry in entries], "bytea[]"),
            self._bind([entry.hash for entry in entries], "bytea[]"),
            self._bind([terms_text(entry.terms) for entry in entries], "text[]"),
        )
        self._part(
            "INSERT INTO ledger (sequence, time, kind, body, hash, terms) "  # noqa: S608
            f"SELECT * FROM unnest({', '.join(columns)})"
        )
        terms = [(term, entry.sequence) for entry in entries for term in dict.fromkeys(entry.terms)]
        if terms:
            named = self._bind([term for term, _ in terms], "text[]")
            at = self._bind([sequence for _, sequence in terms], "bigint[]")
            self._part(f"INSERT INTO ledger_term (term, sequence) SELECT * FROM unnest({named}, {at})")  # noqa: S608

    def prune(self, through: int) -> None:
        """Remove entries that were there before; all parts of the statement see what was there before it."""
        bound = self._bind(through, "bigint")
        self._part(_DROP_TERMS.format(through=bound))
        self._part(f"DELETE FROM ledger WHERE sequence <= {bound}")  # noqa: S608

    def statement(self, counter: int, extent: LedgerExtent) -> tuple[Any, ...]:
        """Return the statement and what is bound in it."""
        head, start = extent.head, extent.start
        last = (
            f"UPDATE store_state SET counter = {self._bind(counter, 'bigint')}, "  # noqa: S608
            f"sequence = {self._bind(head.sequence, 'bigint')}, hash = {self._bind(head.hash, 'bytea')}, "
            f"start_sequence = {self._bind(start.sequence, 'bigint')}, "
            f"start_hash = {self._bind(start.hash, 'bytea')}, "
            f"ledger_bytes = {self._bind(extent.bytes, 'bigint')}"
        )
        parts = ", ".join(f"part{n} AS ({part})" for n, part in enumerate(self._parts))
        return (f"WITH {parts} {last}" if parts else last, *self._given)

    def _part(self, statement: str) -> None:
        self._parts.append(statement)

    def _bind(self, value: object, kind: str) -> str:
        self._given.append(value)
        return f"${len(self._given)}::{kind}"


def prefix_condition(prefix: bytes, *, first: int = 1) -> tuple[str, list[bytes]]:
    """Return a condition on `key`, bound from parameter `first`, that an index answers, and what to bind."""
    stem = prefix.rstrip(b"\xff")
    if not stem:
        return f"key >= ${first}", [prefix]
    return f"key >= ${first} AND key < ${first + 1}", [prefix, stem[:-1] + bytes([stem[-1] + 1])]
