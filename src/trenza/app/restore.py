"""Starting a node anew from a backup: all of it is checked first, then it is put into an empty data directory.

The node then begins a new epoch without strands, as after every start whose memory is not whole
(docs/adr/0005-windows-and-lives.md); what it cannot know any more are the ledger entries since the backup.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from trenza.adapters.keyring import KEYRING_NAME, KeyringSealer
from trenza.adapters.sqlite import LOCK_NAME, STORE_NAME, DataDirectory, InlineStore, ledger_of
from trenza.adapters.sqlite import connect as connect_store
from trenza.app.backup import (
    CHUNK,
    FILES,
    FORMAT,
    MANIFEST,
    FileDigest,
    Manifest,
    Progress,
    disk_told,
    refuse_database,
    sync_directory,
)
from trenza.app.config import NodeConfig
from trenza.app.node_key import open_node_key
from trenza.base.clock import Clock
from trenza.base.entropy import Entropy
from trenza.base.errors import AuthenticationError, InvalidDocumentError, InvalidRequestError, UnavailableError
from trenza.base.names import NodeId
from trenza.core.chain import verify_chain
from trenza.kms import rows
from trenza.kms.ports import Append, DeletePrefix, LedgerEntry, Table

RESTORED: Final = "restored"
"""The kind of the ledger entry with which a restored ledger goes on: its body is the backup's manifest."""

_UNFINISHED: Final = ".restoring"
_NOT_OURS: Final = (LOCK_NAME, "lost+found")
_TELL_EVERY: Final = 5_000  # entries


def restore(
    config: NodeConfig, *, source: Path, with_id_keys: bool, clock: Clock, entropy: Entropy, progress: Progress
) -> Manifest:
    """Put a backup's content into a node's empty data directory, when all of it was checked.

    Args:
        config: of the node to restore.
        source: the backup.
        with_id_keys: whether keys of the past are to be explained; it needs the node key of then.
        clock: for the ledger entry that says what happened.
        entropy: for a keyring, where the backup's is not taken.
        progress: told how far it is.

    Raises:
        InvalidRequestError: the data directory holds something, or the node's memory is in a database.
        InvalidDocumentError: it is no backup, of another node, of a newer release, or damaged.
        AuthenticationError: its ledger does not fit together, or the node key is another one.
        StoreUnavailableError: a node runs in the directory, or the disk fails.
    """
    refuse_database(config)
    manifest = _manifest_of(source, config.name)
    with disk_told(f"{source} cannot be restored into {config.data_directory}"):
        directory = DataDirectory(config.data_directory)
        try:
            _refuse_content(config.data_directory)
            draft = config.data_directory / _UNFINISHED
            draft.mkdir(mode=0o700)
            try:
                for name in FILES:
                    _copied(source / name, draft / name, manifest.files[name], progress)
                asyncio.run(_checked(config, draft, manifest, clock, progress))
                asyncio.run(_keyed(config, draft, entropy, with_id_keys=with_id_keys))
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)
                raise
            for name in reversed(FILES):  # the store last: it is what a node finds itself by
                (draft / name).rename(config.data_directory / name)
            shutil.rmtree(draft)
            sync_directory(config.data_directory)
        finally:
            directory.release()
    return manifest


def _manifest_of(source: Path, node: NodeId) -> Manifest:
    what = f"the backup {source}"
    try:
        manifest = msgspec.json.decode((source / MANIFEST).read_bytes(), type=Manifest)
    except OSError as error:
        why = f"no {MANIFEST} can be read ({error.strerror}): name a directory that `trenza node backup` made"
        raise InvalidDocumentError(what, (why,)) from None
    except msgspec.DecodeError as error:
        raise InvalidDocumentError(what, (f"{MANIFEST}: {error}",)) from None
    mistakes = []
    if manifest.format != FORMAT:
        mistakes.append(f"it has format {manifest.format}; this release reads {FORMAT}: use the one that wrote it")
    if manifest.node != node:
        mistakes.append(f"it is of node {manifest.node}, not of {node}: take a backup of {node}")
    mistakes += [f"{name}: the manifest does not name it" for name in FILES if name not in manifest.files]
    if mistakes:
        raise InvalidDocumentError(what, tuple(mistakes))
    return manifest


def _refuse_content(directory: Path) -> None:
    """Refuse a directory that holds anything but an earlier attempt that was cut short."""
    if (directory / _UNFINISHED).exists() and not (directory / STORE_NAME).exists():
        shutil.rmtree(directory / _UNFINISHED)
        (directory / KEYRING_NAME).unlink(missing_ok=True)
    there = sorted(path.name for path in directory.iterdir() if path.name not in _NOT_OURS)
    if there:
        raise InvalidRequestError(
            f"the data directory {directory} is not empty ({', '.join(there)}): a backup is restored into an empty "
            "one; move what is there away, and destroy its keyring when it is not needed any more"
        )


async def _checked(config: NodeConfig, draft: Path, manifest: Manifest, clock: Clock, progress: Progress) -> None:
    """Bring the store to this release's format, see that its ledger is the manifest's, and note the restore in it."""
    connection = connect_store(str(draft / STORE_NAME))
    store = InlineStore(connection)
    try:
        start, entries = ledger_of(connection)
        whole = manifest.ledger_end - start.sequence

        def told() -> Iterator[LedgerEntry]:
            for entry in entries:
                if entry.sequence % _TELL_EVERY == 0:
                    progress("ledger entries checked", entry.sequence - start.sequence, whole)
                yield entry

        sequence, digest = verify_chain(told(), start)
        if (sequence, digest.hex()) != (manifest.ledger_end, manifest.ledger_hash):
            raise AuthenticationError(f"the backup's ledger ends at entry {sequence}, not as its manifest says")
        me = await store.get(Table.META, rows.SELF)
        if me is None or rows.decode(me, rows.SelfRow).whole:
            raise InvalidDocumentError("the backup", (f"{config.name} is not told there that it is restored",))
        await store.commit([Append(clock.now(), RESTORED, msgspec.json.encode(manifest))])
    finally:
        await store.close()


async def _keyed(config: NodeConfig, draft: Path, entropy: Entropy, *, with_id_keys: bool) -> None:
    if not with_id_keys:
        (draft / KEYRING_NAME).unlink()
        (draft / KEYRING_NAME).touch(mode=0o600)  # the node's first start makes it, under the node key of then
        store = InlineStore(connect_store(str(draft / STORE_NAME)))
        try:
            await store.commit([DeletePrefix(Table.SESSION, b"keys")])
        finally:
            await store.close()
        return
    hint = "put the node key of that time in its place, or restore --without-id-keys: old keys are not explained then"
    try:
        with contextlib.closing(open_node_key(config, None)) as node_key:
            sealer = KeyringSealer.open(draft / KEYRING_NAME, node_key=node_key, entropy=entropy)
            await sealer.close()
    except (AuthenticationError, UnavailableError) as error:
        raise type(error)(f"{error.message}: {hint}") from None


def _copied(source: Path, target: Path, expected: FileDigest, progress: Progress) -> None:
    digest, size = hashlib.sha384(), 0
    with source.open("rb") as reading, target.open("xb") as writing:
        os.fchmod(writing.fileno(), 0o600)
        while chunk := reading.read(CHUNK):
            writing.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            progress(f"bytes of {source.name} copied", size, expected.bytes)
        writing.flush()
        os.fsync(writing.fileno())
    if (size, digest.hexdigest()) != (expected.bytes, expected.sha384):
        why = f"{source.name} is not what it was when the backup was made: take another copy, or another backup"
        raise InvalidDocumentError(f"the backup {source.parent}", (why,))
