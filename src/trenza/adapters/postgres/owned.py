"""Schemas that one emulated network makes, marks as its own, and drops when it begins anew.

The mark is the schema's comment, written in the transaction that makes it. A schema without the very mark is somebody
else's, whatever its name: it is neither used nor dropped. For `trenza up`; a real site's schema is its operator's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from trenza.adapters.postgres.driver import FAILURES
from trenza.adapters.postgres.server import Server, quoted, reason
from trenza.adapters.postgres.settings import PostgresSettings
from trenza.base.errors import ConflictError, StoreUnavailableError

if TYPE_CHECKING:
    from asyncpg import Connection, Record

CONNECTIONS_EACH: Final = 3
"""Connections that one instance of a node holds: commits, reading, lease."""

_MARKS = "SELECT nspname AS name, obj_description(oid, 'pg_namespace') AS mark FROM pg_namespace"
_ROOM = """
SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int AS room,
       has_database_privilege(current_database(), 'CREATE') AS may_make
"""


class OwnedSchemas:
    """The schemas of one network in a database, by its mark."""

    def __init__(self, settings: PostgresSettings, *, mark: str) -> None:
        self._server = Server(settings)
        self._mark = mark

    async def make_anew(self, schemas: Sequence[str]) -> None:
        """Drop every schema with the mark, and make these.

        Raises:
            ConflictError: one of them is there and somebody else's; nothing was changed.
            StoreUnavailableError: no server that may be trusted with it, not enough connections, or no leave.
        """
        connection = await self._connected(schemas)
        try:
            marks = await self._marks(connection)
            if others := [name for name in schemas if marks.get(name, self._mark) != self._mark]:
                raise ConflictError(
                    f"the database has a schema {others[0]} that this network did not make: use another database, "
                    f"or drop it if nobody needs it (DROP SCHEMA {quoted(others[0])} CASCADE)"
                )
            for name in sorted(name for name, mark in marks.items() if mark == self._mark):
                await connection.execute(f"DROP SCHEMA {quoted(name)} CASCADE")
            for name in schemas:
                async with connection.transaction():
                    await connection.execute(f"CREATE SCHEMA {quoted(name)}")
                    await connection.execute(f"COMMENT ON SCHEMA {quoted(name)} IS '{self._mark}'")
        except FAILURES as error:
            raise StoreUnavailableError(f"the schemas cannot be made: {reason(error)}") from error
        finally:
            connection.terminate()

    async def check_kept(self, schemas: Sequence[str]) -> None:
        """Refuse a database that is not the one of the last run.

        Raises:
            ConflictError: a schema is missing, or somebody else's.
            StoreUnavailableError: see `make_anew`.
        """
        connection = await self._connected(schemas)
        try:
            marks = await self._marks(connection)
        except FAILURES as error:
            raise StoreUnavailableError(f"the schemas cannot be read: {reason(error)}") from error
        finally:
            connection.terminate()
        if others := [name for name in schemas if marks.get(name) != self._mark]:
            raise ConflictError(
                f"the database has no schema {others[0]} of this network's last run: give it that database, or start "
                "without --resume"
            )

    async def _connected(self, schemas: Sequence[str]) -> Connection[Record]:
        connection = await self._server.connect()
        try:
            found = await connection.fetchrow(_ROOM)
            assert found is not None
            wanted = CONNECTIONS_EACH * len(schemas) + 1
            if found["room"] < wanted:
                raise StoreUnavailableError(
                    f"the database admits {found['room']} connections, and {len(schemas)} nodes need {wanted}: raise "
                    "max_connections in postgresql.conf and restart it"
                )
            if not found["may_make"]:
                raise StoreUnavailableError(
                    "this role may not make schemas in the database: GRANT CREATE ON DATABASE its name TO the role"
                )
        except BaseException:
            connection.terminate()
            raise
        return connection

    @staticmethod
    async def _marks(connection: Connection[Record]) -> dict[str, str | None]:
        return {row["name"]: row["mark"] for row in await connection.fetch(_MARKS)}
