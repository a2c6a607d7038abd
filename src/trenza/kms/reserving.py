"""Slots given up ahead: the issuer's side of the windows that the peer granted.

A slot is given up durably before its key leaves, many by one commit, so that keys can be issued without another
(docs/adr/0018-reserve-ahead-record-behind.md). Where several instances issue from one window, the row of the window
says whose turn it is: whoever finds another mark than it knew reads again (docs/adr/0022-instances.md).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from trenza.base.errors import ConflictError
from trenza.base.names import NodeId
from trenza.core.window import IssuerWindow
from trenza.kms import rows
from trenza.kms.context import Context
from trenza.kms.pairs import Pair
from trenza.kms.ports import Change, Expect, Put, Table
from trenza.kms.stock import Accept

_ATTEMPTS = 8
"""Reservations that another instance may come before, until a request is told that there is nothing."""


class Reserving:
    """All windows that this node issues from."""

    def __init__(self, ctx: Context, pairs: defaultdict[NodeId, Pair]) -> None:
        self._ctx = ctx
        self._pairs = pairs
        self.may_reserve: Callable[[], bool] = lambda: True  # not while an instance does not know who leads

    async def reserve(
        self,
        peer: NodeId,
        wanted: int | Callable[[], int],
        *,
        full: bool,
        slots: int = 1,
        accept: Accept,
        keys: int = 0,
    ) -> int:
        """Give slots up durably, by one commit, so that `wanted` of them can be taken without another.

        Whoever waits meanwhile waits for the same commit. One whose outcome is unknown burns nothing: none of its
        slots was used, and the next reservation says the same again.

        Args:
            peer: of the pair.
            wanted: slots in hand, with those that are already; asked when it is this caller's turn.
            full: with QKD strands or without.
            slots: of one key.
            accept: of the windows.
            keys: that the caller waits for; if a commit of others has brought so many, it needs none of its own.

        Returns:
            The slots that came into hand; 0 where there were enough, or where there are no more.

        Raises:
            StoreUnavailableError: not now.
        """
        pair = self._pairs[peer]
        async with pair.reserving:
            for _ in range(_ATTEMPTS):
                if keys and pair.issuer.has_keys(keys, full=full, slots=slots, accept=accept):
                    return 0
                missing = wanted if isinstance(wanted, int) else max(wanted(), keys * slots)
                marks = pair.issuer.reservable(missing, full=full, slots=slots, accept=accept)
                if not marks or not self.may_reserve():
                    return 0
                try:
                    return await self._reserve(peer, marks)
                except ConflictError:  # another instance was first
                    self._ctx.counters["reservations_repeated"] += 1
                    await self.read_marks(peer)
            return 0

    async def _reserve(self, peer: NodeId, marks: Sequence[tuple[IssuerWindow, int]]) -> int:
        changes: list[Change] = []
        for window, mark in marks:
            row = issuer_row(peer, window, mark)
            if self._ctx.shared is not None:
                changes.append(Expect(row.table, row.key, issuer_row(peer, window, window.mark).value))
            changes.append(row)
        was = [window.mark for window, _ in marks]
        await self._ctx.store.commit(changes)
        won = 0
        for (window, mark), start in zip(marks, was, strict=True):
            if self._pairs[peer].issuer.get(window.number) is window:
                window.won(start, mark)
                won += mark - start
        self._ctx.counters["slots_reserved"] += won
        return won

    async def read_marks(self, peer: NodeId) -> None:
        """Take in what other instances have reserved meanwhile, or dropped."""
        found = dict(await self._ctx.store.scan(Table.WINDOW, rows.ISSUER + rows.peer_prefix(peer)))
        pool = self._pairs[peer].issuer
        for window in list(pool):
            value = found.get(rows.window_key(rows.ISSUER, peer, window.number))
            mark = window.end if value is None else rows.decode(value, rows.IssuerWindowRow).next
            window.shared = window.shared or (value is not None and mark > window.mark)
            window.beyond = max(window.mark, mark)

    def note_reserved_by_others(self, found: Iterable[tuple[bytes, bytes]]) -> list[tuple[NodeId, bool, int]]:
        """Take in how far other instances have reserved, from the rows of all windows to issue from.

        Returns:
            Peer, with or without QKD strands, slots: what they have taken since the last time.
        """
        taken: list[tuple[NodeId, bool, int]] = []
        for key, value in found:
            peer, rest = rows.split_peer(key[1:])
            pair = self._pairs.get(peer)
            if pair is None or pair.reserving.locked():  # what this instance is about to reserve is not another's
                continue
            window, row = pair.issuer.get(int.from_bytes(rest, "big")), rows.decode(value, rows.IssuerWindowRow)
            if window is not None and row.next > window.mark:
                taken.append((peer, window.facts.full, row.next - window.mark))
                window.beyond, window.shared = row.next, True
        return taken


def issuer_row(peer: NodeId, window: IssuerWindow, mark: int) -> Put:
    """Return the change that gives up the slots of `window` below `mark`."""
    row = rows.IssuerWindowRow(window.facts.record.segment, window.first, window.count, mark)
    return Put(Table.WINDOW, rows.window_key(rows.ISSUER, peer, window.number), rows.encode(row))
