"""Sessions: two nodes meet, prove which life each lives, agree on keys, and drop what only one of them holds.

A node's life is (epoch, incarnation, nonce). The incarnation grows at every start; the epoch grows when the node
cannot prove that its memory is whole: its store is older than the anchor outside it remembers, or a peer has met a
later life than the one that speaks. Such a node drops all its strands before it does anything else, so a restored or
cloned copy can never issue a slot twice (design decision 8; docs/adr/0005-windows-and-lives.md).

The leader opens sessions; a follower that has none knocks. Two live incarnations of one node are refused: while the
lease of the one we know is running, another must wait, unless it lives at the same place: it came after its end.

A node tells its peers how far its store has got, and a life says how far each one before it had got. So peers find a
copy that brought its anchor along: it has forgotten what they remember (docs/adr/0023-counters-among-peers.md).
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable

import msgspec

from trenza.base.errors import AuthenticationError, RemoteProtocolError, StaleError, UnavailableError
from trenza.base.names import NodeId
from trenza.base.rate import TokenBucket
from trenza.base.units import Seconds
from trenza.core.exchange import session_keys
from trenza.kms import rows
from trenza.kms.context import Context, Session
from trenza.kms.exchange import Agreed, Exchanges
from trenza.kms.id_keys import IdKeyRing
from trenza.kms.ingest import Ingest
from trenza.kms.pools import Pools
from trenza.kms.ports import Anchor, Put, Table
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
    Reached,
    RootReset,
    StockMark,
    Superseded,
    WindowAnswer,
    canonical,
    life_message,
)

_NO_OFFER = ExchangeOffer(b"", b"", 0, b"", b"")
_NO_ANSWER = ExchangeAnswer(b"", b"", b"")
"""Stand in for the exchange while the rest of the message is encoded: the exchange covers all but itself."""

_PAST = 64
"""Lives before its own that a node tells of: a peer that met a copy of it must hear of it within so many starts."""

_MEETINGS_PER_SECOND, _MEETINGS_AT_ONCE = 0.2, 10.0
"""Sessions with one peer: each costs an exchange and leaves ID keys behind, so none may ask for them without end."""


class Sessions:
    """All sessions of this node, its own life, and what it remembers of others' lives."""

    def __init__(
        self,
        ctx: Context,
        *,
        exchanges: Exchanges,
        id_keys: IdKeyRing,
        pools: Pools,
        ingest: Ingest,
        anchor: Anchor,
    ) -> None:
        self._ctx = ctx
        self._exchanges = exchanges
        self._pools = pools
        self._ingest = ingest
        self._anchor = anchor
        self._known: dict[NodeId, Presence] = {}
        self._heard: dict[NodeId, Seconds] = {}  # when a life we know last spoke
        self._id_keys = id_keys
        self._meetings: defaultdict[NodeId, TokenBucket] = defaultdict(
            lambda: TokenBucket(_MEETINGS_PER_SECOND, _MEETINGS_AT_ONCE)
        )
        self._vouched_at: dict[
            NodeId, bytes
        ] = {}  # peers that have met a life at that place, and knew no better of it
        self._told: dict[NodeId, int] = {}  # how far this life has got, as a peer remembers durably
        self._owed: dict[NodeId, int] = {}  # how far it had got when it last did what a peer is to hear of
        self._telling: defaultdict[NodeId, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._store_name = bytes(16)
        self._dying = asyncio.Lock()  # held while this life is dropped for a new one
        self.on_new_life: Callable[[], Awaitable[None]] | None = None  # drops what other stories hold

    @property
    def store_name(self) -> bytes:
        """What names the store in which this node's life is; none before `begin_life`."""
        return self._store_name

    # --- this node's life

    async def begin_life(self) -> bool:
        """Take up a new incarnation, durably; tell whether memory is whole.

        A store that is behind its anchor, or that an anchor does not know although it is not new, is a copy: the
        epoch grows and the caller drops all strands, then says so (`note_dropped`). Nothing may be committed before
        this: a commit would tell the anchor of the copy.
        """
        ctx = self._ctx
        value = await ctx.store.get(Table.META, rows.SELF)
        past: tuple[bytes, ...] = ()
        ends: tuple[int, ...] = ()
        known = self._anchor.recall()
        await ctx.store.head()  # another instance may have written last
        reached = ctx.store.counter()
        if value is None:
            row = rows.SelfRow(bytes(ctx.entropy.token(16)), 1, 1)
            whole = True
        else:
            last = rows.decode(value, rows.SelfRow)
            anchored = known is not None and known[0] == last.store and reached >= known[1]
            whole = anchored and last.whole
            row = rows.SelfRow(last.store, last.epoch + (not whole), last.incarnation + 1)
            if whole and last.nonce:
                past, ends = (last.nonce, *last.past)[:_PAST], (reached, *last.ends)[:_PAST]
        self._store_name = row.store
        await self._set_life(row.epoch, row.incarnation, whole=whole, past=past, ends=ends)
        for key, stored in await ctx.store.scan(Table.META, b"peer:"):
            peer = rows.decode(stored, rows.PeerRow)
            name = NodeId(key[5:].decode())
            if peer.known is not None:
                self._known[name] = peer.known
            if peer.vouched_at:
                self._vouched_at[name] = peer.vouched_at
        return whole

    async def _set_life(
        self,
        epoch: int,
        incarnation: int,
        *,
        whole: bool,
        past: tuple[bytes, ...] = (),
        ends: tuple[int, ...] = (),
    ) -> None:
        nonce = bytes(self._ctx.entropy.token(16))
        self._ctx.presence = Presence(epoch, incarnation, nonce, place=self._ctx.place, past=past, ends=ends)
        self._told.clear()
        self._owed.clear()
        self.sign_life()
        await self._write_life(whole=whole)

    def sign_life(self) -> None:
        """Sign this node's life with the key that its certificate has now; peers believe no other signature."""
        self._ctx.presence = self._signed(self._ctx.presence)

    def _signed(self, life: Presence) -> Presence:
        return msgspec.structs.replace(life, signature=self._ctx.signer.sign(life_message(self._ctx.name, life)))

    async def _write_life(self, *, whole: bool) -> None:
        presence = self._ctx.presence
        row = rows.SelfRow(
            self._store_name,
            presence.epoch,
            presence.incarnation,
            whole,
            presence.nonce,
            presence.past,
            presence.ends,
        )
        await self._ctx.store.commit([Put(Table.META, rows.SELF, rows.encode(row))])
        self.remember()

    async def note_dropped(self) -> None:
        """Make it durable that no strand of a memory that was not whole is left."""
        await self._write_life(whole=True)

    def remember(self) -> None:
        """Tell the anchor how far the store has got; called after what must not be forgotten is durable."""
        self._anchor.remember(self._store_name, self._ctx.store.counter())

    async def start_new_life(self, *, after: Presence) -> None:
        """Drop every strand and come back in an epoch after `after`: another copy of this node was seen.

        Several peers may tell of it at once, and sessions may be in the making: one of them begins the new life, and
        no session of the old one goes on into it.

        Raises:
            RemoteProtocolError: it is this very life, or an earlier one.
            AuthenticationError: this node never signed that life; whoever speaks of it proves nothing.
        """
        if not _is_later(after, self._ctx.presence):
            self._ctx.counters["lives_unproved"] += 1
            raise RemoteProtocolError("a peer calls a life of this node later that is not")
        if not self._ctx.signer.recognises(life_message(self._ctx.name, after), after.signature):
            self._ctx.counters["lives_unproved"] += 1
            raise AuthenticationError("a peer speaks of a later life of this node that this node did not sign")
        async with self._dying:
            if _is_later(after, self._ctx.presence):  # else it was begun while this story waited
                await self._begin_anew(after)

    async def _begin_anew(self, after: Presence) -> None:
        self._ctx.counters["lives_superseded"] += 1
        for session in list(self._ctx.sessions.values()):
            self.end(session.peer)
        await self._write_life(whole=False)  # a crash from here on must not leave a part of the strands to be used
        if self.on_new_life is not None:
            await self.on_new_life()
        epoch = max(self._ctx.presence.epoch, after.epoch) + 1
        await self._set_life(epoch, max(self._ctx.presence.incarnation, after.incarnation) + 1, whole=True)

    def _is_past(self, life: Presence) -> bool:
        """Tell whether a life of this node is over, or about to be."""
        return self._dying.locked() or not _is_same(life, self._ctx.presence)

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
                await self.start_new_life(after=known)
                raise UnavailableError(f"node {peer} has met a later life of this node; starting a new one")
            case HelloAnswer() if agreed is not None:
                self._refuse_earlier_life(peer, answer.presence)
                self._refuse_if_superseded(peer, answer.knows)
                self._meetings[peer].spend(1, self._ctx.clock.elapsed())
                await self._establish(
                    peer, answer.presence, agreed, hello, answer.segments, answer.blocks, since=since
                )
                await self._note_vouched(peer)
            case _:
                raise RemoteProtocolError(f"node {peer} answered hello with {type(answer).__name__}")

    async def _say_hello(self, peer: NodeId, *, root_reset: bool) -> tuple[PeerMessage, Agreed | None, Hello]:
        ctx = self._ctx
        hello = Hello(
            PROTOCOL_VERSION,
            ctx.presence,
            self._known.get(peer),
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
        if (later := self._later_life(peer, hello.presence)) is not None:
            return Superseded(later)
        if hello.knows is not None and _is_later(hello.knows, ctx.presence):
            await self.start_new_life(after=hello.knows)
        self._refuse_two_lives(peer, hello.presence)
        self._meetings[peer].spend(1, ctx.clock.elapsed())
        bare = Hello(
            hello.version, hello.presence, hello.knows, hello.root_reset, hello.segments, hello.blocks, _NO_OFFER
        )
        partial = HelloAnswer(
            ctx.presence,
            self._known.get(peer),
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
        if (later := self._later_life(peer, knock.presence)) is not None:
            return Superseded(later)
        session = self._ctx.sessions.get(peer)
        if session is not None and not _is_same(session.theirs, knock.presence):
            self._refuse_two_lives(peer, knock.presence)
        self.end(peer)
        return Done()

    async def knock(self, peer: NodeId) -> None:
        """Ask the leader of the pair for a session."""
        answer = await self._ctx.peers.call(peer, Knock(self._ctx.presence), timeout=self._ctx.settings.call_timeout)
        if isinstance(answer, Superseded):
            await self.start_new_life(after=answer.known)

    def _refuse_if_too_often(self, peer: NodeId) -> None:
        if not self._meetings[peer].allows(self._ctx.clock.elapsed()):
            self._ctx.counters["sessions_put_off"] += 1
            raise UnavailableError(f"too many sessions with node {peer} lately; try again in some seconds")

    def _later_life(self, peer: NodeId, presence: Presence) -> Presence | None:
        known = self._known.get(peer)
        return known if known is not None and _is_later(known, presence) else None

    def _refuse_earlier_life(self, peer: NodeId, presence: Presence) -> None:
        if self._later_life(peer, presence) is not None:
            raise StaleError(f"node {peer} speaks from an earlier life; it learns so when it says hello itself")

    def _refuse_if_superseded(self, peer: NodeId, knows: Presence | None) -> None:
        if knows is not None and _is_later(knows, self._ctx.presence):
            raise StaleError(f"node {peer} knows a later life of this node")

    def _refuse_two_lives(self, peer: NodeId, presence: Presence) -> None:
        known, heard = self._known.get(peer), self._heard.get(peer)
        if known is None or _is_same(known, presence) or heard is None:
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
        known = self._known.get(peer)
        peer_is_whole = known is not None and known.epoch == presence.epoch
        await self._pools.keep_only(peer, sorted(common), peer_is_whole=peer_is_whole)
        await self._ingest.keep_only(peer, sorted(frozenset(mine.blocks) & frozenset(their_blocks)))
        if not _is_same(self._known.get(peer), presence):
            self._pools.granting.renew_incarnation(peer)
        await self._id_keys.keep(peer, keys)
        self._refuse_earlier_life(peer, presence)  # what is known of the peer may have grown in the meantime
        await self._remember_peer(peer, presence)
        if self._is_past(mine.presence):
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

    async def _remember_peer(self, peer: NodeId, presence: Presence) -> None:
        """Remember a life of a peer, durably; of one life, what it said when it had got furthest."""
        known = self._known.get(peer)
        if known is None or not _is_same(known, presence) or presence.reached > known.reached:
            self._known[peer] = presence
        await self._write_peer(peer)

    async def _write_peer(self, peer: NodeId) -> None:
        row = rows.PeerRow(self._known.get(peer), self._vouched_at.get(peer, b""))
        await self._ctx.store.commit([Put(Table.META, rows.peer_key(peer), rows.encode(row))])

    def end(self, peer: NodeId) -> None:
        """End the session with `peer`; nothing is issued to it until there is another."""
        session = self._ctx.sessions.pop(peer, None)
        if session is not None:
            session.verify_key.wipe()

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
            await self._note_vouched(peer)
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

    # --- how far a store has got

    def vouches(self, peer: NodeId) -> bool:
        """Tell whether `peer` has met a life at this very place, and knew of nothing that it had forgotten.

        Then no copy can have come between: one that is put in its place, or started beside it, is at another.
        """
        return self._vouched_at.get(peer) == self._ctx.place

    @property
    def vouching(self) -> tuple[NodeId, ...]:
        """The peers that vouch for this life."""
        return tuple(sorted(peer for peer in self._vouched_at if self.vouches(peer)))

    async def _note_vouched(self, peer: NodeId) -> None:
        """Note that `peer` has taken this life for the one it knows, or for one that follows it."""
        if not self.vouches(peer):
            self._vouched_at[peer] = self._ctx.place
            await self._write_peer(peer)

    def owe(self, peer: NodeId) -> None:
        """Note that something was done, durably, that a copy of this node from before must not do again."""
        self._owed[peer] = self._ctx.store.counter()

    async def tell_if_owed(self, peer: NodeId) -> None:
        """Tell `peer` how far this life has got, if it has done what the peer is to remember."""
        if peer in self._ctx.sessions and self._owed.get(peer, 0) > self._told.get(peer, 0):
            await self.tell_reached(peer)

    async def tell_reached(self, peer: NodeId) -> None:
        """Return when `peer` remembers, durably, that this life has got as far as it has now.

        Whoever waits meanwhile shares an answer.

        Raises:
            UnavailableError, PeerUnavailableError: it may not.
        """
        ctx = self._ctx
        now = ctx.store.counter()
        async with self._telling[peer]:
            if self._told.get(peer, 0) >= now:
                return
            life = self._life_now()
            message = Reached(ctx.session(peer).id, life)
            answer = await ctx.peers.call(peer, message, timeout=ctx.settings.call_timeout)
            if isinstance(answer, Superseded):
                await self.start_new_life(after=answer.known)
                raise UnavailableError(f"node {peer} has met a later life of this node; starting a new one")
            if not isinstance(answer, Done):
                raise RemoteProtocolError(f"node {peer} answers how far this node is with {type(answer).__name__}")
            if self._is_past(life):
                raise UnavailableError("this node begins a new life; what the last one has told is over")
            self._told[peer] = life.reached

    def with_reach(self, answer: WindowAnswer) -> WindowAnswer:
        """Return an answer with how far this life has got: the windows in it are durable."""
        return msgspec.structs.replace(answer, reached=self._life_now()) if answer.grants else answer

    def _life_now(self) -> Presence:
        return self._signed(msgspec.structs.replace(self._ctx.presence, reached=self._ctx.store.counter()))

    async def handle_reached(self, peer: NodeId, message: Reached) -> PeerMessage:
        """Remember how far the peer has got; answer when that is durable."""
        if (later := self._later_life(peer, message.presence)) is not None:
            return Superseded(later)
        self._ctx.session_of(peer, message.session)
        await self.note_reached(peer, message.presence)
        return Done()

    async def note_reached(self, peer: NodeId, life: Presence | None) -> None:
        """Remember, durably, how far the life of the peer has got with which there is a session.

        Raises:
            UnavailableError: there is no session with that life.
            AuthenticationError: the peer did not sign it.
        """
        if life is None:
            return
        if not _is_same(self._ctx.session(peer).theirs, life) or not _is_same(self._known.get(peer), life):
            raise UnavailableError(f"node {peer} speaks of a life with which there is no session")
        self._ctx.verifier.verify(peer, life_message(peer, life), life.signature)
        await self._remember_peer(peer, life)

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


def _is_same(one: Presence | None, other: Presence) -> bool:
    """Tell whether both speak of one life, whichever of the node's keys signed it."""
    return one is not None and (one.epoch, one.incarnation, one.nonce) == (
        other.epoch,
        other.incarnation,
        other.nonce,
    )


def _is_later(one: Presence, other: Presence) -> bool:
    """Tell whether `one` shows that `other` is an earlier life, another copy of the same, or a later one of a copy.

    A node that runs on a copy of a memory may start more often than the copy that was met; its past shows it, by
    the nonces of lives that were others, or by counting less than they had reached.
    """
    if (one.epoch, one.incarnation) == (other.epoch, other.incarnation):
        return one.nonce != other.nonce
    since = other.incarnation - one.incarnation
    if one.epoch == other.epoch and 0 < since <= len(other.past):
        return one.nonce != other.past[since - 1] or one.reached > _end_of(other, since)
    return (one.epoch, one.incarnation) > (other.epoch, other.incarnation)


def _end_of(life: Presence, since: int) -> float:
    """Return what the store had counted when the life so many before this one was over."""
    return life.ends[since - 1] if since <= len(life.ends) else math.inf


def _context_of_answer(answer: HelloAnswer) -> bytes:
    """Return what the follower's half of the exchange covers beside its public keys."""
    return canonical(HelloAnswer(answer.presence, answer.knows, answer.segments, answer.blocks, _NO_ANSWER))
