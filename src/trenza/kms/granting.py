"""The windows that this node grants: slots of verified segments that the peer may issue from, and that come back.

The holder's side of the pools. A window is durable before its grant leaves, and a slot is granted once: what seemed
not to become durable is made grantable again only by the commit that removes its windows for certain. How far the
peer has issued, it says itself (design decisions 6 to 10).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trenza.base.errors import StoreUnavailableError
from trenza.base.names import NodeId
from trenza.base.units import Nanoseconds, nanoseconds
from trenza.core.keyid import WINDOWS_MAX
from trenza.core.slot_set import SlotSet
from trenza.core.window import HeldWindow
from trenza.kms import rows
from trenza.kms.context import Context
from trenza.kms.owed import Going
from trenza.kms.pairs import Pair, segment_row
from trenza.kms.ports import Change, Delete, DeletePrefix, Insert, Put, Table
from trenza.kms.stock import Accept, Segment
from trenza.wire.peer import WindowGrant, WindowMark


class Granting:
    """The windows that this node has granted, of all pairs."""

    def __init__(self, ctx: Context, pair: Callable[[NodeId], Pair]) -> None:
        self._ctx = ctx
        self._pair = pair

    async def grant(self, peer: NodeId, *, full: bool, slots: int, accept: Accept) -> tuple[WindowGrant, ...]:
        """Grant up to `slots` slots of segments that `peer` issues from: durable before the answer leaves.

        Raises:
            StoreUnavailableError: not now; what was taken for it can be granted later.
        """
        await self.regain_untold(peer)
        pair = self._pair(peer)
        windows: list[HeldWindow] = []
        changes: list[Change] = []
        missing = slots
        for segment in pair.segments.giving(mine=True, full=full, accept=accept):
            if missing <= 0:
                break
            while missing > 0 and segment.mine:
                first, count = segment.mine.lowest(missing)
                segment.mine = segment.mine.without(first, count)
                missing -= count
                windows.append(self.hold(segment, first, count, changes))
            changes.append(segment_row(segment))
        if changes:
            try:
                await self._ctx.store.commit([*changes, self.numbers_row(peer)])
            except StoreUnavailableError:
                self._withdraw(pair, windows)
                raise
        return tuple(map(grant_of, windows))

    def _withdraw(self, pair: Pair, windows: Sequence[HeldWindow]) -> None:
        """Hold no longer what may not be durable, and was told to nobody."""
        if self._ctx.shared is not None:  # another instance may have read it, and deliver what the peer guesses
            return
        for window in windows:
            segment = pair.segments.get(window.facts.record.segment)
            if segment is not None and pair.held.get(window.number) is window and not window.delivered:
                pair.held.remove(window.number)
                segment.users += 1  # it is not tidied away meanwhile
                pair.untold.append(window)

    async def regain_untold(self, peer: NodeId) -> None:
        """Make grantable again what was withdrawn, by the very commit that removes its windows for certain."""
        pair = self._pair(peer)
        if not pair.untold:
            return
        untold, pair.untold = pair.untold, []
        changes: list[Change] = []
        mine: dict[bytes, SlotSet] = {}
        for window in untold:
            changes.append(Delete(Table.WINDOW, rows.window_key(rows.HOLDER, peer, window.number)))
            segment = pair.segments.get(window.facts.record.segment)
            if segment is not None:
                mine[segment.id] = mine.get(segment.id, segment.mine).with_range(window.first, window.count)
        changes += [segment_row(pair.segments[one], mine=slots) for one, slots in mine.items()]
        try:
            await self._ctx.store.commit(changes)
        except BaseException:
            pair.untold += untold
            raise
        for window in untold:
            segment = pair.segments.get(window.facts.record.segment)
            if segment is not None:
                segment.users -= 1
                segment.mine = segment.mine.with_range(window.first, window.count)

    def hold(self, segment: Segment, first: int, count: int, changes: list[Change]) -> HeldWindow:
        """Make a window for the peer to issue from; it counts when `changes` and the numbers given are durable."""
        pair = self._pair(segment.peer)
        session = self._ctx.sessions.get(segment.peer)
        held = HeldWindow(self._next_number(pair), segment.facts, first, count, self._ctx.clock.now())
        held.life = b"" if session is None else session.theirs.nonce
        pair.held.add(held)
        row = held_row(segment.peer, held)
        changes.append(Insert(Table.WINDOW, row.key, row.value))
        return held

    def numbers_row(self, peer: NodeId) -> Put:
        """Return the change that makes durable which window numbers were given."""
        return Put(Table.META, rows.windows_key(peer), rows.encode(rows.WindowsRow(self._pair(peer).next_window)))

    @staticmethod
    def _next_number(pair: Pair) -> int:
        """Return the next window number. Numbers come round after 2^26 windows, when no ID key that sealed IDs of
        the first round is honoured any more (IdKeyRing.fetchable).
        """
        while pair.next_window in pair.held:
            pair.next_window = (pair.next_window + 1) % WINDOWS_MAX
        number = pair.next_window
        pair.next_window = (number + 1) % WINDOWS_MAX
        return number

    async def note_marks(self, peer: NodeId, marks: Sequence[WindowMark]) -> None:
        """Take in how far the peer has issued; what it declared void is never delivered."""
        pair = self._pair(peer)
        now = self._ctx.clock.now()
        changes: list[Change] = self._close_unknown(peer, frozenset(mark.window for mark in marks))
        for mark in marks:
            window = pair.held.get(mark.window)
            if window is None:
                continue
            reopened = self._reopens(peer, window)
            if not reopened and mark.issued <= window.issued and window.void.issuperset(mark.void):
                continue
            window.mark(mark.issued, now)
            inside = range(window.first, window.first + window.count)
            window.void.update(slot for slot in mark.void if slot in inside and slot not in window.delivered)
            pair.held.settle(window)
            changes.append(held_row(peer, window))
        if changes:
            await self._ctx.store.commit(changes)

    def _close_unknown(self, peer: NodeId, known: frozenset[int]) -> list[Change]:
        """Close the windows that the peer does not speak of: their grant was lost, or they are used up."""
        now = self._ctx.clock.now()
        patience = 2 * nanoseconds(self._ctx.settings.call_timeout)
        changes: list[Change] = []
        held = self._pair(peer).held
        for window in held.open:
            if window.number not in known and now - window.granted > patience:
                held.close(window, now)
                changes.append(held_row(peer, window))
        return changes

    def _reopens(self, peer: NodeId, window: HeldWindow) -> bool:
        """Open a window again that was closed because its grant seemed lost: the life it was given to speaks of it.

        Its answer may have been slow, or a clock was set. Left closed, it would be forgotten while keys come of it.
        """
        session = self._ctx.sessions.get(peer)
        if window.closed is None or window.issued >= window.count or session is None:
            return False
        if window.life != session.theirs.nonce:
            return False
        window.granted = self._ctx.clock.now()  # the peer has only now heard of it: it is not closed again at once
        self._pair(peer).held.reopen(window)
        return True

    def unissued(self, peer: NodeId, *, full: bool, accept: Accept) -> int:
        """Return the slots granted to `peer` that it has not issued yet, as far as it has said."""
        return sum(
            window.count - window.issued
            for window in self._pair(peer).held.open
            if window.facts.full is full and accept(window.facts)
        )

    # --- starts, ends, and what other instances do

    def load(self, peer: NodeId, number: int, row: rows.HeldWindowRow) -> None:
        """Take in a window that was granted before, if its segment is held."""
        pair = self._pair(peer)
        segment = pair.segments.get(row.segment)
        if segment is None:
            return
        closed = None if row.closed is None else Nanoseconds(row.closed)
        held = HeldWindow(number, segment.facts, row.first, row.count, Nanoseconds(row.granted), row.issued, closed)
        held.void.update(row.void)
        held.life = row.life
        if row.issued:
            held.marks.append((row.issued, self._ctx.clock.now()))
        pair.held.add(held)

    def follow(self, peer: NodeId, number: int, row: rows.HeldWindowRow) -> None:
        """Take in how a window that the lead has granted stands now."""
        held = self._pair(peer).held.get(number)
        if held is None or held.facts.record.segment != row.segment:
            self.load(peer, number, row)
            return
        held.mark(row.issued, self._ctx.clock.now())
        held.count = row.count
        held.closed = None if row.closed is None else Nanoseconds(row.closed)
        held.void.update(slot for slot in row.void if slot not in held.delivered)
        self._pair(peer).held.settle(held)

    async def note_deliveries(self, peer: NodeId) -> None:
        """Take in which slots of windows that are over other instances have delivered."""
        for window in [one for one in self._pair(peer).held.values() if one.closed is not None]:
            delivered = await self._delivered(peer, window)
            window.shared = window.shared or not window.delivered >= delivered
            window.delivered |= delivered
            window.void -= window.delivered
            self._pair(peer).held.settle(window)

    async def delivered_beside(self, peer: NodeId) -> list[Going]:
        """Return what was delivered of windows, open ones too, of which other instances have delivered some."""
        found: list[Going] = []
        for window in list(self._pair(peer).held.values()):
            delivered = await self._delivered(peer, window)
            window.shared = window.shared or not window.delivered >= delivered
            if window.shared:
                found.append(Going("delivered", window.number, window.facts.record.segment, delivered))
        return found

    async def _delivered(self, peer: NodeId, window: HeldWindow) -> frozenset[int]:
        """Return which slots of a window are durably marked as delivered, by whichever instance."""
        prefix = rows.window_key(b"", peer, window.number)
        found = await self._ctx.store.scan(Table.DELIVERED, prefix)
        return frozenset(int.from_bytes(key[len(prefix) :], "big") for key, _ in found)

    def renew_incarnation(self, peer: NodeId) -> None:
        """The peer started anew: what it may have issued in its last life is closed now and expires in its time."""
        held = self._pair(peer).held
        for window in held.open:
            held.close(window, self._ctx.clock.now())

    def forget(self, peer: NodeId, held: HeldWindow) -> list[Change]:
        """Let go of a window and of what was delivered of it; say what to delete."""
        pair = self._pair(peer)
        pair.held.remove(held.number)
        pair.segments.look_again(held.facts.record.segment)
        key = rows.window_key(rows.HOLDER, peer, held.number)
        return [Delete(Table.WINDOW, key), DeletePrefix(Table.DELIVERED, key[1:])]


def held_row(peer: NodeId, window: HeldWindow) -> Put:
    """Return the change that makes durable how a granted window stands."""
    row = rows.HeldWindowRow(
        window.facts.record.segment,
        window.first,
        window.count,
        window.granted,
        window.issued,
        window.closed,
        tuple(sorted(window.void)),
        window.life,
    )
    return Put(Table.WINDOW, rows.window_key(rows.HOLDER, peer, window.number), rows.encode(row))


def grant_of(held: HeldWindow) -> WindowGrant:
    return WindowGrant(held.number, held.facts.record.segment, held.first, held.count)
