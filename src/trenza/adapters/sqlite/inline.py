"""The same store without threads: a commit is durable, in the caller's turn, before `commit` returns.

For the lab, where one seed must decide everything, and for tools that read a store. In memory unless a connection is
given; `image` is the disk's content, from which `from_image` starts again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import apsw

from trenza.adapters.sqlite import schema
from trenza.adapters.sqlite.engine import Engine
from trenza.adapters.sqlite.reading import Reading
from trenza.base.errors import StoreUnavailableError
from trenza.kms.ports import ChainHead, Change, LedgerEntry, LedgerExtent, LedgerQuery, Table


class InlineStore:
    """Implements kms.ports.Store; a crash is dropping the object and starting from the last image."""

    def __init__(
        self, connection: apsw.Connection | None = None, *, on_group: Callable[[int], None] | None = None
    ) -> None:
        """Open an empty store in memory, or the one behind `connection`, which becomes the store's own.

        Args:
            connection: of an empty file, or of one that holds a store.
            on_group: told the counter after each commit, before its answer leaves.

        Raises:
            InvalidDocumentError: the file there is not a store, or is a newer Trenza's.
        """
        self._connection = connection or schema.connect(":memory:")
        schema.prepare(self._connection)
        self._engine = Engine(self._connection)
        self._reading = Reading(self._connection)
        self._closed = False
        self._on_group = on_group

    @classmethod
    def from_image(cls, image: bytes, *, on_group: Callable[[int], None] | None = None) -> InlineStore:
        """Open a store in memory with the content that `image` returned."""
        connection = schema.connect(":memory:")
        connection.deserialize("main", image)
        return cls(connection, on_group=on_group)

    def image(self) -> bytes:
        """Return the whole content; between commits all of it is durable."""
        return self._connection.serialize("main")

    async def commit(self, changes: Sequence[Change]) -> None:
        self._check_open()
        (outcome,) = self._engine.apply([changes])
        if outcome is not None:
            raise outcome
        if self._on_group is not None:
            self._on_group(self._engine.counter)

    async def get(self, table: Table, key: bytes) -> bytes | None:
        self._check_open()
        return self._reading.get(table, key)

    async def scan(self, table: Table, prefix: bytes = b"") -> list[tuple[bytes, bytes]]:
        self._check_open()
        return self._reading.scan(table, prefix)

    async def entries(self, query: LedgerQuery) -> list[LedgerEntry]:
        self._check_open()
        return self._reading.entries(query)

    async def head(self) -> ChainHead:
        return self._engine.extent.head

    async def extent(self) -> LedgerExtent:
        return self._engine.extent

    def counter(self) -> int:
        return self._engine.counter

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._engine.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailableError("the store is closed")
