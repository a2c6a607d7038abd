"""How a node's memory is kept honest at start: which sealed boxes its rows name, and how far its store had got."""

from __future__ import annotations

import threading

import msgspec

from trenza.adapters.anchor import FileAnchor
from trenza.kms import rows
from trenza.kms.pads import BlockRow
from trenza.kms.ports import Store, Table


class GroupAnchor:
    """An anchor that is told of every commit group before the group's answers are released.

    Implements kms.ports.Anchor. `committed` comes from the store's writer thread, `remember` from the node's loop;
    within one process the counter only grows, whichever of the two is later. Until the node has said which store it
    is, nothing is remembered: an anchor that is behind forgets at most what was not acknowledged yet.
    """

    def __init__(self, anchor: FileAnchor) -> None:
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
        handles |= {sealed.handle for sealed in (root.root, root.candidate) if sealed is not None}
    for _, value in await store.scan(Table.SESSION, b"keys"):
        handles.add(rows.decode(value, rows.IdKeysRow).keys.handle)
    for _, value in await store.scan(Table.SEGMENT_BYTES):
        handles.add(rows.decode(value, rows.SealedRow).handle)
    for _, value in await store.scan(Table.WRAPPED):
        handles.add(rows.decode(value, rows.WrappedRow).sealed.handle)
    return frozenset(handles)
