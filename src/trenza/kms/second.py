"""An instance that serves applications beside the one that leads its node, out of the same store.

It holds a `Node` of which nothing runs: the same stories find, reserve, braid and deliver, over what is read from the
lead's rows a few times a second, and once more where something was not found. It never speaks to a peer or a device.
What makes two instances safe is in the commits and not here: a sub-range is reserved only if the window's row is as
it was read, a key is delivered only if nobody has inserted its delivery and its window still is (docs/adr, "Several
instances of one node"). What is read here may be old; then a commit conflicts, and it is read again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID

from trenza.base.errors import TrenzaError, UnavailableError
from trenza.base.names import NodeId, SaeId
from trenza.base.secret import Secret
from trenza.base.units import NANOSECONDS_PER_SECOND, Seconds
from trenza.core.policy import SignedBook, open_book
from trenza.core.segment import SegmentFacts
from trenza.kms import rows
from trenza.kms.context import Context, Session
from trenza.kms.issuing import Accept
from trenza.kms.node import Node
from trenza.kms.ports import Anchor, SharedStore, Table
from trenza.kms.reign import LEASES, REIGN, LeaseRow, ReignRow
from trenza.wire.peer import Presence

REFRESH_EVERY = Seconds(0.2)

FINISHES_WITHIN = Seconds(2.0)
"""How long an instance that ends waits for fetches under way: their marks may be on the way to the store."""

_MARGIN = Seconds(0.25)
"""How much earlier than the lead this instance stops issuing under a lease: for clocks that are not quite alike."""

_PATIENCE = Seconds(4.0)
"""How long a request waits for this instance to know who leads."""


class Second:
    """One instance beside the lead. Made once for each time that it is beside one."""

    def __init__(self, ctx: Context, *, anchor: Anchor) -> None:
        """Prepare; `refresh` first finds out who leads.

        Args:
            ctx: with a store that is shared; nobody else's.
            anchor: asked by nobody here.
        """
        assert ctx.shared is not None
        self._ctx = ctx
        self._shared: SharedStore = ctx.shared
        ctx.presence = Presence(0, 0, bytes(ctx.entropy.token(16)))
        self.node = Node(ctx, anchor=anchor, leads=False)
        self.node.pools.reserving.may_reserve = lambda: self.reign is not None and not self._is_over
        self.node.shares.stock_of = self._stock_of
        self.node.fetching.look_again = self.look_again
        self.node.fetching.is_current = lambda: self.is_trusted
        self.node.fetching.vouches = self._vouches
        self.node.issuing.on_short = self._refill
        self.reign: ReignRow | None = None
        """What the lead that is in force said last; None while none has been seen to live."""
        self._is_in_force = False  # when it was last read, that lead's word stood
        self._first_seen: bytes | None = None  # a reign's row that proves nothing
        self._token = -1
        self._known: dict[bytes, bytes] = {}  # rows of windows as they were taken in
        self._leases: dict[NodeId, LeaseRow] = {}
        self._epochs: dict[NodeId, int] = {}  # of the peers' lives that the lead last met
        self._used_up: dict[tuple[NodeId, int], Seconds] = {}  # windows whose rows are gone: until when
        self._refreshing = asyncio.Lock()
        self._turns = 0
        self._trusted = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_over = False

    def under(self, token: int) -> None:
        """Go on under the lead that this very process has taken, whose life is not ready yet."""
        self._token = token
        self._shared.under(token)

    @property
    def is_trusted(self) -> bool:
        """Tell whether the lead that is in force has been seen to live by this instance, and by the last look."""
        known = self.reign is not None and self.reign.token == self._token
        return known and self._is_in_force and not self._is_over

    async def ready(self) -> None:
        """Return when it is known who leads, or a request has waited long enough."""
        if not self._trusted.is_set():
            try:
                async with asyncio.timeout(_PATIENCE):
                    await self._trusted.wait()
            except TimeoutError:
                raise UnavailableError("no instance leads this node now; try again later") from None

    async def run(self) -> None:
        """Write records behind, until cancelled."""
        await self.node.journal.run()

    async def end(self) -> None:
        """Let go of everything. Fetches under way may finish, and what was noted is written if the store takes it."""
        self._is_over = True
        self._ctx.until = Seconds(
            0.0
        )  # doors may keep orders of this instance: what they note now is written by nobody
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.node.fetching.finished(within=FINISHES_WITHIN)
        try:
            await self.node.journal.flush()
        except TrenzaError:
            self._ctx.counters["journal_writes_failed"] += 1
        self._forget_all()
        self._ctx.retire()

    # --- learning

    async def refresh(self, token: int) -> None:
        """Read what has changed.

        Args:
            token: of the lead in force, read before this was called.

        Raises:
            StoreUnavailableError: not now.
        """
        async with self._refreshing:
            await self._refresh(token)
            self._turns += 1

    async def look_again(self, caller: SaeId, key_ids: Sequence[UUID]) -> None:
        """Read what is behind these key IDs: a request named what this instance does not know."""
        found = [key_id for key_id in key_ids if await self.node.waiting.find(key_id, caller)]
        if len(found) == len(key_ids):
            return
        turns = self._turns
        async with self._refreshing:
            if self._turns < turns + 2:  # whoever waited has had a whole turn that began after it came
                await self._refresh(self._token)
                await self.node.id_keys.refresh()
                self._turns += 1

    async def _refresh(self, token: int) -> None:
        shared = self._shared
        before = self._ctx.clock.elapsed()
        moment = await shared.moment()
        value = await shared.get(Table.META, REIGN)
        leases = await shared.scan(Table.META, LEASES)
        windows = await shared.scan(Table.WINDOW)
        if self._first_seen is None:
            self._first_seen = value or b""
        if token != self._token:
            self._token = token
            shared.under(token)
        reign = None if value is None or value == self._first_seen else rows.decode(value, ReignRow)
        self._is_in_force = reign is not None and reign.token == token
        if reign is None or reign.token != token:
            return  # nobody leads, another does, or it has not said yet what it found: go on with what is in hand
        former, self.reign = self.reign, reign
        if former is not None and former.epoch != reign.epoch:
            self._forget_all()
        if former is None or former.token != reign.token:
            self._inherit()
        await self._follow_book(reign.book_version)
        await self._follow_leases(leases, moment, before)
        await self._follow_windows(windows)
        self._trusted.set()

    def _inherit(self) -> None:
        """Another life of the node has begun: what is in hand of the last one is good as long as its leases are.

        Nothing more can be reserved of its windows, which are granted to that life alone.
        """
        self._leases.clear()
        self._known.clear()
        until = Seconds(self._ctx.clock.elapsed() + self._ctx.settings.lease)
        for peer in self.node.pools.peers:
            for window in self.node.pools.pair(peer).issuer:
                window.beyond = window.end
                self._used_up[peer, window.number] = until
            self.node.pools.pair(peer).held.clear()

    async def _follow_book(self, version: int) -> None:
        ctx = self._ctx
        if not ctx.has_book:
            await self.node.books.load(None)
        if ctx.has_book and ctx.book.version < version:
            value = await self._shared.get(Table.META, rows.BOOK)
            if value is not None:
                signed = SignedBook.decode(value)
                ctx.set_book(open_book(signed, officer=ctx.officer, newer_than=ctx.book.version), signed)

    async def _follow_leases(self, found: list[tuple[bytes, bytes]], moment: Seconds, asked: Seconds) -> None:
        leases = {NodeId(key[len(LEASES) :].decode()): rows.decode(value, LeaseRow) for key, value in found}
        ring, ctx = self.node.id_keys, self._ctx
        if any(not ring.has(peer, row.under) or not ring.has(peer, row.session) for peer, row in leases.items()):
            await ring.refresh()
        for peer in self._leases.keys() - leases.keys():
            ctx.sessions.pop(peer, None)  # the lead has ended it
        for peer, row in leases.items():
            if not ring.has(peer, row.under):
                continue
            if self._leases.get(peer) != row or peer not in ctx.sessions:
                self._take_lease(peer, row, Seconds(row.until / NANOSECONDS_PER_SECOND - moment - _MARGIN + asked))
        self._leases = leases

    def _vouches(self, peer: NodeId) -> bool:
        return self.reign is not None and peer in self.reign.vouching

    def _take_lease(self, peer: NodeId, row: LeaseRow, until: Seconds) -> None:
        ctx = self._ctx
        session = ctx.sessions.get(peer)
        until = min(until, Seconds(ctx.clock.elapsed() + ctx.settings.lease))
        if self._epochs.setdefault(peer, row.theirs.epoch) != row.theirs.epoch:  # it has dropped what it held for us
            self._epochs[peer] = row.theirs.epoch
            for number in [window.number for window in self.node.pools.pair(peer).issuer]:
                self._drop_issuer(peer, number)
        if session is not None and session.id == row.session:
            session.lease_until = max(session.lease_until, until)
        else:
            session = Session(
                row.session, peer, ctx.presence, row.theirs, Secret(bytearray()), ctx.clock.elapsed(), until
            )
            ctx.sessions[peer] = session
        self.node.id_keys.issue_under(peer, row.under)

    async def _follow_windows(self, found: list[tuple[bytes, bytes]]) -> None:
        known = self._known  # of what was taken in, and nothing else: whatever fails on the way is tried again
        for key, value in found:
            if known.get(key) == value:
                continue
            peer, rest = rows.split_peer(key[1:])
            number = int.from_bytes(rest, "big")
            if key[:1] == rows.HOLDER:
                await self._follow_held(peer, number, rows.decode(value, rows.HeldWindowRow))
            elif not await self._follow_issuer(peer, number, rows.decode(value, rows.IssuerWindowRow)):
                known.pop(key, None)  # its segment could not be opened: perhaps next time
                continue
            known[key] = value
        for key in known.keys() - dict(found).keys():
            del known[key]
            peer, rest = rows.split_peer(key[1:])
            number = int.from_bytes(rest, "big")
            if key[:1] == rows.HOLDER:
                self.node.pools.pair(peer).held.remove(number)
            else:
                self._end_issuer(peer, number)
        self._tidy()

    async def _follow_held(self, peer: NodeId, number: int, row: rows.HeldWindowRow) -> None:
        if await self._segment(peer, row.segment):
            self.node.pools.granting.follow(peer, number, row)

    async def _follow_issuer(self, peer: NodeId, number: int, row: rows.IssuerWindowRow) -> bool:
        pools = self.node.pools
        window = pools.pair(peer).issuer.get(number)
        if window is not None and (window.facts.record.segment, window.first) == (row.segment, row.first):
            if not pools.pair(peer).reserving.locked():
                window.beyond = max(window.beyond, row.next)
            return True
        if not await self._segment(peer, row.segment):
            return False
        pools.pair(peer).issuer.remove(number)
        return await pools.share_window(peer, number, row)

    def _end_issuer(self, peer: NodeId, number: int) -> None:
        """Stop issuing from a window that the lead holds no more: used up, a little later than it."""
        window = self.node.pools.pair(peer).issuer.get(number)
        if window is None:
            return
        if window.mark >= window.end and window.in_hand:
            self._used_up[peer, number] = Seconds(self._ctx.clock.elapsed() + self._ctx.settings.lease)
        else:
            self._drop_issuer(peer, number)

    def _drop_issuer(self, peer: NodeId, number: int) -> None:
        window = self.node.pools.pair(peer).issuer.get(number)
        if window is not None:
            self._ctx.counters["slots_given_up_beside"] += window.in_hand
            self.node.pools.pair(peer).issuer.remove(number)

    def _tidy(self) -> None:
        now = self._ctx.clock.elapsed()
        for (peer, number), until in list(self._used_up.items()):
            window = self.node.pools.pair(peer).issuer.get(number)
            if now >= until or window is None or not window.in_hand:
                del self._used_up[peer, number]
                self._drop_issuer(peer, number)
        self.node.pools.close_unused()

    async def _segment(self, peer: NodeId, segment: bytes) -> bool:
        """Know a segment of a window; tell whether it is still there."""
        if self.node.pools.knows(peer, segment):
            return True
        value = await self._shared.get(Table.SEGMENT, segment)
        if value is None:
            return False
        self.node.pools.know(peer, SegmentFacts.of(rows.decode(value, rows.SegmentRow).record))
        return True

    def _forget_all(self) -> None:
        """Let go of every strand: the lead has begun a new epoch, or this instance ends."""
        self._ctx.sessions.clear()
        self._leases.clear()
        self._known.clear()
        self._used_up.clear()
        self.node.pools.forget_all()

    # --- issuing

    def _stock_of(self, peer: NodeId, full: bool) -> int:
        lease = self._leases.get(peer)
        ungranted = 0 if lease is None else lease.ungranted_full if full else lease.ungranted_plain
        return self.node.pools.issuable(peer, full=full) + ungranted

    def _refill(self, peer: NodeId, full: bool, accept: Accept) -> bool:
        if self._is_over:
            return False
        task = asyncio.get_running_loop().create_task(self._refilled(peer, full, accept), name=f"refill {peer}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _refilled(self, peer: NodeId, full: bool, accept: Accept) -> None:
        try:
            await self.node.issuing.refill(peer, full=full, accept=accept)
        except TrenzaError:
            self._ctx.counters["refills_failed"] += 1

    async def stock_up(self, seconds: Seconds) -> None:
        """Take into hand what so many seconds of demand need: for the time in which nobody leads.

        Raises:
            StoreUnavailableError: not now.
        """
        for peer in list(self._ctx.sessions):
            for full in (True, False):
                flow = self.node.demand.flow(peer, full=full)
                wanted = int(flow.per_second(self._ctx.clock.elapsed()) * seconds)
                if wanted:
                    await self.node.pools.reserving.reserve(
                        peer, max(wanted, flow.chunk), full=full, accept=lambda _: True
                    )
