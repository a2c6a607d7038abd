"""One connection at a time, opened when needed, given up as soon as anything about it is in doubt.

A failed server is asked again after a pause that doubles up to two seconds; in between, callers are told at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from trenza.adapters.postgres.driver import FAILURES
from trenza.adapters.postgres.server import Server, reason
from trenza.base.errors import FencedError, StoreUnavailableError
from trenza.base.units import Seconds

if TYPE_CHECKING:
    from asyncpg import Connection, Record

_FIRST_PAUSE, _LONGEST_PAUSE = Seconds(0.05), Seconds(2.0)


class Line:
    """Lends its connection to one user after the other."""

    def __init__(self, server: Server, *, deadline: Seconds | None = None) -> None:
        """Prepare; nothing is connected yet.

        Args:
            server: to connect to.
            deadline: seconds that one user may take; the server's if None.
        """
        self._server = server
        self._deadline = deadline
        self._connection: Connection[Record] | None = None
        self._turn = asyncio.Lock()
        self._pause = Seconds(0)
        self._not_before = 0.0
        self._last_failure = ""

    @property
    def is_open(self) -> bool:
        return self._connection is not None and not self._connection.is_closed()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection[Record]]:
        """Lend the connection; all that is done with it, and the wait for it, has one deadline.

        Raises:
            StoreUnavailableError: no server, no answer in time, or the server refused.
        """
        try:
            async with asyncio.timeout(self._deadline or self._server.deadline), self._turn:
                try:
                    yield await self._ready()
                except BaseException:
                    self.drop()
                    raise
        except FAILURES as error:
            raise StoreUnavailableError(f"the database failed: {reason(error)}") from error

    def drop(self) -> None:
        """Cut the connection, whatever it is doing: the server rolls back what was not committed."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def close(self) -> None:
        """Finish what is under way, then say goodbye to the server."""
        async with self._turn:
            connection, self._connection = self._connection, None
            if connection is None or connection.is_closed():
                return
            try:
                await connection.close(timeout=self._server.deadline)
            except FAILURES:
                connection.terminate()

    async def _ready(self) -> Connection[Record]:
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        loop = asyncio.get_running_loop()
        if loop.time() < self._not_before:
            raise StoreUnavailableError(self._last_failure)
        try:
            self._connection = await self._server.connect()
        except FencedError:
            raise
        except StoreUnavailableError as error:
            self._pause = min(max(_FIRST_PAUSE, Seconds(2 * self._pause)), _LONGEST_PAUSE)
            self._not_before, self._last_failure = loop.time() + self._pause, error.message
            raise
        self._pause = Seconds(0)
        return self._connection
