import asyncio

import pytest
from tests.contract import sealer_contract

from trenza.adapters.keyring.node_key import HeldNodeKey
from trenza.adapters.postgres import PostgresSealer
from trenza.base.entropy import SystemEntropy
from trenza.base.errors import AuthenticationError, FencedError, StoreUnavailableError
from trenza.base.secret import Secret
from trenza.base.units import Seconds
from trenza.kms.ports import Sealed

ENTROPY = SystemEntropy()
SEGMENT = b"bits that only two nodes know" * 4


NODE_KEY = bytes(range(32))


class SlowNodeKey(HeldNodeKey):
    """A key that is asked off the loop, as a token's is."""

    is_at_hand = False


def node_key(key: bytes = NODE_KEY, *, kind: type[HeldNodeKey] = HeldNodeKey) -> HeldNodeKey:
    return kind(Secret.of(key))


async def opened(memory, *, kind: type[HeldNodeKey] = HeldNodeKey) -> PostgresSealer:
    return await PostgresSealer.open(await memory.store(), node_key=node_key(kind=kind), entropy=ENTROPY)


async def closed(sealer: PostgresSealer) -> None:
    await sealer.close()
    await sealer._store.close()


@pytest.mark.parametrize("clause", sealer_contract.CLAUSES, ids=sealer_contract.name)
def test_it_keeps_the_contract_of_a_sealer(clause, memory) -> None:
    asyncio.run(clause(lambda: opened(memory), closed))


def test_a_node_key_in_a_token_is_asked_off_the_loop(memory) -> None:
    async def story() -> None:
        sealer = await opened(memory, kind=SlowNodeKey)
        sealed = await sealer.seal(SEGMENT, associated=b"p")
        assert await sealer.unseal(sealed, associated=b"p") == Secret.of(SEGMENT)
        await closed(sealer)
        with pytest.raises(StoreUnavailableError, match="closed"):
            await sealer.seal(SEGMENT, associated=b"p")

    asyncio.run(story())


def test_what_one_instance_sealed_another_opens_and_erases(memory) -> None:
    async def story() -> None:
        one, other = [await opened(memory) for _ in range(2)]
        sealed = await one.seal(SEGMENT, associated=b"p")
        assert await other.unseal(sealed, associated=b"p") == Secret.of(SEGMENT)
        await other.erase([sealed.handle])
        with pytest.raises(AuthenticationError):
            await one.unseal(sealed, associated=b"p")
        await closed(one)
        await closed(other)

    asyncio.run(story())


def test_another_node_key_is_refused(memory) -> None:
    async def story() -> None:
        await closed(await opened(memory))
        store = await memory.store()
        with pytest.raises(AuthenticationError, match="another node key"):
            await PostgresSealer.open(store, node_key=node_key(bytes(32)), entropy=ENTROPY)
        await store.close()

    asyncio.run(story())


def test_instances_that_start_together_share_one_keyring(memory) -> None:
    async def story() -> None:
        sealers = await asyncio.gather(*(opened(memory) for _ in range(4)))
        sealed = await sealers[0].seal(SEGMENT, associated=b"")
        for sealer in sealers:
            assert await sealer.unseal(sealed, associated=b"") == Secret.of(SEGMENT)
            await closed(sealer)

    asyncio.run(story())


def test_the_database_never_sees_the_node_key_nor_a_segments_key_nor_its_bytes(memory) -> None:
    class Noted(SystemEntropy):
        def __init__(self) -> None:
            self.given: list[bytes] = []

        def token(self, count: int) -> bytearray:
            token = super().token(count)
            self.given.append(bytes(token))
            return token

    async def story() -> None:
        noted, store = Noted(), await memory.store()
        sealer = await PostgresSealer.open(store, node_key=node_key(), entropy=noted)
        await sealer.seal(SEGMENT, associated=b"p")
        (segment_key,) = [token for token in noted.given if len(token) == 32]
        async with store.reading._line.connection() as connection:
            kept = [row["value"] for row in await connection.fetch("SELECT value FROM segment_key")]
            kept += [row["identity"] + row["tag"] for row in await connection.fetch("SELECT * FROM keyring")]
        assert len(kept) == 2
        for secret in (segment_key, NODE_KEY, SEGMENT):
            assert secret not in b"".join(kept)
        await store.close()

    asyncio.run(story())


def test_a_key_that_was_altered_or_moved_in_the_database_opens_nothing(memory) -> None:
    async def story() -> None:
        sealer = await opened(memory)
        one, other = [await sealer.seal(SEGMENT, associated=b"p") for _ in range(2)]
        async with sealer._store.reading._line.connection() as connection:
            await connection.execute(
                "UPDATE segment_key SET value = (SELECT value FROM segment_key WHERE key = $1) WHERE key = $2",
                one.handle.to_bytes(8, "big"),
                other.handle.to_bytes(8, "big"),
            )
            with pytest.raises(AuthenticationError, match="altered"):
                await asyncio.create_task(_unseal_elsewhere(memory, other))
            await connection.execute("UPDATE segment_key SET value = ''")
        with pytest.raises(AuthenticationError, match="altered"):
            await sealer.unseal(one, associated=b"p")
        await closed(sealer)

    async def _unseal_elsewhere(memory, sealed: Sealed) -> None:
        sealer = await opened(memory)
        try:
            await sealer.unseal(sealed, associated=b"p")
        finally:
            await closed(sealer)

    asyncio.run(story())


def test_retain_erases_what_no_row_names_but_spares_what_is_young(memory) -> None:
    async def story() -> None:
        sealer = await opened(memory)
        named, leaked = [await sealer.seal(SEGMENT, associated=b"p") for _ in range(2)]
        assert await sealer.retain({named.handle}) == 0  # another instance may be about to name it
        assert await sealer.retain({named.handle}, spared=Seconds(0)) == 1
        assert await sealer.unseal(named, associated=b"p") == Secret.of(SEGMENT)
        with pytest.raises(AuthenticationError, match="erased"):
            await sealer.unseal(leaked, associated=b"p")
        await closed(sealer)

    asyncio.run(story())


def test_sealing_under_a_lead_that_has_passed_leaves_no_key(memory) -> None:
    async def story() -> None:
        sealer = await opened(memory)
        async with sealer._store.reading._line.connection() as connection:
            await connection.execute("UPDATE lead SET token = 7")
        with pytest.raises(FencedError):
            await sealer.seal(SEGMENT, associated=b"p")
        assert await sealer._store.reading.segment_keys(older_than=Seconds(0)) == []
        await closed(sealer)

    asyncio.run(story())


def test_sealing_at_once_shares_transactions(memory) -> None:
    async def story() -> None:
        sealer = await opened(memory)
        before = sealer._store.counter()
        await asyncio.gather(*(sealer.seal(SEGMENT, associated=b"p") for _ in range(64)))
        assert sealer._store.counter() - before <= 2
        await closed(sealer)

    asyncio.run(story())
