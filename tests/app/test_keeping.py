"""What a node's memory rests on at start: an anchor that is told of every group, and a keyring without leaks."""

import asyncio
import shutil

import pytest

from trenza.adapters.anchor import PERSISTENT, FileAnchor
from trenza.adapters.keyring import KeyringSealer
from trenza.adapters.sqlite import LOCK_NAME, SqliteStore
from trenza.app.keeping import GroupAnchor, handles_in_use, place_of
from trenza.base.entropy import SystemEntropy
from trenza.base.errors import AuthenticationError
from trenza.base.secret import Secret
from trenza.kms import rows
from trenza.kms.pads import BlockRow
from trenza.kms.ports import Put, Table

STORE = b"0123456789abcdef"


@pytest.fixture
def file(tmp_path):
    opened = []

    def reopened():
        opened.append(FileAnchor(tmp_path / "anchor", boot_id=PERSISTENT))
        return opened[-1]

    yield reopened
    for anchor in opened:
        anchor.close()


def test_every_group_is_remembered_once_the_store_has_a_name(file):
    anchor = GroupAnchor(file())
    anchor.committed(1)
    assert anchor.recall() is None
    anchor.remember(STORE, 2)
    anchor.committed(3)
    assert file().recall() == (STORE, 3)


def test_a_late_word_of_the_loop_does_not_turn_the_counter_back(file):
    anchor = GroupAnchor(file())
    anchor.remember(STORE, 2)
    anchor.committed(5)
    anchor.remember(STORE, 4)
    assert anchor.recall() == (STORE, 5)


def test_a_restored_store_is_remembered_as_it_is_now(file):
    GroupAnchor(file()).remember(STORE, 9)
    restored = GroupAnchor(file())
    restored.remember(STORE, 4)
    assert restored.recall() == (STORE, 4)


def test_the_anchor_knows_a_group_before_its_commit_returns(tmp_path, file):
    async def story():
        anchor = GroupAnchor(file())
        anchor.remember(STORE, 0)
        store = SqliteStore.open(tmp_path / "data", on_group=anchor.committed)
        try:
            for _ in range(3):
                await store.commit([Put(Table.META, b"row", b"")])
                assert anchor.recall() == (STORE, store.counter())
        finally:
            await store.close()

    asyncio.run(story())


def test_every_sealed_box_that_a_row_names_is_kept_and_every_other_erased(tmp_path):
    async def story():
        store = SqliteStore.open(tmp_path / "data")
        sealer = KeyringSealer.open(
            tmp_path / "data" / "keyring", node_key=Secret.of(bytes(32)), entropy=SystemEntropy()
        )
        try:
            sealed = [await sealer.seal(b"bits", associated=b"") for _ in range(7)]
            boxes = [rows.SealedRow.of(one) for one in sealed]
            block = BlockRow("l", "a", False, 1, "live", 0, None, 1, (), 0, boxes[0].handle, boxes[0].box)
            wrapped = rows.WrappedRow("i", "t", 256, boxes[5], b"", 0, ready=True)
            await store.commit(
                [
                    Put(Table.LINK_BLOCK, b"block", rows.encode(block)),
                    Put(Table.SESSION, b"root\x01b", rows.encode(rows.RootRow(1, boxes[1], boxes[2]))),
                    Put(Table.SESSION, b"keys\x01bsession", rows.encode(rows.IdKeysRow(0, boxes[3]))),
                    Put(Table.SEGMENT, b"segment", b""),
                    Put(Table.SEGMENT_BYTES, b"segment", rows.encode(boxes[4])),
                    Put(Table.WRAPPED, b"wrapped", rows.encode(wrapped)),
                ]
            )
            assert await sealer.retain(await handles_in_use(store)) == 1
            for kept in sealed[:6]:
                (await sealer.unseal(kept, associated=b"")).wipe()
            with pytest.raises(AuthenticationError):
                await sealer.unseal(sealed[6], associated=b"")
        finally:
            await sealer.close()
            await store.close()

    asyncio.run(story())


def test_a_data_directory_is_one_place_and_a_copy_of_it_is_another(tmp_path):
    directory, copy = tmp_path / "data", tmp_path / "copy"
    directory.mkdir()
    (directory / LOCK_NAME).touch()
    there = place_of(directory, directory / LOCK_NAME)
    assert len(there) == 16
    shutil.copytree(directory, copy)
    assert place_of(copy, copy / LOCK_NAME) != there
    directory.rename(tmp_path / "moved")
    assert place_of(tmp_path / "moved", tmp_path / "moved" / LOCK_NAME) == there


def test_where_nothing_can_be_told_there_is_no_place(tmp_path):
    assert place_of(tmp_path, tmp_path / LOCK_NAME) == b""
