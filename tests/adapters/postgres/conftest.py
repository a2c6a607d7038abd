"""A schema for each test, and a store, sealer or lease in it."""

import itertools
from contextlib import asynccontextmanager

import pytest

pytest.importorskip("asyncpg", reason="the extra `postgres` is not installed")

from trenza.adapters.postgres import PostgresSettings, PostgresStore, Server
from trenza.adapters.postgres.line import Line
from trenza.base.units import Seconds

_numbers = itertools.count()


class Memory:
    """One node's schema, opened as often as a test likes."""

    def __init__(self, dsn: str, schema: str) -> None:
        self.settings = PostgresSettings(dsn, schema)

    def server(self, *, deadline: float = 20.0) -> Server:
        return Server(self.settings, deadline=Seconds(deadline))

    async def store(self, **options) -> PostgresStore:
        return await PostgresStore.open(self.server(), **options)

    @asynccontextmanager
    async def visitor(self):
        """Lend a connection that is no store's."""
        line = Line(self.server())
        try:
            async with line.connection() as connection:
                yield connection
        finally:
            await line.close()


@pytest.fixture
def memory(postgres) -> Memory:
    return Memory(postgres.dsn(), f'node "{next(_numbers)}"')
