"""The pools of a node: verified segments, and the windows that come out of them, from their making to their end.

Everything here is durable before it counts: a segment before it is issuable, a window before it is granted or used,
a slot before its key leaves. The bookkeeping itself is core.window; the strands stay sealed until a window of their
segment is in use (kms.strands). Windows that the peer may issue from: kms.granting; that this node was granted:
kms.taking; slots of these, given up ahead: kms.reserving (design decisions 6 to 10).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from trenza.base.errors import AuthenticationError, StoreUnavailableError, UnavailableError
from trenza.base.names import NodeId
from trenza.base.secret import Secret
from trenza.base.units import Nanoseconds, Seconds, nanoseconds
from trenza.core.provenance import DoubtfulRecord, SegmentRecord
from trenza.core.segment import SegmentFacts
from trenza.core.slot_set import SlotSet
from trenza.core.window import IssuerWindow
from trenza.kms import rows
from trenza.kms.context import Context
from trenza.kms.granting import Granting, held_row
from trenza.kms.journal import Journal, doubtful_entry
from trenza.kms.owed import Going, delivered_of, doubts, issued_of, owed
from trenza.kms.pairs import Pair, segment_row
from trenza.kms.ports import Append, Change, Delete, DeletePrefix, Expect, Insert, Table
from trenza.kms.reserving import Reserving, issuer_row
from trenza.kms.stock import Accept, Segment
from trenza.kms.strands import Strands
from trenza.kms.taking import Taking
from trenza.wire.peer import WindowMark


class Pools:
    """All pairs of this node."""

    def __init__(self, ctx: Context, *, journal: Journal) -> None:
        self._ctx = ctx
        self._journal = journal
        self._pairs: defaultdict[NodeId, Pair] = defaultdict(Pair)
        self.strands = Strands(ctx, self.pair)
        self.granting = Granting(ctx, self.pair)
        self.taking = Taking(ctx, self.pair, strands=self.strands, granting=self.granting, drop=self.drop_segment)
        self.reserving = Reserving(ctx, self._pairs)
        self._used_up: dict[tuple[NodeId, int], Seconds] = {}  # windows that others shared: since when

    def pair(self, peer: NodeId) -> Pair:
        """Return what is shared with `peer`: nothing, where it was never asked for."""
        return self._pairs[peer]

    @property
    def peers(self) -> list[NodeId]:
        return sorted(self._pairs)

    # --- start

    async def load(self) -> None:
        """Read what the last incarnation left. Windows to issue from are dropped: fresh ones come with a session."""
        store = self._ctx.store
        for _, value in await store.scan(Table.SEGMENT):
            row = rows.decode(value, rows.SegmentRow)
            peer = NodeId(row.peer)
            segment = Segment.fresh(peer, SegmentFacts.of(row.record), granted=row.granted)
            if row.mine is not None and row.theirs is not None:
                segment.mine, segment.theirs = SlotSet(row.mine), SlotSet(row.theirs)
            self.pair(peer).segments.add(segment)
        for key, value in await store.scan(Table.META, rows.WINDOWS):
            pair = self.pair(NodeId(key[len(rows.WINDOWS) :].decode()))
            pair.next_window = rows.decode(value, rows.WindowsRow).given
        doubtful = await self._doubtful_issues()
        for key, value in await store.scan(Table.WINDOW, rows.HOLDER):
            peer, rest = rows.split_peer(key[1:])
            self.granting.load(peer, int.from_bytes(rest, "big"), rows.decode(value, rows.HeldWindowRow))
        for key, _ in await store.scan(Table.DELIVERED):
            peer, rest = rows.split_peer(key)
            window = self.pair(peer).held.get(int.from_bytes(rest[:4], "big"))
            if window is not None:
                slot = int.from_bytes(rest[4:], "big")
                window.delivered.add(slot)
                window.void.discard(slot)
        for pair in self._pairs.values():
            for window in pair.held.values():
                pair.held.settle(window)
        doubtful += await self._doubtful_deliveries()
        now = self._ctx.clock.now()
        changes: list[Change] = [doubtful_entry(now, record) for record in doubtful]
        if await store.scan(Table.WINDOW, rows.ISSUER):
            changes.append(DeletePrefix(Table.WINDOW, rows.ISSUER))
        if changes:
            await store.commit(changes)

    async def _doubtful_issues(self) -> list[DoubtfulRecord]:
        """Return what the last incarnation may have issued without a record: reserved, and not in the ledger."""
        found: list[DoubtfulRecord] = []
        for key, value in await self._ctx.store.scan(Table.WINDOW, rows.ISSUER):
            row = rows.decode(value, rows.IssuerWindowRow)
            peer, rest = rows.split_peer(key[1:])
            window = int.from_bytes(rest, "big")
            recorded = await self._journal.recorded("issued", peer, window, row.segment)
            missing = frozenset(range(row.first, row.next)) - recorded
            self._ctx.counters["slots_given_up_at_start"] += row.count - len(recorded)
            self._ctx.counters["slots_doubtful"] += len(missing)
            found += doubts("issued", row.segment, peer, window, missing)
        return found

    async def _doubtful_deliveries(self) -> list[DoubtfulRecord]:
        """Return what the last incarnation delivered, or was about to, without a record."""
        found: list[DoubtfulRecord] = []
        for peer, pair in self._pairs.items():
            for window in pair.held.values():
                if window.delivered:
                    segment = window.facts.record.segment
                    recorded = await self._journal.recorded("delivered", peer, window.number, segment)
                    missing = window.delivered - recorded
                    found += doubts("delivered", segment, peer, window.number, missing)
        return found

    async def drop_all(self) -> None:
        """Forget every strand: this node cannot prove that its memory is whole."""
        handles = [segment.id for pair in self._pairs.values() for segment in pair.segments.values()]
        for peer in self.peers:
            await self.keep_only(peer, ())
        self._ctx.counters["segments_dropped_at_restore"] += len(handles)

    async def keep_only(self, peer: NodeId, segments: Iterable[bytes], *, peer_is_whole: bool = False) -> None:
        """Drop the segments of a pair that the other end does not hold, with their windows.

        A peer in the epoch that we know has only finished with a segment: the keys it issued can be fetched in their
        time, and no further window of it is granted or issued from.
        """
        keep = frozenset(segments)
        pair = self.pair(peer)
        for segment in [one for one in pair.segments.values() if one.id not in keep]:
            if peer_is_whole and pair.held.needs(segment.id):
                await self._finish(segment)
            else:
                await self.drop_segment(segment)

    async def _finish(self, segment: Segment) -> None:
        """Close a segment that the peer holds no more; keys it issued of it stay to be fetched until they expire."""
        segment.mine = segment.theirs = SlotSet()
        going = issued_of(self._issuing(segment))
        changes: list[Change] = [segment_row(segment), *self._drop_issuing(segment)]
        held = self.pair(segment.peer).held
        for window in held.of_segment(segment.id):
            if window.closed is None:
                held.close(window, self._ctx.clock.now())
                changes.append(held_row(segment.peer, window))
        await self._journal.flush()
        changes += await owed(self._ctx, self._journal, segment.peer, going)
        await self._ctx.store.commit(changes)

    # --- segments

    def ready_segments(self, peer: NodeId) -> tuple[bytes, ...]:
        return tuple(sorted(self.pair(peer).segments))

    async def add_segment(self, peer: NodeId, encoded: bytes, material: Secret) -> None:
        """Make a segment that both ends have compared durable and issuable. The material stays the caller's."""
        facts = SegmentFacts.of(encoded)
        segment = Segment.fresh(peer, facts)
        sealed = await self.strands.seal(segment, material)
        try:
            await self._ctx.store.commit(
                [
                    Insert(Table.SEGMENT, segment.id, segment_row(segment).value),
                    Insert(Table.SEGMENT_BYTES, segment.id, rows.encode(rows.SealedRow.of(sealed))),
                    self._ledger_entry(facts.record, encoded),
                ]
            )
        except BaseException:
            await self._ctx.sealer.erase([sealed.handle])
            raise
        self.pair(peer).segments.add(segment)
        self._ctx.counters["segments_filled"] += 1
        self._ctx.counters["slots_filled"] += facts.record.slots

    def _ledger_entry(self, record: SegmentRecord, encoded: bytes) -> Append:
        terms = [f"segment:{record.segment.hex()}"]
        terms += [f"node:{node}" for node in sorted({record.leader, record.follower, *record.known_to})]
        terms += [f"link:{hop.link}" for hop in record.hops]
        return Append(self._ctx.clock.now(), "segment", encoded, tuple(dict.fromkeys(terms)))

    async def drop_segment(self, segment: Segment) -> None:
        """Destroy a segment: its own key first, then its rows."""
        pair = self.pair(segment.peer)
        if pair.segments.get(segment.id) is None:
            return
        pair.segments.remove(segment.id)
        changes: list[Change] = [Delete(Table.SEGMENT, segment.id), Delete(Table.SEGMENT_BYTES, segment.id)]
        going = [*issued_of(self._issuing(segment)), *delivered_of(pair.held.of_segment(segment.id))]
        changes += self._drop_issuing(segment)
        for held in pair.held.of_segment(segment.id):
            changes += self.granting.forget(segment.peer, held)
        await self.strands.erase(segment)
        await self._journal.flush_of(segment.id)  # the rows say until then what may lack a record
        await self._ctx.store.commit([*await owed(self._ctx, self._journal, segment.peer, going), *changes])

    def _drop_issuing(self, segment: Segment) -> list[Change]:
        """Let go of the windows of a segment that this node issues from."""
        return [self._let_issuing_go(segment.peer, window) for window in self._issuing(segment)]

    def _issuing(self, segment: Segment) -> list[IssuerWindow]:
        return [one for one in self.pair(segment.peer).issuer if one.facts is segment.facts]

    def _let_issuing_go(self, peer: NodeId, window: IssuerWindow) -> Change:
        """Issue no more from a window; say what to delete."""
        pair = self.pair(peer)
        pair.issuer.remove(window.number)
        self._used_up.pop((peer, window.number), None)
        pair.segments.look_again(window.facts.record.segment)
        return Delete(Table.WINDOW, rows.window_key(rows.ISSUER, peer, window.number))

    # --- beside the instance that leads (kms.second)

    def knows(self, peer: NodeId, segment: bytes) -> bool:
        return segment in self.pair(peer).segments

    def know(self, peer: NodeId, facts: SegmentFacts) -> None:
        """Take note of a segment of which the lead has windows; this instance grants nothing of it."""
        self.pair(peer).segments.add(Segment(peer, facts))

    async def share_window(self, peer: NodeId, number: int, row: rows.IssuerWindowRow) -> bool:
        """Issue from a window that the lead was granted; tell whether its strands could be opened."""
        segment = self.pair(peer).segments[row.segment]
        try:
            await self.strands.opened(peer, segment.id)
        except StoreUnavailableError:
            raise
        except (AuthenticationError, UnavailableError):  # the lead has dropped it
            return False
        window = IssuerWindow(number, segment.facts, row.first, row.count, row.next, row.next, beyond=row.next)
        try:
            self.pair(peer).issuer.add(window)
        except ValueError:  # what the lead held there before is not forgotten yet
            return False
        return True

    def close_unused(self) -> None:
        """Let go of the strands of segments that no window names any more."""
        for pair in self._pairs.values():
            for segment in [one for one in pair.segments.values() if not one.users and not self._in_use(pair, one)]:
                pair.segments.remove(segment.id)
                if segment.open is not None:
                    segment.open.wipe()

    def forget_all(self) -> None:
        """Let go of every window and every strand in memory; the store keeps them."""
        for pair in self._pairs.values():
            for window in list(pair.issuer):
                pair.issuer.remove(window.number)
            pair.held.clear()
        self.close_unused()

    # --- what this node has issued

    async def given_up(self) -> dict[NodeId, list[Going]]:
        """Return what was issued and delivered by now, by whichever instance, of windows that others use too."""
        found: dict[NodeId, list[Going]] = {}
        for peer, pair in list(self._pairs.items()):
            issued = issued_of(pair.issuer)
            found[peer] = [*issued, *await self.granting.delivered_beside(peer)]
        return found

    async def release_reserved(self) -> dict[NodeId, tuple[WindowMark, ...]]:
        """Issue nothing more in this life, and give up durably what was not issued; it may be granted again.

        Returns:
            How far each window was issued, by the node that granted it, which is to be told.
        """
        told: dict[NodeId, tuple[WindowMark, ...]] = {}
        going: dict[NodeId, list[Going]] = {}
        changes: list[Change] = []
        for peer, pair in self._pairs.items():
            told[peer] = self.marks(peer)
            if self._ctx.shared is not None:
                await self.reserving.read_marks(peer)
                going[peer] = issued_of(pair.issuer)
                for window in pair.issuer:
                    window.next = window.reserved = window.mark  # what is in hand anywhere is given up
                    window.later.clear()
                    row = issuer_row(peer, window, window.mark)
                    changes.append(Expect(row.table, row.key, row.value))
                told[peer] = self.marks(peer)
            for window in list(pair.issuer):
                segment = pair.segments[window.facts.record.segment]
                segment.theirs = segment.theirs.with_range(window.next, window.left)
                changes += [self._let_issuing_go(peer, window), segment_row(segment)]
        await self._journal.flush()
        for peer, some in going.items():
            changes += await owed(self._ctx, self._journal, peer, some)
        if changes:
            await self._ctx.store.commit(changes)
        return told

    def marks(self, peer: NodeId) -> tuple[WindowMark, ...]:
        """Return how far this node has issued in each of its windows."""
        return tuple(
            WindowMark(window.number, window.issued, tuple(window.void)) for window in self.pair(peer).issuer
        )

    # --- stock

    def issuable(self, peer: NodeId, *, full: bool, accept: Accept | None = None) -> int:
        """Return the slots this node can issue to `peer` without another window."""
        return self.pair(peer).issuer.available(full=full, accept=accept)

    def ungranted(self, peer: NodeId, issuer: NodeId, *, full: bool, accept: Accept | None = None) -> int:
        """Return the slots of ready segments that the other node may still grant to `issuer`."""
        return self.pair(peer).segments.slots(mine=issuer == peer, full=full, accept=accept)

    # --- upkeep

    async def tidy(self, peer: NodeId, *, key_lifetime: Nanoseconds, max_age: Mapping[bool, Seconds]) -> None:
        """Close what is over: exhausted windows, expired keys, spent and aged segments.

        Args:
            peer: of the pair.
            key_lifetime: how long a key may wait to be fetched.
            max_age: how old strands may become, with QKD (True) and without (False).
        """
        await self.granting.regain_untold(peer)
        pair = self.pair(peer)
        now = self._ctx.clock.now()
        changes: list[Change] = []
        going: list[Going] = []
        for held in pair.held.over(Nanoseconds(now - key_lifetime)):
            if not pair.segments[held.facts.record.segment].users:
                going += delivered_of([held])
                self._ctx.counters["slots_expired"] += max(0, held.issued - len(held.delivered | held.void))
                changes += self.granting.forget(peer, held)
        oldest = {full: Nanoseconds(now - nanoseconds(age)) for full, age in max_age.items()}
        for aged in [window for window in pair.issuer if window.facts.record.created < oldest[window.facts.full]]:
            self._ctx.counters["slots_aged"] += aged.left
            going += issued_of([aged])
            changes.append(self._let_issuing_go(peer, aged))
        if changes:
            await self._journal.flush()
            await self._ctx.store.commit([*await owed(self._ctx, self._journal, peer, going), *changes])
        over = pair.segments.maybe_over()
        over += [one for full, moment in oldest.items() for one in pair.segments.made_before(moment, full=full)]
        for segment in over:
            if segment.users:
                pair.segments.look_again(segment.id)
            elif not self._in_use(pair, segment):  # a window may have come while another was dropped
                await self.drop_segment(segment)

    async def retire_issued(self, peer: NodeId, told: Sequence[WindowMark]) -> None:
        """Forget the windows that are used up, once the peer has been told so."""
        pair = self.pair(peer)
        changes: list[Change] = []
        going: list[Going] = []
        for mark in told:
            window = pair.issuer.get(mark.window)
            if window is None or window.left or mark.issued < window.count or len(mark.void) < len(window.void):
                continue
            if window.shared and not self._has_rested(peer, window):
                continue
            going += issued_of([window])
            changes.append(self._let_issuing_go(peer, window))
        if changes:
            await self._journal.flush()
            await self._ctx.store.commit([*await owed(self._ctx, self._journal, peer, going), *changes])

    def _has_rested(self, peer: NodeId, window: IssuerWindow) -> bool:
        """Tell whether other instances have had time to issue the rest of a window, and to record it."""
        now = self._ctx.clock.elapsed()
        return now - self._used_up.setdefault((peer, window.number), now) >= 2 * self._ctx.settings.lease

    @staticmethod
    def _in_use(pair: Pair, segment: Segment) -> bool:
        return pair.held.needs(segment.id) or any(window.facts is segment.facts for window in pair.issuer)
