"""The store of a running node: one file, a writer thread that commits in groups, a thread that reads.

The event loop never waits for the disk. One event loop at a time uses a store.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import apsw

from trenza.adapters.sqlite import schema
from trenza.adapters.sqlite.directory import DataDirectory
from trenza.adapters.sqlite.engine import Engine
from trenza.adapters.sqlite.reading import Reading
from trenza.adapters.sqlite.writer import Writer
from trenza.base.errors import StoreUnavailableError
from trenza.kms.ports import ChainHead, Change, LedgerEntry, LedgerExtent, LedgerQuery, Table

_Answer = TypeVar("_Answer")


class SqliteStore:
    """Implements kms.ports.Store. Open it with `open`; whoever opened it closes it."""

    def __init__(self, directory: DataDirectory, writer: Writer, reading: Reading) -> None:
        self._directory = directory
        self._writer = writer
        self._reading = reading
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trenza-read")
        self._closed = False

    @classmethod
    def open(
        cls, directory: Path, *, on_group: Callable[[int], None] | None = None, vfs: str | None = None
    ) -> SqliteStore:
        """Open the store in `directory`, making both if absent.

        Args:
            directory: becomes mode 0700 and is locked against a second process.
            on_group: told the counter, in the writer's thread, after each group is durable and before any of its
                answers is released: so an Anchor is never behind what was acknowledged.
            vfs: name of the SQLite file layer to use; None is the system's.

        Raises:
            StoreUnavailableError: another process has it open, or the disk fails.
            InvalidDocumentError: the file there is not a store, or is a newer Trenza's.
        """
        held = DataDirectory(directory)
        try:
            path = str(held.store_file())
            engine = _opened(path, vfs)
            try:
                reading = Reading(schema.connect(path, vfs=vfs))
            except BaseException:
                engine.close()
                raise
        except (OSError, apsw.Error) as error:
            held.release()
            raise StoreUnavailableError(f"the store in {directory} cannot be opened: {error}") from error
        except BaseException:
            held.release()
            raise
        return cls(held, Writer(engine, reopen=lambda: _opened(path, vfs), on_group=on_group), reading)

    async def commit(self, changes: Sequence[Change]) -> None:
        if self._closed:
            raise StoreUnavailableError("the store is closed")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writer.submit(future, changes)
        await future

    async def get(self, table: Table, key: bytes) -> bytes | None:
        return await self._read(self._reading.get, table, key)

    async def scan(self, table: Table, prefix: bytes = b"") -> list[tuple[bytes, bytes]]:
        return await self._read(self._reading.scan, table, prefix)

    async def entries(self, query: LedgerQuery) -> list[LedgerEntry]:
        return await self._read(self._reading.entries, query)

    async def head(self) -> ChainHead:
        return self._writer.engine.extent.head

    async def extent(self) -> LedgerExtent:
        return self._writer.engine.extent

    def counter(self) -> int:
        return self._writer.engine.counter

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._writer.hand_over()
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._reader, self._reading.close)
            await loop.run_in_executor(None, self._writer.stop)
        finally:
            self._reader.shutdown(wait=False)
            self._directory.release()

    async def _read(self, question: Callable[..., _Answer], *asked: object) -> _Answer:
        if self._closed:
            raise StoreUnavailableError("the store is closed")
        return await asyncio.get_running_loop().run_in_executor(self._reader, question, *asked)


def _opened(path: str, vfs: str | None) -> Engine:
    connection = schema.connect(path, vfs=vfs)
    try:
        schema.prepare(connection)
        return Engine(connection)
    except BaseException:
        with contextlib.suppress(apsw.Error):
            connection.close()
        raise
