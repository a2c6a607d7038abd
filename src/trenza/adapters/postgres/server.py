"""A database server that a node may trust with its memory, and connections to it.

A server that may forget what it acknowledged (fsync, full_page_writes or synchronous_commit off), or that does not
take writes (a standby), is refused at the start and at every new connection. So is one that is not the server this
process began with: a promoted standby may lack the last commits, so it is another memory (decision: ADR on
PostgreSQL), which shows by its timeline.

Sources: PostgreSQL documentation, chapters 30.3 (asynchronous commit), 30.5 (WAL configuration), 25.3.6 (timelines).
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trenza.adapters.postgres.driver import FAILURES, asyncpg
from trenza.adapters.postgres.settings import PostgresSettings
from trenza.base.errors import FencedError, StoreUnavailableError
from trenza.base.units import Seconds

if TYPE_CHECKING:
    from asyncpg import Connection, Record

OLDEST = 130_000
"""server_version_num of PostgreSQL 13."""

DEADLINE: Final = Seconds(5.0)

_STALLED_MS = 2_000
"""After so long in the middle of a transaction a client is taken for dead: its locks must not stop the others."""

_STANDING = """
SELECT current_setting('server_version_num')::int AS version,
       current_setting('fsync') = 'on' AS fsync,
       current_setting('full_page_writes') = 'on' AS full_page_writes,
       current_setting('synchronous_commit') IN ('on', 'remote_apply') AS synchronous_commit,
       current_setting('default_transaction_read_only') = 'on' AS read_only,
       pg_is_in_recovery() AS standby
"""
# The timeline of the last checkpoint (pg_control_checkpoint) lags behind a promotion; the log's own name does not.
_IDENTITY = """
SELECT (SELECT system_identifier FROM pg_control_system()) AS system,
       ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint AS timeline
"""


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """Which history of which cluster: every promotion and every recovery to a point in time begins a new timeline."""

    system: int
    timeline: int

    def encode(self) -> bytes:
        """Return 12 bytes."""
        return struct.pack(">qI", self.system, self.timeline)


class Server:
    """Makes connections to one node's schema, all to one and the same server history."""

    def __init__(self, settings: PostgresSettings, *, deadline: Seconds = DEADLINE) -> None:
        """Describe the server; nothing is connected yet.

        Args:
            settings: where it is.
            deadline: seconds that any one call may take; then its connection is given up.
        """
        self.settings = settings
        self.deadline = deadline
        self.counter = 0
        """The greatest number of commit groups that this process has seen there."""
        self._identity: ServerIdentity | None = None
        self._moved: FencedError | None = None

    @property
    def identity(self) -> ServerIdentity:
        """The server that this process began with; known once a connection was made."""
        assert self._identity is not None, "connect comes first"
        return self._identity

    def witness(self, counter: int, *, at_least: int) -> None:
        """Take note of the shared counter, which never goes back in a memory that has forgotten nothing.

        Args:
            counter: as the database says.
            at_least: `self.counter` before it was asked.

        Raises:
            FencedError: the database was restored to an earlier state under this process.
        """
        if self._moved is not None:
            raise self._moved
        if counter < at_least:
            self._moved = FencedError(
                f"the database went back from commit group {at_least} to {counter}: it was restored, so a new life "
                "must begin"
            )
            raise self._moved
        self.counter = max(self.counter, counter)

    async def connect(self) -> Connection[Record]:
        """Return a new connection that is fit for a store; its owner closes it.

        Raises:
            StoreUnavailableError: no answer, or a server that must not be trusted with this; says what to do.
            FencedError: it is another server, or another history, than before.
        """
        if self._moved is not None:
            raise self._moved
        try:
            connection: Connection[Record] = await asyncpg.connect(
                self.settings.dsn, timeout=self.deadline, server_settings=self._session()
            )
        except (*FAILURES, ValueError) as error:
            raise StoreUnavailableError(f"the database cannot be reached: {reason(error)}") from error
        try:
            async with asyncio.timeout(self.deadline):
                await self._check(connection)
        except FAILURES as error:
            connection.terminate()
            raise StoreUnavailableError(f"the database cannot be asked what it is: {reason(error)}") from error
        except BaseException:
            connection.terminate()
            raise
        return connection

    def _session(self) -> dict[str, str]:
        schema = quoted(self.settings.schema)
        allowed = str(round(self.deadline * 1000))
        return {
            "application_name": f"trenza {self.settings.schema}"[:63],
            "search_path": f"{schema}, pg_temp",  # pg_temp last: nobody's temporary table passes for ours
            "default_transaction_isolation": "read committed",
            "statement_timeout": allowed,  # does not interrupt COMMIT: that is never stopped half-way
            "lock_timeout": allowed,
            "idle_in_transaction_session_timeout": str(_STALLED_MS),
            "tcp_keepalives_idle": "5",
            "tcp_keepalives_interval": "1",
            "tcp_keepalives_count": "3",
            "jit": "off",  # our statements are small
        }

    async def _check(self, connection: Connection[Record]) -> None:
        standing = await connection.fetchrow(_STANDING)
        assert standing is not None
        if not standing["synchronous_commit"]:
            await connection.execute("SET synchronous_commit = on")
            standing = await connection.fetchrow(_STANDING)
            assert standing is not None
        if (why := _refusal(standing)) is not None:
            raise StoreUnavailableError(f"the database is refused: {why}")
        found = await connection.fetchrow(_IDENTITY)
        assert found is not None
        identity = ServerIdentity(found["system"], found["timeline"])
        if self._identity is None:
            self._identity = identity
        if identity != self._identity:
            self._moved = FencedError(
                f"the database is another than this instance began with (timeline {identity.timeline}, before "
                f"{self._identity.timeline}): it may lack the last commits, so a new life must begin"
            )
            raise self._moved


def _refusal(standing: Record) -> str | None:
    """Return why this server must not keep keys, and what to do about it."""
    forgets = "it may forget what it acknowledged, and a key could be issued twice"
    if standing["version"] < OLDEST:
        return (
            f"PostgreSQL {OLDEST // 10_000} or newer is needed, this is {standing['version'] // 10_000}: upgrade it"
        )
    if not standing["fsync"]:
        return f"fsync is off: {forgets}; set fsync = on in postgresql.conf and reload"
    if not standing["full_page_writes"]:
        return f"full_page_writes is off: {forgets}; set full_page_writes = on in postgresql.conf and reload"
    if not standing["synchronous_commit"]:
        return f"synchronous_commit is off for this session and cannot be set: {forgets}"
    if standing["standby"]:
        return "it is a standby: name the primary, or add target_session_attrs=primary to an address of several hosts"
    if standing["read_only"]:
        return "default_transaction_read_only is on: ALTER ROLE … SET default_transaction_read_only = off"
    return None


def quoted(name: str) -> str:
    """Return an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def reason(error: BaseException) -> str:
    """Return an error's words, or its name where it has none (a deadline has none)."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
