"""What can be asked of the schema: rows by key or prefix, ledger entries, the ledger's head, the segments' keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from trenza.adapters.postgres.group import relation
from trenza.adapters.postgres.line import Line
from trenza.adapters.postgres.transaction import extent_of, prefix_condition
from trenza.base.units import Seconds
from trenza.kms.ports import ChainHead, LedgerEntry, LedgerExtent, LedgerQuery, Table

if TYPE_CHECKING:
    from asyncpg import Record

_terms = msgspec.json.Decoder(tuple[str, ...])


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the memory that all instances share stands."""

    counter: int
    extent: LedgerExtent

    @property
    def head(self) -> ChainHead:
        return self.extent.head


class Reading:
    """The questions, one after the other over a line of its own. Sees every commit that has returned, anywhere."""

    def __init__(self, line: Line) -> None:
        self._line = line

    async def get(self, table: Table, key: bytes) -> bytes | None:
        return await self._value(f"SELECT value FROM {relation(table)} WHERE key = $1", key)  # noqa: S608 - a closed list

    async def scan(self, table: Table, prefix: bytes) -> list[tuple[bytes, bytes]]:
        condition, bounds = prefix_condition(prefix)
        rows = await self._rows(
            f"SELECT key, value FROM {relation(table)} WHERE {condition} ORDER BY key",  # noqa: S608
            *bounds,
        )
        return [(row["key"], row["value"]) for row in rows]

    async def entries(self, query: LedgerQuery) -> list[LedgerEntry]:
        statement, given = _statement(query)
        return [
            LedgerEntry(
                row["sequence"], row["time"], row["kind"], row["body"], row["hash"], _terms.decode(row["terms"])
            )
            for row in await self._rows(statement, *given)
        ]

    async def standing(self) -> Standing:
        (row,) = await self._rows("SELECT * FROM store_state")
        return Standing(row["counter"], extent_of(row))

    async def segment_key(self, handle: bytes) -> bytes | None:
        return await self._value("SELECT value FROM segment_key WHERE key = $1", handle)

    async def segment_keys(self, *, older_than: Seconds) -> list[bytes]:
        """Return the handles of the keys that were made longer ago than `older_than`, by the server's clock."""
        rows = await self._rows(
            "SELECT key FROM segment_key WHERE made < clock_timestamp() - make_interval(secs => $1)", older_than
        )
        return [row["key"] for row in rows]

    async def keyring(self, identity: bytes, tag: bytes) -> tuple[bytes, bytes]:
        """Return the keyring's identity and tag, which are those given if it had none."""
        await self._rows("INSERT INTO keyring VALUES (1, $1, $2) ON CONFLICT (id) DO NOTHING", identity, tag)
        (row,) = await self._rows("SELECT identity, tag FROM keyring")
        return row["identity"], row["tag"]

    async def server_start(self) -> int:
        """Return when the server was started, in microseconds since 1970, by its clock."""
        (row,) = await self._rows("SELECT floor(extract(epoch FROM pg_postmaster_start_time()) * 1e6)::bigint AS at")
        at: int = row["at"]
        return at

    async def moment(self) -> Seconds:
        """Return the time by the server's clock, in seconds since 1970."""
        (row,) = await self._rows("SELECT extract(epoch FROM clock_timestamp())::float8 AS at")
        return Seconds(row["at"])

    async def close(self) -> None:
        await self._line.close()

    async def _rows(self, statement: str, *given: Any) -> list[Record]:
        async with self._line.connection() as connection:
            return await connection.fetch(statement, *given)

    async def _value(self, statement: str, *given: Any) -> bytes | None:
        async with self._line.connection() as connection:
            value: bytes | None = await connection.fetchval(statement, *given)
            return value


def _statement(query: LedgerQuery) -> tuple[str, list[Any]]:
    tables, conditions, given = "ledger", ["ledger.sequence > $1"], [query.after_sequence]
    wanted: list[tuple[str, Any]] = [
        ("ledger.kind =", query.kind),
        ("ledger.time >=", query.since),
        ("ledger.time <=", query.until),
        ("ledger_term.term =", query.term),
    ]
    if query.term is not None:
        tables = "ledger_term JOIN ledger USING (sequence)"
    for condition, value in wanted:
        if value is not None:
            given.append(value)
            conditions.append(f"{condition} ${len(given)}")
    given.append(query.limit)
    statement = (
        f"SELECT ledger.sequence, time, kind, body, hash, terms FROM {tables} "  # noqa: S608 - values are bound
        f"WHERE {' AND '.join(conditions)} ORDER BY ledger.sequence LIMIT ${len(given)}"
    )
    return statement, given
