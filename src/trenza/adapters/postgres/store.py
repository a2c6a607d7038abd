"""The store that several instances of one node share.

A commit whose answer was lost (the connection broke, or the deadline passed, after COMMIT was sent) may or may not
have been written, and is told as StoreUnavailableError like any other failure: the caller may assume neither. What it
was to mark as used is used up in either case; an Insert or Expect may be repeated, and a ConflictError then says that
it, or somebody else, was first.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence

from trenza.adapters.postgres import schema
from trenza.adapters.postgres.group import Commit, Work, check
from trenza.adapters.postgres.line import Line
from trenza.adapters.postgres.reading import Reading, Standing
from trenza.adapters.postgres.server import Server
from trenza.adapters.postgres.transaction import Applied
from trenza.adapters.postgres.writer import Writer
from trenza.base.errors import FencedError, StoreUnavailableError
from trenza.base.units import Seconds
from trenza.kms.ports import ChainHead, Change, LedgerEntry, LedgerExtent, LedgerQuery, Table


class PostgresStore:
    """Implements kms.ports.Store. Open it with `open`; whoever opened it closes it."""

    def __init__(
        self,
        server: Server,
        reading: Reading,
        *,
        token: int,
        on_group: Callable[[int], None] | None,
    ) -> None:
        self.server = server
        self.reading = reading
        self._writer = Writer(server, on_applied=self._applied)
        self._token = token
        self._fenced = (-1, "")  # the last token that was refused, and why
        self._on_group = on_group
        self._closed = False

    @classmethod
    async def open(
        cls, server: Server, *, token: int = 0, on_group: Callable[[int], None] | None = None
    ) -> PostgresStore:
        """Open the node's schema, making it and its tables if absent.

        Args:
            server: where it is; instances, leases and sealers of this process use the same one.
            token: of the lead under which this store's commits stand; 0 while the node never had a lead.
            on_group: told the counter after each group is durable and before any of its answers is released: so an
                Anchor is never behind what was acknowledged.

        Raises:
            StoreUnavailableError: no answer, or a server that would not keep what it acknowledges; says what to do.
            InvalidDocumentError: the schema is another program's, or a newer Trenza's.
        """
        line = Line(server)
        reading = Reading(line)
        try:
            async with line.connection() as connection:
                await schema.prepare(connection, server.settings.schema)
            server.witness((await reading.standing()).counter, at_least=server.counter)
        except BaseException:
            await reading.close()
            raise
        return cls(server, reading, token=token, on_group=on_group)

    @property
    def token(self) -> int:
        """The token of the lead under which commits stand."""
        return self._token

    def under(self, token: int) -> None:
        """Let the commits called from now on stand under another lead; those that wait keep theirs."""
        self._token = token

    async def commit(self, changes: Sequence[Change]) -> None:
        await self.write(changes)

    async def write(self, changes: Sequence[Work]) -> None:
        """Commit, also what only the sealer of this package writes.

        Raises:
            FencedError: the lead is another's now; nothing was written.
            ConflictError: a row was not as demanded; nothing was written.
            StoreUnavailableError: it may or may not have been written.
        """
        check(changes)
        token = self._token
        refused, why = self._fenced
        if token <= refused:  # tokens only grow: what was refused once is refused for ever
            raise FencedError(why)
        try:
            await self._writer.commit(Commit(changes, token))
        except FencedError as error:
            self._fenced = max(self._fenced, (token, error.message))
            raise

    async def get(self, table: Table, key: bytes) -> bytes | None:
        self._check_open()
        return await self.reading.get(table, key)

    async def scan(self, table: Table, prefix: bytes = b"") -> list[tuple[bytes, bytes]]:
        self._check_open()
        return await self.reading.scan(table, prefix)

    async def entries(self, query: LedgerQuery) -> list[LedgerEntry]:
        self._check_open()
        return await self.reading.entries(query)

    async def head(self) -> ChainHead:
        return (await self.look()).head

    async def extent(self) -> LedgerExtent:
        return (await self.look()).extent

    async def look(self) -> Standing:
        """Return where the shared memory stands; an unchanged counter means that no row has changed."""
        self._check_open()
        seen = self.server.counter
        standing = await self.reading.standing()
        self.server.witness(standing.counter, at_least=seen)
        return standing

    async def place(self) -> bytes:
        """Return what names the place where the node lives while it leads, until the server is started anew.

        At most one life at a time is here: whoever leads knows that the former lead's lease or process has ended. A
        copy of the database, a promoted standby and another node's schema are other places.
        """
        self._check_open()
        started, identity = await self.reading.server_start(), self.server.identity.encode()
        schema = self.server.settings.schema.encode()
        return hashlib.sha256(b"trenza place postgres v1" + identity + struct.pack(">q", started) + schema).digest()[
            :16
        ]

    async def moment(self) -> Seconds:
        self._check_open()
        return await self.reading.moment()

    def counter(self) -> int:
        return self.server.counter

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._writer.close()
        await self.reading.close()

    def _applied(self, applied: Applied) -> None:
        self.server.counter = max(self.server.counter, applied.counter)
        if self._on_group is not None:
            self._on_group(self.server.counter)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailableError("the store is closed")
