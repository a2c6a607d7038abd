"""A backup of a node: what it remembers, and no key and no strand (docs/adr/0017-backups.md).

In a backup are the ledger, the node's and its peers' lives, the policy books, the signed checkpoints, and the keys
that seal key IDs, so that keys of the past can be explained: these under the node key, in a keyring that holds
nothing else. Roots, strands, link key, waiting keys and segment keys are left out, so that no backup opens a key and
none can be issued twice. A node restored from one begins a new epoch without strands, which its peers fill again.

A backup is a directory: `manifest.json`, `store.db`, `keyring`. It appears whole, by a rename, or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from trenza.adapters.keyring import KEYRING_NAME, KeyringSealer
from trenza.adapters.sqlite import STORE_NAME, Copied, InlineStore, copy_store
from trenza.adapters.sqlite import connect as connect_store
from trenza.app.config import NodeConfig
from trenza.app.node_key import open_node_key
from trenza.app.state_directory import file_name
from trenza.base.clock import Clock
from trenza.base.entropy import Entropy
from trenza.base.errors import ConflictError, InvalidRequestError, StoreUnavailableError
from trenza.base.names import NodeId
from trenza.kms import rows
from trenza.kms.id_keys import sealed_anew
from trenza.kms.ports import Change, NodeKey, Put, Table

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"

FILES: Final = (STORE_NAME, KEYRING_NAME)
CHUNK: Final = 1 << 20

Progress = Callable[[str, int, int], None]
"""Told what is counted, how far it is and how far it goes."""


class FileDigest(msgspec.Struct, frozen=True):
    """One file of a backup."""

    bytes: int
    sha384: str


class Manifest(msgspec.Struct, frozen=True):
    """`manifest.json`: whose memory this is, of when, and what its files must be."""

    format: int
    node: NodeId
    time: str
    release: str
    schema: int
    store: str
    epoch: int
    counter: int
    ledger_start: int  # the entry before the first
    ledger_end: int
    ledger_hash: str
    id_keys: int  # sets of keys that seal key IDs
    files: dict[str, FileDigest]


def back_up(
    config: NodeConfig, *, to: Path, clock: Clock, entropy: Entropy, progress: Progress
) -> tuple[Path, Manifest]:
    """Write a backup of a node, which may be running meanwhile, into a new directory.

    Args:
        config: of the node; its node key must be within reach.
        to: the directory that holds the backups, made if absent.
        clock: tells when it was made.
        entropy: for the backup's own keyring.
        progress: told how far it is.

    Returns:
        The new directory, and its manifest.

    Raises:
        InvalidRequestError: the node's memory is in a database.
        StoreUnavailableError: the store or the node key cannot be read, or the backup cannot be written.
        AuthenticationError: the ledger is damaged, or the node key is another one.
        ConflictError: there is a backup of this very second.
    """
    refuse_database(config)
    now = datetime.fromtimestamp(clock.now() // 1_000_000_000, UTC)
    place = to / f"{file_name(config.name)}-{now:%Y%m%dT%H%M%SZ}"
    draft = place.with_name(f".{place.name}.partial")
    if place.exists() or draft.exists():
        raise ConflictError(f"there is a backup {place} already, or one in the making: try again in a second")
    with disk_told(f"the backup {place} cannot be written"), contextlib.closing(open_node_key(config, None)) as key:
        to.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft.mkdir(mode=0o700)
        try:
            manifest = asyncio.run(_written(config, key, draft, now, entropy, progress))
            draft.rename(place)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        sync_directory(to)
    return place, manifest


def refuse_database(config: NodeConfig) -> None:
    """Refuse a node whose memory is not on its own disk.

    What the database's own means bring back is told from what was there by the anchor, which lies outside of it
    (docs/adr/0020-postgres.md).

    Raises:
        InvalidRequestError: it is not.
    """
    if config.database is not None:
        raise InvalidRequestError(
            f"node {config.name} has its memory in PostgreSQL, which is not supported here yet: use the database's "
            "own replication and backups, which hold strands, sealed under the node key; keep all anchors, "
            "and a node that is restored from them begins a new epoch"
        )


async def _written(
    config: NodeConfig, node_key: NodeKey, draft: Path, now: datetime, entropy: Entropy, progress: Progress
) -> Manifest:
    copied = copy_store(
        config.data_directory,
        draft / STORE_NAME,
        tables=(Table.META, Table.SESSION),
        progress=functools.partial(progress, "ledger entries"),
    )
    me = _self_of(copied, config)
    moved = await _id_keys(config, node_key, draft, copied, entropy)
    store = InlineStore(connect_store(str(draft / STORE_NAME)))
    try:
        changes: list[Change] = [Put(Table.META, key, value) for key, value in copied.rows[Table.META]]
        changes.append(Put(Table.META, rows.SELF, rows.encode(msgspec.structs.replace(me, whole=False))))
        changes += [Put(Table.SESSION, key, value) for key, value in moved]
        await store.commit(changes)
    finally:
        await store.close()
    manifest = Manifest(
        format=FORMAT,
        node=config.name,
        time=now.isoformat().replace("+00:00", "Z"),
        release=version("trenza"),
        schema=copied.version,
        store=me.store.hex(),
        epoch=me.epoch,
        counter=copied.counter,
        ledger_start=copied.start.sequence,
        ledger_end=copied.head.sequence,
        ledger_hash=copied.head.hash.hex(),
        id_keys=len(moved),
        files={name: _digest(draft / name, progress) for name in FILES},
    )
    _write_durably(draft / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    sync_directory(draft)
    return manifest


def _self_of(copied: Copied, config: NodeConfig) -> rows.SelfRow:
    value = dict(copied.rows[Table.META]).get(rows.SELF)
    if value is None:
        raise StoreUnavailableError(f"the store in {config.data_directory} is empty: the node has never run")
    return rows.decode(value, rows.SelfRow)


async def _id_keys(
    config: NodeConfig, node_key: NodeKey, draft: Path, copied: Copied, entropy: Entropy
) -> list[tuple[bytes, bytes]]:
    """Seal the ID keys in a keyring of the backup's own; the node's is read after the rows that name its slots."""
    kept = (config.data_directory / KEYRING_NAME).read_bytes()
    new = KeyringSealer.open(draft / KEYRING_NAME, node_key=node_key, entropy=entropy)
    try:
        old = KeyringSealer.in_memory(node_key=node_key, entropy=entropy, image=kept)
        moved = await sealed_anew(copied.rows[Table.SESSION], node=config.name, old=old, new=new)
        await old.close()
    finally:
        await new.close()
    return moved


# --- files ---------------------------------------------------------------------------------------------------------


def _digest(file: Path, progress: Progress) -> FileDigest:
    """Return a file's digest, when it is durable."""
    digest, size, whole = hashlib.sha384(), 0, file.stat().st_size
    with file.open("rb") as reading:
        os.fsync(reading.fileno())
        while chunk := reading.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            progress(f"bytes of {file.name} checked", size, whole)
    return FileDigest(size, digest.hexdigest())


def _write_durably(file: Path, content: bytes) -> None:
    with file.open("xb") as writing:
        os.fchmod(writing.fileno(), 0o600)
        writing.write(content)
        writing.flush()
        os.fsync(writing.fileno())


def sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def disk_told(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreUnavailableError(f"{what}: {error.filename or 'the disk'}: {error.strerror}") from error
