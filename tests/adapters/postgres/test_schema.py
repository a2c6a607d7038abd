"""A schema of an earlier release becomes one of this, with all it holds."""

import asyncio

from tests.contract.store_contract import entry, weight

from trenza.adapters.postgres import schema
from trenza.adapters.postgres.server import quoted
from trenza.kms.ports import ChainHead, LedgerExtent, LedgerQuery, Prune


def test_the_size_of_a_ledger_is_added_up_when_a_schema_of_format_1_is_opened(memory) -> None:
    async def story() -> None:
        store = await memory.store()
        await store.commit([entry(n, terms=("é", f"key:{n}")) for n in range(1, 6)])
        ledger = await store.entries(LedgerQuery())
        await store.close()
        async with memory.visitor() as connection:  # as format 1 was
            await connection.execute(f"SET search_path TO {quoted(memory.settings.schema)}")
            for column in ("start_sequence", "start_hash", "ledger_bytes"):
                await connection.execute(f"ALTER TABLE store_state DROP COLUMN {column}")
            await connection.execute("UPDATE store_format SET version = 1")
        again = await memory.store()
        assert await again.extent() == LedgerExtent(ChainHead(), ChainHead(5, ledger[-1].hash), weight(ledger))
        await again.commit([Prune(2, ledger[1].hash)])
        assert (await again.extent()).bytes == weight(ledger[2:])
        async with memory.visitor() as connection:
            await connection.execute(f"SET search_path TO {quoted(memory.settings.schema)}")
            assert await connection.fetchval("SELECT version FROM store_format") == len(schema.MIGRATIONS)
            assert await connection.fetchval("SELECT count(*) FROM ledger_term") == 6
        await again.close()

    asyncio.run(story())
