"""How a node's memory is kept honest at start: which sealed boxes its rows name, how far its store got, and where."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Final

import msgspec

from trenza.kms import rows
from trenza.kms.pads import BlockRow
from trenza.kms.ports import Anchor, Store, Table

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def place_of(directory: Path, lock: Path) -> bytes:
    """Return what names a locked data directory until the machine is booted anew; empty where there is no telling.

    Of the running kernel, the directory and its lock file themselves, whatever path leads there: so a copy is another
    place, beside the original as well as on another machine, and whoever has the lock here knows that every process
    that had it before has let go of it, or has ended. A boot ends every place: whether another machine took over
    meanwhile, nothing here could tell.
    """
    try:
        boot = _BOOT_ID.read_bytes().strip()
        found = [path.stat() for path in (directory, lock)]
    except OSError:
        return b""
    named = b"".join(one.st_dev.to_bytes(8, "big") + one.st_ino.to_bytes(8, "big") for one in found)
    return hashlib.sha256(b"trenza place v1" + named + boot).digest()[:16]


class GroupAnchor:
    """An anchor that is told of every commit group before the group's answers are released.

    Implements kms.ports.Anchor. `committed` comes from the store's writer thread, `remember` from the node's loop;
    within one process the counter only grows, whichever of the two is later. Until the node has said which store it
    is, nothing is remembered: an anchor that is behind forgets at most what was not acknowledged yet.
    """

    def __init__(self, anchor: Anchor) -> None:
        self._anchor = anchor
        self._identity: bytes | None = None
        self._counter = 0
        self._lock = threading.Lock()

    def recall(self) -> tuple[bytes, int] | None:
        return self._anchor.recall()

    def remember(self, identity: bytes, counter: int) -> None:
        with self._lock:
            self._identity = identity
            self._note(counter)

    def committed(self, counter: int) -> None:
        """Remember a group that is durable."""
        with self._lock:
            self._note(counter)

    def _note(self, counter: int) -> None:
        self._counter = max(self._counter, counter)
        if self._identity is not None:
            self._anchor.remember(self._identity, self._counter)


async def handles_in_use(store: Store) -> frozenset[int]:
    """Return the keyring handle of every box that a row of `store` names; the others were leaked by a crash."""
    handles: set[int] = set()
    for _, value in await store.scan(Table.LINK_BLOCK):
        handles.add(msgspec.msgpack.decode(value, type=BlockRow).handle)
    for _, value in await store.scan(Table.SESSION, b"root"):
        root = rows.decode(value, rows.RootRow)
        handles |= {box.handle for box in (root.root, root.candidate) if box is not None}
    for _, value in await store.scan(Table.SESSION, b"keys"):
        handles.add(rows.decode(value, rows.IdKeysRow).keys.handle)
    for segment, _ in await store.scan(Table.SEGMENT):
        sealed = await store.get(Table.SEGMENT_BYTES, segment)  # one at a time: together they are the whole stock
        if sealed is not None:
            handles.add(rows.decode(sealed, rows.SealedRow).handle)
    for _, value in await store.scan(Table.WRAPPED):
        handles.add(rows.decode(value, rows.WrappedRow).sealed.handle)
    return frozenset(handles)
