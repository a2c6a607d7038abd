"""The keyring on a real disk without room: slots that are there serve on, new ones wait for room."""

import asyncio

import pytest
from tests.small_disk import small_disk

from trenza.adapters.keyring import KeyringSealer
from trenza.base.entropy import SystemEntropy
from trenza.base.errors import AuthenticationError, StoreUnavailableError
from trenza.base.secret import Secret

NODE_KEY = Secret(bytearray(range(32)))
SEGMENT = b"bits that only two nodes know" * 4
SLOTS_AT_ONCE = 4_096


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", kilobytes=1_024) as made:
        yield made


def opened(disk) -> KeyringSealer:
    return KeyringSealer.open(disk.path / "keyring", node_key=NODE_KEY, entropy=SystemEntropy())


def test_a_keyring_has_its_room_before_it_needs_it(disk) -> None:
    async def story() -> None:
        sealer = opened(disk)
        first = await sealer.seal(SEGMENT, associated=b"p")
        disk.fill()
        others = await asyncio.gather(*(sealer.seal(SEGMENT, associated=b"p") for _ in range(SLOTS_AT_ONCE - 1)))
        with pytest.raises(StoreUnavailableError):  # only more than ever before needs more room
            await sealer.seal(SEGMENT, associated=b"p")
        await sealer.erase([first.handle])  # erasing needs none
        again = await sealer.seal(SEGMENT, associated=b"p")
        for _ in range(2):
            with pytest.raises(StoreUnavailableError):
                await sealer.seal(SEGMENT, associated=b"p")
        disk.free()
        last = await sealer.seal(SEGMENT, associated=b"p")
        await sealer.close()
        sealer = opened(disk)
        for sealed in (again, last, *others[:20]):
            assert len(await sealer.unseal(sealed, associated=b"p")) == len(SEGMENT)
        with pytest.raises(AuthenticationError):
            await sealer.unseal(first, associated=b"p")
        await sealer.close()

    asyncio.run(story())


def test_a_keyring_that_found_no_room_at_all_begins_when_there_is_some(disk) -> None:
    async def story() -> None:
        sealer = opened(disk)
        disk.fill()
        for _ in range(3):
            with pytest.raises(StoreUnavailableError):
                await sealer.seal(SEGMENT, associated=b"p")
        await sealer.close()
        sealer = opened(disk)
        with pytest.raises(StoreUnavailableError):
            await sealer.seal(SEGMENT, associated=b"p")
        disk.free()
        sealed = await sealer.seal(SEGMENT, associated=b"p")
        await sealer.close()
        sealer = opened(disk)
        assert len(await sealer.unseal(sealed, associated=b"p")) == len(SEGMENT)
        await sealer.close()

    asyncio.run(story())
