import asyncio
import functools
import os
import stat
from pathlib import Path

import pytest
from tests.contract import sealer_contract

from trenza.adapters.keyring import KeyringSealer
from trenza.adapters.keyring.slots import FileSlots, MemorySlots
from trenza.adapters.sqlite import SqliteStore
from trenza.base.entropy import SystemEntropy
from trenza.base.errors import AuthenticationError, EntropyError, InvalidDocumentError, StoreUnavailableError
from trenza.base.secret import Secret
from trenza.kms.ports import Put, Sealed, Table

ENTROPY = SystemEntropy()
NODE_KEY = Secret(bytearray(range(32)))
SEGMENT = b"bits that only two nodes know" * 4


def opened(path: Path, node_key: Secret = NODE_KEY) -> KeyringSealer:
    return KeyringSealer.open(path, node_key=node_key, entropy=ENTROPY)


def in_memory(image: bytes = b"", node_key: Secret = NODE_KEY) -> KeyringSealer:
    return KeyringSealer.in_memory(node_key=node_key, entropy=ENTROPY, image=image)


def on_file(tmp_path):
    return functools.partial(opened, tmp_path / "keyring"), KeyringSealer.close


def on_images(_tmp_path):
    images = [b""]

    async def close(sealer: KeyringSealer) -> None:
        images.append(sealer.image())
        await sealer.close()

    return lambda: in_memory(images[-1]), close


@pytest.mark.parametrize("place", [on_file, on_images])
@pytest.mark.parametrize("clause", sealer_contract.CLAUSES, ids=sealer_contract.name)
def test_it_keeps_the_contract_of_a_sealer(clause, place, tmp_path) -> None:
    asyncio.run(clause(*place(tmp_path)))


def test_the_next_to_use_a_slot_does_not_open_its_former_box() -> None:
    async def story() -> None:
        sealer = in_memory()
        old = await sealer.seal(SEGMENT, associated=b"p")
        await sealer.erase([old.handle])
        new = old
        while new.handle & 0xFFFFF != old.handle & 0xFFFFF or new is old:  # until the slot comes round again
            new = await sealer.seal(SEGMENT, associated=b"p")
            if new.handle & 0xFFFFF != old.handle & 0xFFFFF:
                await sealer.erase([new.handle])
        assert new.handle != old.handle
        assert len(await sealer.unseal(new, associated=b"p")) == len(SEGMENT)
        for handle in (old.handle, new.handle):
            with pytest.raises(AuthenticationError):
                await sealer.unseal(Sealed(handle, old.box), associated=b"p")

    asyncio.run(story())


def test_a_copy_taken_after_an_erasure_does_not_open_the_box_even_with_the_node_key() -> None:
    async def story() -> None:
        sealer = in_memory()
        sealed = await sealer.seal(SEGMENT, associated=b"p")
        before = sealer.image()
        await sealer.erase([sealed.handle])
        stolen = in_memory(sealer.image())
        with pytest.raises(AuthenticationError):
            await stolen.unseal(sealed, associated=b"p")
        slot = slice(64, 128)
        assert before[slot] != sealer.image()[slot]
        assert before[slot][4:] not in sealer.image()

    asyncio.run(story())


def test_an_old_copy_of_the_keyring_opens_nothing_that_was_sealed_later() -> None:
    async def story() -> None:
        sealer = in_memory()
        first = await sealer.seal(SEGMENT, associated=b"p")
        old_copy = sealer.image()
        await sealer.erase([first.handle])
        later = [await sealer.seal(SEGMENT, associated=b"p") for _ in range(4_096)]  # the first slot is used again
        restored = in_memory(old_copy)
        for sealed in later:
            with pytest.raises(AuthenticationError):
                await restored.unseal(sealed, associated=b"p")
        again = await restored.seal(SEGMENT, associated=b"p")  # and what it seals anew, with handles known before,
        with pytest.raises(AuthenticationError):  # the newer keyring does not open
            await sealer.unseal(again, associated=b"p")

    asyncio.run(story())


def test_another_node_key_opens_nothing() -> None:
    async def story() -> None:
        sealer = in_memory()
        await sealer.seal(SEGMENT, associated=b"p")
        with pytest.raises(AuthenticationError, match="another node key"):
            in_memory(sealer.image(), Secret(bytearray(32)))

    asyncio.run(story())


def test_a_foreign_file_is_refused_and_left_alone(tmp_path) -> None:
    (tmp_path / "keyring").write_bytes(b"a letter" * 100)
    with pytest.raises(InvalidDocumentError):
        opened(tmp_path / "keyring")
    assert (tmp_path / "keyring").read_bytes() == b"a letter" * 100


def test_an_altered_slot_is_found() -> None:
    async def story() -> None:
        sealer = in_memory()
        sealed = await sealer.seal(SEGMENT, associated=b"p")
        image = bytearray(sealer.image())
        image[64 + 30] ^= 1
        with pytest.raises(AuthenticationError, match="altered"):
            await in_memory(bytes(image)).unseal(sealed, associated=b"p")

    asyncio.run(story())


def test_slots_that_no_row_names_are_erased_at_start(tmp_path) -> None:
    async def story() -> None:
        sealer = opened(tmp_path / "keyring")
        named, leaked = [await sealer.seal(SEGMENT, associated=b"p") for _ in range(2)]
        await sealer.close()
        sealer = opened(tmp_path / "keyring")
        assert await sealer.retain({named.handle}) == 1
        assert await sealer.retain({named.handle}) == 0
        assert len(await sealer.unseal(named, associated=b"p")) == len(SEGMENT)
        with pytest.raises(AuthenticationError):
            await sealer.unseal(leaked, associated=b"p")
        await sealer.close()

    asyncio.run(story())


class FailingSlots(MemorySlots):
    fails = False

    async def write(self, writes) -> None:
        if self.fails:
            raise StoreUnavailableError("the disk is full")
        await super().write(writes)


def test_an_erasure_that_failed_is_done_with_the_next() -> None:
    async def story() -> None:
        slots = FailingSlots()
        sealer = KeyringSealer(slots, node_key=NODE_KEY, entropy=ENTROPY)
        one, other = [await sealer.seal(SEGMENT, associated=b"p") for _ in range(2)]
        slots.fails = True
        with pytest.raises(StoreUnavailableError):
            await sealer.erase([one.handle])
        assert len(await in_memory(slots.content()).unseal(one, associated=b"p"))  # the disk has it still
        slots.fails = False
        await sealer.erase([one.handle])
        restarted = in_memory(slots.content())
        with pytest.raises(AuthenticationError):
            await restarted.unseal(one, associated=b"p")
        assert len(await restarted.unseal(other, associated=b"p"))

    asyncio.run(story())


def test_a_seal_that_failed_costs_no_slot_and_no_header() -> None:
    async def story() -> None:
        slots = FailingSlots()
        sealer = KeyringSealer(slots, node_key=NODE_KEY, entropy=ENTROPY)
        slots.fails = True
        for _ in range(3):
            with pytest.raises(StoreUnavailableError):
                await sealer.seal(SEGMENT, associated=b"p")
        slots.fails = False
        sealed = await sealer.seal(SEGMENT, associated=b"p")
        await sealer.erase([])
        restarted = in_memory(slots.content())
        assert len(await restarted.unseal(sealed, associated=b"p")) == len(SEGMENT)
        assert await restarted.retain({sealed.handle}) == 0
        assert len(sealer._free) == 4_095

    asyncio.run(story())


def test_an_unhealthy_generator_stops_sealing_but_never_erasing() -> None:
    class Sick(SystemEntropy):
        healthy = True

        def token(self, count: int) -> bytearray:
            if not self.healthy:
                raise EntropyError("the generator failed its health test")
            return super().token(count)

    async def story() -> None:
        entropy = Sick()
        sealer = KeyringSealer(MemorySlots(), node_key=NODE_KEY, entropy=entropy)
        sealed = await sealer.seal(SEGMENT, associated=b"p")
        entropy.healthy = False
        with pytest.raises(EntropyError):
            await sealer.seal(SEGMENT, associated=b"p")
        await sealer.erase([sealed.handle])
        with pytest.raises(AuthenticationError):
            await in_memory(sealer.image()).unseal(sealed, associated=b"p")

    asyncio.run(story())


def test_a_cancelled_seal_leaves_the_file_whole(tmp_path) -> None:
    async def story() -> None:
        sealer = opened(tmp_path / "keyring")
        tasks = [asyncio.create_task(sealer.seal(SEGMENT, associated=b"p")) for _ in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        sealed = [outcome for outcome in outcomes if isinstance(outcome, Sealed)]
        await sealer.erase([])
        await sealer.close()
        sealer = opened(tmp_path / "keyring")
        for one in sealed:
            assert len(await sealer.unseal(one, associated=b"p")) == len(SEGMENT)
        assert len(sealer._free) == 4_096 - len(sealed)
        await sealer.close()

    asyncio.run(story())


def test_seals_that_wait_share_one_sync(tmp_path, monkeypatch) -> None:
    syncs, before = 0, []
    sync = os.fdatasync

    def counted(descriptor: int) -> None:
        nonlocal syncs
        syncs += 1
        sync(descriptor)

    monkeypatch.setattr(os, "fdatasync", counted)

    async def story() -> None:
        sealer = opened(tmp_path / "keyring")
        await sealer.seal(SEGMENT, associated=b"p")
        before.append(syncs)
        await asyncio.gather(*(sealer.seal(SEGMENT, associated=b"p") for _ in range(100)))
        await sealer.close()

    asyncio.run(story())
    assert before == [2]  # the room, and the slot
    assert syncs - 2 == 2  # the first alone; the others gathered meanwhile


def test_the_keyring_is_its_owners_alone_and_held_by_one_process(tmp_path) -> None:
    async def story() -> None:
        sealer = opened(tmp_path / "keyring")
        assert stat.S_IMODE((tmp_path / "keyring").stat().st_mode) == 0o600
        with pytest.raises(StoreUnavailableError, match="in use"):
            FileSlots(tmp_path / "keyring")
        await sealer.close()
        await sealer.close()
        with pytest.raises(StoreUnavailableError):
            await sealer.seal(SEGMENT, associated=b"p")

    asyncio.run(story())


def test_a_stolen_data_directory_shows_no_secret_and_opens_nothing_without_the_node_key(tmp_path) -> None:
    async def story() -> None:
        store = SqliteStore.open(tmp_path)
        sealer = opened(tmp_path / "keyring")
        secret = os.urandom(512)  # small enough to stand in one page
        sealed = await sealer.seal(secret, associated=b"p")
        await store.commit([Put(Table.SEGMENT_BYTES, b"1", sealed.handle.to_bytes(8) + sealed.box)])
        stolen = b"".join(path.read_bytes() for path in tmp_path.iterdir())  # with the log, while all is running
        assert sealed.box in stolen
        assert not any(secret[first : first + 16] in stolen for first in range(0, 512, 16))
        assert bytes(NODE_KEY.view()) not in stolen
        await sealer.close()
        with pytest.raises(AuthenticationError):  # the keyring without its node key
            opened(tmp_path / "keyring", Secret(bytearray(32)))
        with pytest.raises(AuthenticationError):  # the store and the node key without the keyring
            await in_memory().unseal(sealed, associated=b"p")
        await store.close()

    asyncio.run(story())
