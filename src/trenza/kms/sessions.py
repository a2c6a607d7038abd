"""Sessions: two nodes meet, prove which life each lives, agree on keys, and drop what only one of them holds.

The leader opens sessions; a follower that has none knocks. Two live incarnations of one node are refused: while the
lease of the one we know is running, another must wait, unless it lives at the same place: it came after its end.
A peer that has met a later life of this node than the one that speaks says so, and this node begins anew
(kms.own_life; docs/adr/0005-windows-and-lives.md).
"""

from __future__ import annotations

from collections import defaultdict

from trenza.base.errors import AuthenticationError, RemoteProtocolError, StaleError, UnavailableError
from trenza.base.names import NodeId
from trenza.base.rate import TokenBucket
from trenza.base.units import Seconds
from trenza.core.exchange import session_keys
from trenza.kms.context import Context, Session
from trenza.kms.exchange import Agreed, Exchanges
from trenza.kms.id_keys import IdKeyRing
from trenza.kms.ingest import Ingest
from trenza.kms.lives import is_later, is_same
from trenza.kms.met import Met
from trenza.kms.own_life import OwnLife
from trenza.kms.pools import Pools
from trenza.wire.peer import (
    PROTOCOL_VERSION,
    Beat,
    BeatAnswer,
    Done,
    ExchangeAnswer,
    ExchangeOffer,
    Hello,
    HelloAnswer,
    Knock,
    PeerMessage,
    Presence,
    RootReset,
    StockMark,
    Superseded,
    canonical,
    life_message,
)

_NO_OFFER = ExchangeOffer(b"", b"", 0, b"", b"")
_NO_ANSWER = ExchangeAnswer(b"", b"", b"")
"""Stand in for the exchange while the rest of the message is encoded: the exchange covers all but itself."""

_MEETINGS_PER_SECOND, _MEETINGS_AT_ONCE = 0.2, 10.0
"""Sessions with one peer: each costs an exchange and leaves ID keys behind, so none may ask for them without end."""


class Sessions:
    """All sessions of this node."""

    def __init__(
        self,
        ctx: Context,
        *,
        life: OwnLife,
        met: Met,
        exchanges: Exchanges,
        id_keys: IdKeyRing,
        pools: Pools,
        ingest: Ingest,
    ) -> None:
        self._ctx = ctx
        self._life = life
        self._met = met
        self._exchanges = exchanges
        self._pools = pools
        self._ingest = ingest
        self._heard: dict[NodeId, Seconds] = {}  # when a life we know last spoke
        self._id_keys = id_keys
        self._meetings: defaultdict[NodeId, TokenBucket] = defaultdict(
            lambda: TokenBucket(_MEETINGS_PER_SECOND, _MEETINGS_AT_ONCE)
        )

    # --- the leader opens

    async def open(self, peer: NodeId) -> None:
        """Open a session with a node that this one leads.

        Raises:
            PeerUnavailableError, UnavailableError: not now.
            RemoteProtocolError: the other broke the protocol.
        """
        self._refuse_if_too_often(peer)
        since = self._ctx.clock.elapsed()
        answer, agreed, hello = await self._say_hello(peer, root_reset=self._exchanges.root(peer).generation == 0)
        if isinstance(answer, RootReset):
            since = self._ctx.clock.elapsed()
            answer, agreed, hello = await self._say_hello(peer, root_reset=True)
        match answer:
            case Superseded(known=known):
                await self._life.begin_anew(after=known)
                raise UnavailableError(f"node {peer} has met a later life of this node; starting a new one")
            case HelloAnswer() if agreed is not None:
                self._met.refuse_earlier_life(peer, answer.presence)
                self._refuse_if_superseded(peer, answer.knows)
                self._meetings[peer].spend(1, self._ctx.clock.elapsed())
                await self._establish(
                    peer, answer.presence, agreed, hello, answer.segments, answer.blocks, since=since
                )
                await self._met.note_vouched(peer)
            case _:
                raise RemoteProtocolError(f"node {peer} answered hello with {type(answer).__name__}")

    async def _say_hello(self, peer: NodeId, *, root_reset: bool) -> tuple[PeerMessage, Agreed | None, Hello]:
        ctx = self._ctx
        hello = Hello(
            PROTOCOL_VERSION,
            ctx.presence,
            self._met.life_of(peer),
            root_reset,
            self._pools.ready_segments(peer),
            self._ingest.blocks_with(peer),
            _NO_OFFER,
        )
        context = canonical(hello)
        offer, begun = self._exchanges.begin(peer, context=context, anew=root_reset)
        hello = Hello(
            hello.version, hello.presence, hello.knows, hello.root_reset, hello.segments, hello.blocks, offer
        )
        answer = await ctx.peers.call(peer, hello, timeout=ctx.settings.call_timeout)
        if not isinstance(answer, HelloAnswer):
            return answer, None, hello
        agreed = await self._exchanges.finish(peer, begun, answer.exchange, context=_context_of_answer(answer))
        return answer, agreed, hello

    # --- the follower answers

    async def handle_hello(self, peer: NodeId, hello: Hello) -> PeerMessage:
        """Answer a leader's hello."""
        ctx = self._ctx
        if ctx.leads(peer):
            raise RemoteProtocolError(f"node {peer} does not lead this pair")
        if hello.version != PROTOCOL_VERSION:
            raise RemoteProtocolError(f"peer protocol version {hello.version}; this node speaks {PROTOCOL_VERSION}")
        self._refuse_if_too_often(peer)
        if (later := self._met.later_life(peer, hello.presence)) is not None:
            return Superseded(later)
        if hello.knows is not None and is_later(hello.knows, ctx.presence):
            await self._life.begin_anew(after=hello.knows)
        self._refuse_two_lives(peer, hello.presence)
        self._meetings[peer].spend(1, ctx.clock.elapsed())
        bare = Hello(
            hello.version, hello.presence, hello.knows, hello.root_reset, hello.segments, hello.blocks, _NO_OFFER
        )
        partial = HelloAnswer(
            ctx.presence,
            self._met.life_of(peer),
            self._pools.ready_segments(peer),
            self._ingest.blocks_with(peer),
            _NO_ANSWER,
        )
        try:
            exchange, agreed = await self._exchanges.answer(
                peer,
                hello.exchange,
                context=canonical(bare),
                answer_context=_context_of_answer(partial),
                anew=hello.root_reset,
            )
        except (StaleError, AuthenticationError):
            self._meetings[peer].spend(-1, ctx.clock.elapsed())  # nothing came of it, and why is worth hearing again
            if hello.root_reset:
                raise
            return RootReset(ctx.presence)
        await self._establish(peer, hello.presence, agreed, partial, hello.segments, hello.blocks, since=None)
        return HelloAnswer(partial.presence, partial.knows, partial.segments, partial.blocks, exchange)

    async def handle_knock(self, peer: NodeId, knock: Knock) -> PeerMessage:
        """A follower has no session with us: end ours, so that upkeep opens a new one."""
        if not self._ctx.leads(peer):
            raise RemoteProtocolError(f"node {peer} leads this pair and has no reason to knock")
        self._refuse_if_too_often(peer)
        if (later := self._met.later_life(peer, knock.presence)) is not None:
            return Superseded(later)
        session = self._ctx.sessions.get(peer)
        if session is not None and not is_same(session.theirs, knock.presence):
            self._refuse_two_lives(peer, knock.presence)
        self.end(peer)
        return Done()

    async def knock(self, peer: NodeId) -> None:
        """Ask the leader of the pair for a session."""
        answer = await self._ctx.peers.call(peer, Knock(self._ctx.presence), timeout=self._ctx.settings.call_timeout)
        if isinstance(answer, Superseded):
            await self._life.begin_anew(after=answer.known)

    def _refuse_if_too_often(self, peer: NodeId) -> None:
        if not self._meetings[peer].allows(self._ctx.clock.elapsed()):
            self._ctx.counters["sessions_put_off"] += 1
            raise UnavailableError(f"too many sessions with node {peer} lately; try again in some seconds")

    def _refuse_if_superseded(self, peer: NodeId, knows: Presence | None) -> None:
        if knows is not None and is_later(knows, self._ctx.presence):
            raise StaleError(f"node {peer} knows a later life of this node")

    def _refuse_two_lives(self, peer: NodeId, presence: Presence) -> None:
        known, heard = self._met.life_of(peer), self._heard.get(peer)
        if known is None or is_same(known, presence) or heard is None:
            return
        if known.place and known.place == presence.place:
            return  # a place holds one life at a time, and this is the later of the two
        if self._ctx.clock.elapsed() - heard < self._ctx.settings.lease:
            raise UnavailableError(f"another incarnation of node {peer} was alive a moment ago; try again")

    # --- both

    async def _establish(
        self,
        peer: NodeId,
        presence: Presence,
        agreed: Agreed,
        mine: Hello | HelloAnswer,
        their_segments: tuple[bytes, ...],
        their_blocks: tuple[bytes, ...],
        *,
        since: Seconds | None,
    ) -> None:
        """Derive the session's keys, make them durable, and drop what only one of us holds.

        The exchange has proved who the peer is; its life must be one that it signed.

        The leader's lease runs `since` a moment at which the peer had not heard it yet: it lets another incarnation
        of this node in one lease after it did. The follower (None) does not know whether its answer arrives, so the
        first beat that the leader answers brings the lease; until then it issues nothing, or, to a leader in the same
        epoch, which remembers the session before, under that one, whose ID keys both have.
        """
        ctx = self._ctx
        ctx.verifier.verify(peer, life_message(peer, presence), presence.signature)
        keys = session_keys(agreed.root_before, agreed.secrets, agreed.transcript)
        agreed.wipe()
        common = frozenset(mine.segments) & frozenset(their_segments)
        known = self._met.life_of(peer)
        peer_is_whole = known is not None and known.epoch == presence.epoch
        await self._pools.keep_only(peer, sorted(common), peer_is_whole=peer_is_whole)
        await self._ingest.keep_only(peer, sorted(frozenset(mine.blocks) & frozenset(their_blocks)))
        if not is_same(self._met.life_of(peer), presence):
            self._pools.granting.renew_incarnation(peer)
        await self._id_keys.keep(peer, keys)
        self._met.refuse_earlier_life(peer, presence)  # what is known of the peer may have grown in the meantime
        await self._met.remember(peer, presence)
        if self._life.is_past(mine.presence):
            keys.verify_key.wipe()
            raise UnavailableError("this node begins a new life; no session of the last one goes on")
        former = ctx.sessions.get(peer)
        self.end(peer)
        goes_on = since is None and former is not None and former.theirs.epoch == presence.epoch
        if not goes_on:
            self._id_keys.issue_under(peer, keys.session_id)
        ctx.sessions[peer] = Session(
            id=keys.session_id,
            peer=peer,
            mine=ctx.presence,
            theirs=presence,
            verify_key=keys.verify_key,
            opened=ctx.clock.elapsed(),
            lease_until=_lease(ctx, since, former if goes_on else None),
        )
        self._heard[peer] = ctx.clock.elapsed()
        ctx.counters["sessions_opened"] += 1

    def end(self, peer: NodeId) -> None:
        """End the session with `peer`; nothing is issued to it until there is another."""
        self._ctx.end_session(peer)

    def note_leave(self, peer: NodeId) -> None:
        """The peer stops in good order: another incarnation of it need not wait for its lease."""
        self._heard.pop(peer, None)
        self.end(peer)

    # --- beats

    async def beat(self, peer: NodeId, stock: StockMark) -> int:
        """Tell `peer` that we live and how far we have issued; its answer renews our lease.

        Returns:
            The version of the peer's policy book.
        """
        ctx = self._ctx
        session = ctx.session(peer)
        sent = ctx.clock.elapsed()
        marks = self._pools.marks(peer)
        beat = Beat(session.id, marks, stock, ctx.book.version if ctx.has_book else 0)
        answer = await ctx.peers.call(peer, beat, timeout=ctx.settings.call_timeout)
        if not isinstance(answer, BeatAnswer):
            raise RemoteProtocolError(f"node {peer} answered a beat with {type(answer).__name__}")
        session.lease_until = Seconds(max(session.lease_until, sent + answer.lease_s))
        if ctx.sessions.get(peer) is session:
            self._id_keys.issue_under(peer, session.id)
            await self._met.note_vouched(peer)
        await self._pools.retire_issued(peer, marks)
        return answer.book_version

    async def handle_beat(self, peer: NodeId, beat: Beat) -> PeerMessage:
        """Note how far the peer has come, and grant it the lease to go on."""
        ctx = self._ctx
        ctx.session_of(peer, beat.session)
        self._heard[peer] = ctx.clock.elapsed()
        self._pools.pair(peer).peer_stock = beat.stock
        await self._pools.granting.note_marks(peer, beat.marks)
        return BeatAnswer(ctx.settings.lease, ctx.book.version if ctx.has_book else 0)

    # --- leases

    def is_young(self, peer: NodeId) -> bool:
        """Tell whether the session with `peer` was made so lately that the peer may not have finished making it."""
        session = self._ctx.sessions.get(peer)
        return session is not None and self._ctx.clock.elapsed() - session.opened < self._ctx.settings.call_timeout

    def is_old(self, peer: NodeId) -> bool:
        """Tell whether the session with `peer` has lasted long enough for fresh keys."""
        opened = self._ctx.session(peer).opened
        return self._ctx.clock.elapsed() - opened > self._ctx.settings.session_lifetime

    def has_lease(self, peer: NodeId) -> bool:
        """Tell whether this node may issue to `peer` now."""
        session = self._ctx.sessions.get(peer)
        return session is not None and self._ctx.clock.elapsed() < min(session.lease_until, self._ctx.until)


def _lease(ctx: Context, since: Seconds | None, former: Session | None) -> Seconds:
    """Return until when a new session lets this node issue; it may go on with the lease of the `former`."""
    if since is not None:
        return Seconds(since + ctx.settings.lease)
    return ctx.clock.elapsed() if former is None else former.lease_until


def _context_of_answer(answer: HelloAnswer) -> bytes:
    """Return what the follower's half of the exchange covers beside its public keys."""
    return canonical(HelloAnswer(answer.presence, answer.knows, answer.segments, answer.blocks, _NO_ANSWER))
