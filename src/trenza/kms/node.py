"""One node: all its stories joined, its start, its tasks, and the answers to its peers.

Knows no socket, disk or clock: `app.build` gives it ports. A story that fails is tried again at the next turn and
counted; anything that is not a TrenzaError ends the node, which is then restarted (crash early).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from uuid import UUID

from trenza.base.errors import (
    FencedError,
    RefusedError,
    RemoteProtocolError,
    StaleError,
    TrenzaError,
    UnauthorisedError,
)
from trenza.base.names import LinkId, NodeId, SaeId
from trenza.base.units import Seconds
from trenza.core.policy import SignedBook
from trenza.kms.books import Books
from trenza.kms.cede import Cedes
from trenza.kms.clock_check import ClockCheck
from trenza.kms.context import Context
from trenza.kms.deliver import Delivery
from trenza.kms.demand import Demand
from trenza.kms.exchange import Exchanges
from trenza.kms.explain import Explain
from trenza.kms.exposed import Exposures
from trenza.kms.fetching import Fetching
from trenza.kms.fill import Fill
from trenza.kms.id_keys import IdKeyRing, lifetime_of
from trenza.kms.ingest import Ingest
from trenza.kms.issuing import Accept, Issuing
from trenza.kms.journal import Journal
from trenza.kms.levels import Levels
from trenza.kms.met import Met
from trenza.kms.notary import Notary
from trenza.kms.owed import Debts
from trenza.kms.own_life import OwnLife
from trenza.kms.pads import Pads
from trenza.kms.permits import Permits
from trenza.kms.pools import Pools
from trenza.kms.ports import Anchor
from trenza.kms.reach import Reach
from trenza.kms.reign import PUBLISH_EVERY, Reign
from trenza.kms.relay import Relays
from trenza.kms.retention import Retention
from trenza.kms.sessions import Sessions
from trenza.kms.shares import Shares
from trenza.kms.slots import Slots
from trenza.kms.tasks import Recurring, Tasks
from trenza.kms.waiting import WaitingKeys
from trenza.kms.windows import Windows
from trenza.kms.wrap import Wrapped
from trenza.wire.peer import (
    Beat,
    BlockOffer,
    BookRequest,
    Cede,
    Done,
    Hello,
    Knock,
    Leave,
    LinkLevels,
    PeerMessage,
    Reached,
    Relay,
    SegmentCommit,
    SegmentDrop,
    SegmentOffer,
    WindowMark,
    WindowRequest,
    WrapCommit,
    WrapOffer,
    WrapVoid,
)

_OTHERS_EVERY = Seconds(5.0)


class Node:
    """One KMS (a KME in ETSI words)."""

    def __init__(self, ctx: Context, *, anchor: Anchor, leads: bool = True) -> None:
        """Join the stories; nothing is read, and nothing runs.

        Args:
            ctx: of this instance.
            anchor: remembers how far the store has got.
            leads: whether it will be started; if not, `kms.second` lets its stories serve beside another instance.
        """
        self.ctx = ctx
        self.leads = leads
        self.says_farewell = True  # not where another instance goes on
        self.tasks = Tasks(ctx.counters)
        self.pads = Pads(ctx)
        self.ingest = Ingest(ctx, self.pads)
        self.relays = Relays(ctx, self.pads)
        self.levels = Levels(ctx, self.pads)
        self.journal = Journal(ctx)
        self.pools = Pools(ctx, journal=self.journal)
        self.exchanges = Exchanges(ctx)
        self.id_keys = IdKeyRing(ctx)
        self.books = Books(ctx, leads=leads)
        self.life = OwnLife(ctx, anchor=anchor)
        self.met = Met(ctx)
        self.reach = Reach(ctx, life=self.life, met=self.met)
        self.sessions = Sessions(
            ctx,
            life=self.life,
            met=self.met,
            exchanges=self.exchanges,
            id_keys=self.id_keys,
            pools=self.pools,
            ingest=self.ingest,
        )
        self.demand = Demand(ctx, pools=self.pools)
        self.cedes = Cedes(ctx, pools=self.pools, demand=self.demand)
        self.fill = Fill(ctx, pools=self.pools, exchanges=self.exchanges, relays=self.relays, levels=self.levels)
        self.windows = Windows(ctx, reach=self.reach, pools=self.pools, demand=self.demand, fill=self.fill)
        self.issuing = Issuing(
            ctx,
            sessions=self.sessions,
            id_keys=self.id_keys,
            pools=self.pools,
            demand=self.demand,
            journal=self.journal,
        )
        self.slots = Slots(ctx, id_keys=self.id_keys, pools=self.pools, journal=self.journal)
        self.waiting = WaitingKeys(ctx)
        self.shares = Shares(ctx, stock_of=self._stock_of)
        self.demand.floor_of = self.shares.floor_of
        self.wrapped = Wrapped(ctx, issuing=self.issuing, slots=self.slots, waiting=self.waiting)
        self.permits = Permits(ctx)
        self.fetching = Fetching(ctx, permits=self.permits, slots=self.slots, waiting=self.waiting)
        self.delivery = Delivery(
            ctx,
            permits=self.permits,
            issuing=self.issuing,
            fetching=self.fetching,
            wrapped=self.wrapped,
            waiting=self.waiting,
            shares=self.shares,
        )
        self.notary = Notary(ctx, journal=self.journal)
        self.reign = Reign(
            ctx, life=self.life, met=self.met, id_keys=self.id_keys, pools=self.pools, demand=self.demand
        )
        self.debts = Debts(ctx, self.journal, given_up=self.pools.given_up)
        self.delivery.speaks_to_peers = leads
        self._looked_at_others = Seconds(0.0)
        self.clock_check = ClockCheck(ctx, partners=self.partners)
        self.fill.on_made = self.clock_check.agreed
        self.retention = Retention(ctx, notary=self.notary, clock_is_sound=self.clock_check.is_sound)
        self.explain = Explain(
            ctx, id_keys=self.id_keys, slots=self.slots, journal=self.journal, retention=self.retention
        )
        self.exposures = Exposures(ctx, journal=self.journal)
        self.life.on_new = self._drop_all
        self.books.on_installed = self._reconcile
        self.relays.before_sending = self.reach.tell
        self.fetching.vouches = self.met.vouches  # beside a lead, what that one says counts
        self.fetching.on_delivered = self.reach.owe
        self.cedes.on_reached = self.reach.note
        self.issuing.on_low = self._restock
        self.issuing.on_short = self._refill
        self.issuing.ask_window = self.windows.ask_for
        self.issuing.cede = self.cedes.step
        self.wrapped.on_void = lambda: self.tasks.kick("voids")
        self._filled: frozenset[NodeId] = frozenset()  # those of the peers whose pools are filled
        self._started = False

    # --- life

    async def start(self, signed: SignedBook | None = None) -> None:
        """Load what the store holds, and forget all strands if it cannot be proved whole."""
        whole = await self.life.begin()
        await self.met.load()
        await self.books.load(signed)
        await self.exchanges.load()
        await self.id_keys.load()
        if lost := len(self.id_keys.unreadable):
            self.troubles["id keys"] = (
                f"the ID keys of {lost} past sessions cannot be opened: keys issued in them can neither be fetched "
                "nor explained; were the store and the keyring restored from different times?"
            )
        if self.ctx.shared is None:  # else the last batch of another instance may still be on its way
            await self.journal.load()
        else:
            self.fetching.look_again = self._look_again
        await self.reign.begin()
        await self.pools.load()
        await self.ingest.load()
        await self.waiting.load()
        await self.shares.load()
        if not whole:
            self.ctx.counters["starts_from_a_copy"] += 1
            await self._drop_all()
            await self.life.note_dropped()
        self._started = True

    async def _drop_all(self) -> None:
        self.fill.forget()
        await self.pools.drop_all()
        await self.ingest.drop_all()
        await self.waiting.drop_all()
        await self.id_keys.retire_all()
        await self.exchanges.forget_all()
        self.reach.forget()

    async def run(self) -> None:
        """Run this node's tasks until cancelled; then tell the peers that it leaves."""
        assert self._started, "start() comes first"
        try:
            await self.tasks.run(self._begin)
        finally:
            await self.leave()

    def _begin(self) -> None:
        self.tasks.start("journal", self.journal.run())
        self.tasks.start("life", self.life.run())
        self._reconcile()

    async def leave(self) -> None:
        """Hand back to every peer with a session what was not issued, say farewell, and sign a last checkpoint."""
        if self.says_farewell:
            await self._say_farewell()
        try:
            await self.journal.flush()
        except FencedError:  # another instance leads: what there is to say is its to say
            return
        except TrenzaError:
            self.ctx.counters["journal_writes_failed"] += 1
        try:
            await self.notary.sign()
        except TrenzaError:
            self.ctx.counters["checkpoints_missed"] += 1
        try:
            await self.shares.save()
        except TrenzaError:
            self.ctx.counters["quotas_unsaved"] += 1

    async def _say_farewell(self) -> None:
        issued: dict[NodeId, tuple[WindowMark, ...]] = {}
        try:
            issued = await self.pools.release_reserved()
        except FencedError:
            return
        except TrenzaError:
            self.ctx.counters["hand_backs_missed"] += 1
        for peer, session in sorted(self.ctx.sessions.items()):
            try:
                await self.ctx.peers.call(peer, Leave(session.id, issued.get(peer, ())), timeout=Seconds(1.0))
            except TrenzaError:
                self.ctx.counters["leaves_unheard"] += 1

    # --- what it knows of the network

    @property
    def troubles(self) -> dict[str, str]:
        """What each task last failed with, for people."""
        return self.tasks.troubles

    def partners(self) -> list[NodeId]:
        """Return the nodes with which this one shares pools: those of its SAEs' partners."""
        return list(self.ctx.book.partners_of(self.ctx.name)) if self.ctx.has_book else []

    def _stock_of(self, peer: NodeId, full: bool) -> int:
        """Return what this node can issue to a peer, some of it after one round trip for a window."""
        return self.pools.issuable(peer, full=full) + self.pools.ungranted(peer, self.ctx.name, full=full)

    def neighbours(self) -> list[NodeId]:
        """Return the nodes at the other end of this node's links."""
        return sorted({end.peer for end in self.ctx.links.values()})

    # --- tasks

    def _reconcile(self) -> None:
        """Start the tasks that the book and the configuration ask for, and stop the others."""
        if not self.tasks.are_running:
            return
        partners, links = self.partners(), sorted(self.ctx.links)
        peers = sorted({*partners, *self.neighbours()})
        wanted: dict[Hashable, Recurring] = {}
        settings = self.ctx.settings
        for peer in peers:
            wanted["beat", peer] = Recurring(settings.beat_interval, partial(self._beat, peer))
            wanted["tell", peer] = Recurring(Seconds(settings.beat_interval / 4), partial(self._tell, peer))
            if peer in partners:
                wanted["windows", peer] = Recurring(settings.beat_interval, partial(self._windows, peer))
            if self.ctx.leads(peer):
                wanted["lead", peer] = Recurring(settings.fill_interval, partial(self._lead, peer))
        for link in links:
            wanted["ingest", link] = Recurring(settings.ingest_interval, partial(self._ingest, link))
        wanted["levels",] = Recurring(settings.levels_interval, self._levels)
        if self.ctx.shared is not None:
            wanted["reign",] = Recurring(PUBLISH_EVERY, self._publish)
        wanted["voids",] = Recurring(settings.beat_interval, self._voids)
        wanted["upkeep",] = Recurring(settings.beat_interval, self._upkeep)
        wanted["retention",] = Recurring(settings.retention_interval, self.retention.step)
        self.tasks.follow(wanted)
        for peer in self._filled.difference(partners):
            self.troubles.pop(f"fill {peer}", None)
        self._filled = frozenset(partners)

    def reload_links(self) -> None:
        """Follow a change of this node's links or peers."""
        self._reconcile()

    async def _beat(self, peer: NodeId) -> bool:
        """Keep a session with `peer` alive, and windows to issue from."""
        ctx = self.ctx
        if peer not in ctx.sessions:
            if ctx.leads(peer):
                self.tasks.kick("lead", peer)
            else:
                await self.sessions.knock(peer)
            return False
        try:
            version = await self.sessions.beat(peer, self.demand.mark(peer))
        except RefusedError:  # the peer knows no such session: it has started anew, or is about to finish this one
            if not self.sessions.is_young(peer):
                self.sessions.end(peer)
            raise
        if not ctx.has_book or version > ctx.book.version:
            await self.books.fetch(peer)
        await self.windows.ask(peer)
        max_age = {full: self.demand.max_age(peer, full=full) for full in (True, False)}
        await self.pools.tidy(peer, key_lifetime=lifetime_of(ctx), max_age=max_age)
        await self.cedes.step(peer)
        return False

    async def _tell(self, peer: NodeId) -> bool:
        """Let `peer` remember how far this node is, soon after keys that it issued were delivered."""
        await self.reach.tell_if_owed(peer)
        return False

    async def _windows(self, peer: NodeId) -> bool:
        """Have windows ahead of need."""
        if self.sessions.has_lease(peer):
            await self.windows.ask(peer)
        return False

    async def _lead(self, peer: NodeId) -> bool:
        """Open the session when there is none, and fill what is wanted; one exchange at a time."""
        ctx = self.ctx
        if peer not in ctx.sessions or self.sessions.is_old(peer):
            await self.sessions.open(peer)
            self.tasks.kick("beat", peer)
            self.tasks.kick("levels")
            return True
        if peer not in self._filled:
            return False
        filled = False
        for want in self.demand.wants(peer):
            try:
                filled = await self.fill.fill(peer, want) > 0 or filled
            except StaleError:  # only a new hello brings the roots of the two nodes together again
                self.sessions.end(peer)
                raise
            except TrenzaError as error:  # what one want lacks, such as a path, another may not need
                self.troubles[f"fill {peer}"] = error.message
            else:
                self.troubles.pop(f"fill {peer}", None)
            if peer not in ctx.sessions:
                return False
        if filled:
            self.tasks.kick("beat", peer)
        return filled

    async def _ingest(self, link: LinkId) -> bool:
        if self.ctx.links[link].peer not in self.ctx.sessions:
            return False
        added = await self.ingest.step(link)
        if added:
            self.tasks.kick("levels")
        return added

    async def _levels(self) -> bool:
        await self.levels.tick()
        return False

    async def _publish(self) -> bool:
        await self.reign.publish()
        return False

    async def _look_again(self, caller: SaeId, key_ids: Sequence[UUID]) -> None:
        """Read keys that another instance has drawn: all else that can be fetched is this one's to know."""
        for key_id in key_ids:
            await self.waiting.find(key_id, caller)

    async def _look_at_others(self) -> None:
        """Take in, now and then, what other instances have delivered and placed, and what they left behind."""
        now = self.ctx.clock.elapsed()
        if self.ctx.shared is None or now - self._looked_at_others < _OTHERS_EVERY:
            return
        self._looked_at_others = now
        await self.journal.settle_others()
        await self.waiting.refresh()
        for peer in self.pools.peers:
            await self.pools.granting.note_deliveries(peer)
        await self.debts.step()

    async def _voids(self) -> bool:
        await self.wrapped.tell_voids()
        return False

    async def _upkeep(self) -> bool:
        self.relays.expire()
        await self._look_at_others()
        await self.waiting.tidy()
        await self.shares.save_if_due()
        await self.notary.sign_if_due()
        for peer in self.partners():
            if self.demand.is_low(peer):
                self._restock(peer)
        return False

    def _restock(self, peer: NodeId) -> None:
        self.tasks.kick("windows", peer)
        if self.demand.is_low(peer):
            self.tasks.kick("beat", peer)
            self.tasks.kick("lead", peer)

    def _refill(self, peer: NodeId, full: bool, accept: Accept) -> bool:
        """Reserve slots in the background; tell whether there is one."""
        if not self.tasks.are_running:
            return False
        self.tasks.start(f"refill {peer}", self._refilled(peer, full, accept))
        return True

    async def _refilled(self, peer: NodeId, full: bool, accept: Accept) -> None:
        try:
            await self.issuing.refill(peer, full=full, accept=accept)
        except TrenzaError:
            self.ctx.counters["refills_failed"] += 1

    # --- answers

    async def handle(self, peer: NodeId, message: PeerMessage) -> PeerMessage:
        """Answer one message of a peer whose identity the connection has verified.

        Raises:
            TrenzaError: its code travels back.
        """
        if peer not in self.ctx.book.node_by_name:
            raise UnauthorisedError("the policy book knows no such node")
        match message:
            case Beat():
                answer = await self.sessions.handle_beat(peer, message)
                self.tasks.kick("lead", peer)
                if not self.sessions.has_lease(peer):
                    self.tasks.kick("beat", peer)  # the peer has the session too, and will answer with a lease
                return answer
            case Reached():
                return await self.reach.handle(peer, message)
            case WindowRequest() | Cede() | SegmentOffer() | WrapOffer() if peer not in self.partners():
                raise UnauthorisedError("the policy book lets no pair of these two nodes share keys")
            case WindowRequest():
                return await self.windows.handle(peer, message)
            case Relay():
                return await self.relays.handle(peer, message)
            case BlockOffer():
                return await self.ingest.accept(peer, message)
            case LinkLevels():
                done = await self.levels.handle(peer, message)
                if self.levels.news:
                    self.tasks.kick("levels")
                return done
            case SegmentOffer():
                return await self.fill.handle_offer(peer, message)
            case SegmentCommit():
                answered = await self.fill.handle_commit(peer, message)
                self.tasks.kick("beat", peer)
                return answered
            case SegmentDrop():
                return await self.fill.handle_drop(peer, message)
            case WrapOffer():
                return await self.wrapped.handle_offer(peer, message)
            case WrapCommit():
                return await self.wrapped.handle_commit(peer, message)
            case WrapVoid():
                return await self.wrapped.handle_void(peer, message)
            case Hello():
                answer = await self.sessions.handle_hello(peer, message)
                self.tasks.kick("beat", peer)
                self.tasks.kick("levels")
                return answer
            case Knock():
                answer = await self.sessions.handle_knock(peer, message)
                self.tasks.kick("lead", peer)
                return answer
            case Cede():
                return self.reach.with_reach(await self.cedes.handle(peer, message))
            case Leave():
                await self.cedes.take_back(peer, message)
                self.sessions.note_leave(peer)
                return Done()
            case BookRequest():
                return self.books.handle(message)
            case _:
                raise RemoteProtocolError(f"{type(message).__name__} is an answer, not a request")
