"""Windows taken over from the peer that granted them, each durable before a slot of it is used.

A segment is opened before any window of it is asked for: what could not be opened would be given up. What the peer
does not grant although both ends hold it counts as stock no more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from trenza.base.errors import (
    AuthenticationError,
    ConflictError,
    RemoteProtocolError,
    StoreUnavailableError,
    UnavailableError,
)
from trenza.base.names import NodeId
from trenza.base.units import nanoseconds
from trenza.core.slot_set import SlotSet
from trenza.core.window import IssuerWindow
from trenza.kms.context import Context
from trenza.kms.granting import Granting
from trenza.kms.pairs import Pair, segment_row
from trenza.kms.ports import Change, Insert, Table
from trenza.kms.reserving import issuer_row
from trenza.kms.stock import Accept, Segment
from trenza.kms.strands import Strands
from trenza.wire.peer import WindowGrant


class Taking:
    """The issuer's side of grants."""

    def __init__(
        self,
        ctx: Context,
        pair: Callable[[NodeId], Pair],
        *,
        strands: Strands,
        granting: Granting,
        drop: Callable[[Segment], Awaitable[None]],
    ) -> None:
        """Take nothing yet.

        Args:
            ctx: of this instance.
            pair: what is shared with a peer.
            strands: to open.
            granting: whose row of numbers is written to see whether the disk takes anything.
            drop: destroys a segment that cannot be opened.
        """
        self._ctx = ctx
        self._pair = pair
        self._strands = strands
        self._granting = granting
        self._drop = drop

    async def accept(self, peer: NodeId, grants: Sequence[WindowGrant]) -> list[bytes]:
        """Take over granted windows; return the segments named that this node does not hold.

        Raises:
            RemoteProtocolError: a grant overlaps one taken before: the peer has gone back in time.
        """
        pair = self._pair(peer)
        unknown: list[bytes] = []
        fresh: list[tuple[Segment, WindowGrant]] = []
        fault: RemoteProtocolError | None = None
        for grant in grants:
            segment = pair.segments.get(grant.segment)
            if segment is None:
                unknown.append(grant.segment)
            elif not segment.theirs.covers(grant.first, grant.count):
                fault = RemoteProtocolError(f"node {peer} granted slots that it had granted before")
                break
            else:
                segment.theirs = segment.theirs.without(grant.first, grant.count)
                fresh.append((segment, grant))
        unknown += await self._take_over(peer, fresh)
        if fault is not None:
            raise fault
        return unknown

    async def take_over(self, segment: Segment, grant: WindowGrant) -> bool:
        """Make a window to issue from durable and usable; tell whether its strands could be opened.

        Raises:
            RemoteProtocolError: a window of that number is held already: the peer has gone back in time.
        """
        return not await self._take_over(segment.peer, [(segment, grant)])

    async def _take_over(self, peer: NodeId, fresh: Sequence[tuple[Segment, WindowGrant]]) -> list[bytes]:
        """Take over windows by one commit; return the segments whose strands could not be opened."""
        if not fresh:
            return []
        windows: list[tuple[Segment, IssuerWindow]] = []
        changes: list[Change] = []
        for segment, grant in fresh:
            window = IssuerWindow(grant.window, segment.facts, grant.first, grant.count, grant.first, grant.first)
            row = issuer_row(peer, window, window.reserved)
            windows.append((segment, window))
            changes.append(Insert(Table.WINDOW, row.key, row.value))
        changes += [segment_row(one) for one in {segment.id: segment for segment, _ in fresh}.values()]
        try:
            await self._ctx.store.commit(changes)
        except ConflictError:
            raise RemoteProtocolError(f"node {peer} gave a window a number that it had given before") from None
        except StoreUnavailableError:
            self._pair(peer).took_over = False
            raise
        unreadable: list[bytes] = []
        for segment, window in windows:
            if not await self.opens(segment):
                unreadable.append(segment.id)
                continue
            try:
                self._pair(peer).issuer.add(window)
            except ValueError as error:
                raise RemoteProtocolError(f"node {peer}: {error}") from None
        return unreadable

    async def open_next(self, peer: NodeId, *, full: bool, accept: Accept) -> None:
        """Open a segment whose windows may come next, before any are asked for: without it they would be given up.

        Raises:
            StoreUnavailableError: the disk or the node key's token is away; this is no time to ask.
        """
        pair = self._pair(peer)
        if not pair.took_over:  # the same again would be given up: whether the disk takes anything is seen first
            await self._ctx.store.commit([self._granting.numbers_row(peer)])
            pair.took_over = True
        coming = pair.segments.giving(mine=False, full=full, accept=accept)
        if (segment := next((one for one in coming if one.open is None), None)) is not None:
            await self.opens(segment)

    async def opens(self, segment: Segment) -> bool:
        """Open a segment before the first key needs it; one that cannot be opened is dropped.

        A crash while it was dropped leaves the rows of a segment whose own key is gone.
        """
        try:
            await self._strands.opened(segment.peer, segment.id)
        except AuthenticationError:
            self._ctx.counters["segments_unreadable"] += 1
            await self._drop(segment)
        except StoreUnavailableError:  # the disk or the node key's token is away for a while: the segment is sound
            raise
        except UnavailableError:
            await self._drop(segment)
        return self._pair(segment.peer).segments.get(segment.id) is segment

    async def write_off_ungrantable(self, peer: NodeId, *, full: bool, accept: Accept) -> None:
        """Count no longer as stock what the peer, asked for such windows, does not grant: something was lost.

        A segment that is as young as a call may last can still be under way.
        """
        patience = 2 * nanoseconds(self._ctx.settings.call_timeout)
        oldest = self._ctx.clock.now() - patience
        changes: list[Change] = []
        for segment in self._pair(peer).segments.giving(mine=False, full=full, accept=accept):
            if segment.facts.record.created < oldest:
                self._ctx.counters["slots_ungrantable"] += len(segment.theirs)
                segment.theirs = SlotSet()
                changes.append(segment_row(segment))
        if changes:
            await self._ctx.store.commit(changes)
