"""Moving unused slots: from one direction of a pair to the other (cede), and back to the holder at a stop.

*Cede.* Slots that this node may still grant it can issue itself: it gives them up durably, then asks the other to
hold them, and issues from the window that the other answers. Asking again, in the same lives, gets the same answer.
By demand only: this node is short, and the peer can do without.

*Hand-back.* A node that stops in good order gives up durably what it was granted and has not issued, then says so in
Leave; the holder makes those slots grantable again, durably, under fresh windows. Both ends keep in mind which slots
they have seen, so neither a copy of one nor of the other makes a slot issuable twice (docs/adr/0019; formal/).

May not take a slot out of a window that is in use, nor decide what demand is (kms.demand).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from trenza.base.errors import RefusedError, RemoteProtocolError, UnavailableError
from trenza.base.names import NodeId
from trenza.base.units import Seconds
from trenza.core.slot_set import Range
from trenza.core.window import HeldWindow
from trenza.kms.context import Context, Session
from trenza.kms.demand import Demand, Surplus
from trenza.kms.granting import grant_of, held_row
from trenza.kms.pairs import segment_row
from trenza.kms.pools import Pools
from trenza.kms.ports import Change
from trenza.kms.stock import Segment
from trenza.wire.peer import Cede, Leave, Presence, WindowAnswer, WindowGrant, WindowMark


@dataclass(slots=True, eq=False)
class _Asked:
    """Slots that this node has given up and asked for: nobody's, until the answer comes."""

    segment: Segment
    first: int
    count: int
    lives: tuple[bytes, bytes]  # of this node and the peer; an answer counts in these alone
    since: Seconds  # of the first question, or of the giving up
    is_durable: bool = False  # until then the peer is not asked

    def is_answered_by(self, grant: WindowGrant) -> bool:
        return (grant.segment, grant.first, grant.count) == (self.segment.id, self.first, self.count)


class Cedes:
    """The slots that change direction between this node and others."""

    def __init__(self, ctx: Context, *, pools: Pools, demand: Demand) -> None:
        self._ctx = ctx
        self._pools = pools
        self._demand = demand
        self._asked: defaultdict[NodeId, list[_Asked]] = defaultdict(list)
        self._asking: defaultdict[NodeId, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._answering: defaultdict[NodeId, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.on_reached: Callable[[NodeId, Presence | None], Awaitable[None]] | None = None
        """Remembers, durably, how far a peer has got that answers with a window."""

    # --- the side that wants to issue

    async def step(self, peer: NodeId, wanted: int = 0) -> int:
        """Ask again what has no answer; then cede to this node what it is short of and the peer can spare.

        Args:
            peer: of the pair.
            wanted: slots that a request lacks right now.

        Returns:
            The slots that this node can issue now and could not before.

        Raises:
            TrenzaError: not now; what was given up is asked for again at the next step, for some time from the first
                question on.
        """
        async with self._asking[peer]:
            self._ctx.session(peer)
            won = 0
            for asked in list(self._asked[peer]):
                won += await self._ask(peer, asked)
            for surplus in self._demand.surplus(peer, wanted=wanted):
                for asked in await self._give_up(peer, surplus):
                    won += await self._ask(peer, asked)
            return won

    async def _give_up(self, peer: NodeId, surplus: Surplus) -> list[_Asked]:
        """Take slots out of what may be granted, from the upper end, durably: from here on they are nobody's."""
        session = self._ctx.session(peer)
        missing = surplus.slots
        given_up: list[_Asked] = []
        stock = self._pools.pair(peer).segments
        for segment in stock.giving(mine=True, full=surplus.kind.full, accept=surplus.accept):
            if missing <= 0:
                break
            while missing > 0 and segment.mine:
                first, count = segment.mine.highest(missing)
                segment.mine = segment.mine.without(first, count)
                missing -= count
                now = self._ctx.clock.elapsed()
                given_up.append(_Asked(segment, first, count, _lives(session), now))
        for asked in given_up:
            asked.segment.users += 1  # it is not tidied away while its slots are nobody's
            self._asked[peer].append(asked)
        await self._make_durable(peer, given_up)
        return given_up

    async def _make_durable(self, peer: NodeId, given_up: Sequence[_Asked]) -> None:
        """Give slots up durably. If that seems to fail nothing is lost: nobody was asked; the next step tries again.

        Raises:
            StoreUnavailableError: not now.
        """
        if not given_up:
            return
        changed = {asked.segment.id: segment_row(asked.segment) for asked in given_up}
        await self._ctx.store.commit(list(changed.values()))
        lives, now = _lives(self._ctx.session(peer)), self._ctx.clock.elapsed()
        for asked in given_up:
            asked.lives, asked.since, asked.is_durable = lives, now, True

    async def _ask(self, peer: NodeId, asked: _Asked) -> int:
        """Ask the peer to hold what was given up, and take it over; return the slots of the new window."""
        ctx = self._ctx
        if not asked.is_durable:
            if self._pools.pair(peer).segments.get(asked.segment.id) is not asked.segment:
                self._settle(peer, asked, lost=False)  # it was dropped, and its row must not come back
                return 0
            await self._make_durable(peer, [asked])
        session = ctx.session(peer)
        patience = 4 * ctx.settings.call_timeout
        if asked.lives != _lives(session) or ctx.clock.elapsed() - asked.since > patience:
            self._settle(peer, asked, lost=True)
            return 0
        message = Cede(session.id, asked.segment.id, asked.first, asked.count)
        try:
            answer = await ctx.peers.call(peer, message, timeout=ctx.settings.call_timeout)
        except RefusedError as error:
            if error.remote_code != UnavailableError.code:
                self._settle(peer, asked, lost=True)
            raise
        grants = answer.grants if isinstance(answer, WindowAnswer) else ()
        if isinstance(answer, WindowAnswer) and self.on_reached is not None:
            await self.on_reached(peer, answer.reached)
        if len(grants) != 1 or not asked.is_answered_by(grants[0]) or asked.lives != _lives(ctx.session(peer)):
            self._settle(peer, asked, lost=True)
            raise RemoteProtocolError(f"node {peer} did not answer a cede with a window of these slots")
        self._settle(peer, asked, lost=False)
        if self._pools.pair(peer).segments.get(asked.segment.id) is not asked.segment:
            return 0  # dropped meanwhile, at both ends
        if not await self._pools.taking.take_over(asked.segment, grants[0]):
            return 0
        ctx.counters["slots_ceded_here"] += asked.count
        return asked.count

    def _settle(self, peer: NodeId, asked: _Asked, *, lost: bool) -> None:
        self._asked[peer].remove(asked)
        asked.segment.users -= 1
        if lost:
            self._ctx.counters["slots_lost_in_cede"] += asked.count

    # --- the side that holds

    async def handle(self, peer: NodeId, message: Cede) -> WindowAnswer:
        """Hold what the peer has given up to issue itself: a window, durable before the answer leaves.

        Raises:
            RemoteProtocolError: not all of these slots are the peer's to give; nothing was changed.
            UnavailableError: another session.
        """
        async with self._answering[peer]:
            session = self._ctx.session_of(peer, message.session)
            segment = self._pools.pair(peer).segments.get(message.segment)
            if segment is None:
                raise self._refused(f"node {peer} cedes slots of a segment that this node does not hold")
            held = self._asked_before(peer, segment, message, session)
            if held is not None:
                held.granted = self._ctx.clock.now()  # the peer has only now heard of it
                return WindowAnswer((grant_of(held),))
            if not segment.theirs.covers(message.first, message.count):
                raise self._refused(f"node {peer} cedes slots that are not its own to give")
            segment.theirs = segment.theirs.without(message.first, message.count)
            changes: list[Change] = []
            held = self._pools.granting.hold(segment, message.first, message.count, changes)
            await self._ctx.store.commit([*changes, segment_row(segment), self._pools.granting.numbers_row(peer)])
            held.ceded = True
            self._ctx.counters["slots_ceded_away"] += held.count
            return WindowAnswer((grant_of(held),))

    def _asked_before(self, peer: NodeId, segment: Segment, message: Cede, session: Session) -> HeldWindow | None:
        """Return the window that answered this very question of this very life."""
        for held in self._pools.pair(peer).held.open:
            same = (held.first, held.count) == (message.first, message.count) and held.facts is segment.facts
            if same and held.ceded and held.life == session.theirs.nonce:
                return held
        return None

    def _refused(self, why: str) -> RemoteProtocolError:
        self._ctx.counters["cedes_refused"] += 1
        return RemoteProtocolError(why)

    # --- stopping in good order

    async def take_back(self, peer: NodeId, leave: Leave) -> None:
        """Make grantable again what the peer, which stops, has given up of the windows of its life.

        Raises:
            UnavailableError: it is not the session's peer that speaks; nothing was changed.
        """
        session = self._ctx.session_of(peer, leave.session)
        await self._pools.granting.note_marks(peer, leave.marks)
        changes: list[Change] = []
        freed: list[tuple[Segment, Range]] = []
        for mark in leave.marks:
            held = self._pools.pair(peer).held.get(mark.window)
            if held is not None and held.life == session.theirs.nonce:
                freed += self._let_go(peer, held, mark, changes)
        for segment in {one.id: one for one, _ in freed}.values():
            mine = segment.mine
            for first, count in _of(freed, segment):
                mine = mine.with_range(first, count)
            changes.append(segment_row(segment, mine=mine))
        if changes:
            await self._ctx.store.commit(changes)
        for segment, (first, count) in freed:  # not before: what is granted again must be free on disk
            segment.mine = segment.mine.with_range(first, count)
            self._ctx.counters["slots_handed_back"] += count

    def _let_go(
        self, peer: NodeId, held: HeldWindow, mark: WindowMark, changes: list[Change]
    ) -> Iterable[tuple[Segment, Range]]:
        """Shrink a window to what was issued of it."""
        free = held.take_back(mark.issued)
        if free is None:
            return
        self._pools.pair(peer).held.close(held, self._ctx.clock.now())
        changes += [held_row(peer, held)] if held.count else self._pools.granting.forget(peer, held)
        yield self._pools.pair(peer).segments[held.facts.record.segment], free


def _of(freed: Iterable[tuple[Segment, Range]], segment: Segment) -> list[Range]:
    return [free for one, free in freed if one is segment]


def _lives(session: Session) -> tuple[bytes, bytes]:
    return session.mine.nonce, session.theirs.nonce
