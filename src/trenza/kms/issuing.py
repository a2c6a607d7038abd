"""Issuing: from reserved slots to fresh keys, in one go and without a commit (design decision 9, docs/adr/0018).

Slots are given up durably ahead of need; a key is then made from memory, noted in the journal, and leaves. Only a
request that finds nothing in hand waits: for one reservation, or for the far node to grant another window. Who may
ask is decided by `kms.deliver`; what a key for several targets needs is in `kms.wrap`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from uuid import UUID

import msgspec

from trenza.base.errors import NotEnoughKeyError, TrenzaError
from trenza.base.names import NodeId
from trenza.base.secret import Secret
from trenza.base.units import NANOSECONDS_PER_SECOND, Bits, Nanoseconds, Seconds, nanoseconds
from trenza.core.binding import KEY_ID_BYTES
from trenza.core.choice import StrandKind
from trenza.core.delivery import DeliveredKey, KeyFacts
from trenza.core.keyid import HANDLE_STEP, SIZE_MAX, SLOT_STEP, IdMacs, KeyAddress
from trenza.core.plan import KeyPlan
from trenza.core.policy import Policy
from trenza.core.recipe import Recipe
from trenza.core.segment import SegmentFacts
from trenza.core.window import IssuerWindow
from trenza.kms.context import Context
from trenza.kms.demand import Demand, Flow
from trenza.kms.id_keys import IdKeyRing
from trenza.kms.journal import Heading, Journal, Source
from trenza.kms.pools import Pools
from trenza.kms.sessions import Sessions
from trenza.kms.slots import Pair, facts_of

Accept = Callable[[SegmentFacts], bool]

_MOST_DESKS = 32_768  # those used last
_MOST_REELS = 1_024  # likewise
_ATTEMPTS = 4  # reservations a request waits for, while others take what they brought


class FreshKey(msgspec.Struct, frozen=True, gc=False):
    """A key that has just been made: it lives until its answer is written. Whoever holds it wipes it."""

    number: int  # of its ID, a UUID
    key: bytearray
    facts: KeyFacts

    def __repr__(self) -> str:
        return f"<FreshKey {UUID(int=self.number)}>"

    def delivered(self) -> DeliveredKey:
        return DeliveredKey(UUID(int=self.number), Secret(self.key), self.facts)


def wipe_all(keys: Iterable[FreshKey]) -> None:
    """Overwrite keys that nobody is to have."""
    for one in keys:
        one.key[:] = bytes(len(one.key))


class Reel:
    """What the keys of one recipe, size and policy out of one window have in common, whatever their pair."""

    __slots__ = (
        "_expires",
        "_facts",
        "_lifetime",
        "_policy",
        "_recipe",
        "_segment",
        "_size",
        "macs",
        "packed",
        "plan",
        "source",
    )

    def __init__(
        self,
        peer: NodeId,
        window: IssuerWindow,
        plan: KeyPlan,
        macs: IdMacs,
        recipe: Recipe,
        size: Bits,
        policy: Policy,
    ) -> None:
        self.plan = plan
        self.macs = macs
        self.source = Source(peer, window.number, window.facts.record.segment)
        self.packed = KeyAddress(window.number, 0, 0, size, recipe.code).pack()
        self._recipe = recipe
        self._size = size
        self._policy = policy
        self._segment = window.facts
        self._lifetime = nanoseconds(Seconds(float(policy.key_lifetime_s)))
        self._expires = -1  # in seconds; keys of one second share their facts
        self._facts: KeyFacts

    def facts(self, now: Nanoseconds) -> KeyFacts:
        """Return what applications are told of a key that is made now."""
        expires = (now + self._lifetime) // NANOSECONDS_PER_SECOND
        if expires != self._expires:
            self._expires = expires
            self._facts = facts_of(self._recipe, self._size, self._segment, now, self._policy)
        return self._facts


class Desk:
    """Makes the keys of one pair, recipe and size out of whatever window: what is the pair's, computed once."""

    __slots__ = ("_handle", "_heading", "_journal", "_pair")

    def __init__(self, pair: Pair, heading: Heading, journal: Journal) -> None:
        self._pair = pair
        self._handle = pair.handle * HANDLE_STEP
        self._heading = heading
        self._journal = journal

    def issue(self, reel: Reel, slots: Sequence[int], now: Nanoseconds) -> list[FreshKey]:
        """Make the keys whose first slots are these, which were taken for them, and note them.

        A slot of which no key can be made, since a strand there is dead, is lost, and costs none of the others.

        Raises:
            ValueError: there is no key at all: the reel's segment is closed, or every slot is such a one.
        """
        pair, plan, facts = self._pair, reel.plan, reel.facts(now)
        seal, first = reel.macs.seal, reel.packed + self._handle
        keys: list[FreshKey] = []
        lost: dict[int, ValueError] = {}
        try:
            for slot in slots:
                number = seal(first + slot * SLOT_STEP, pair.binding)
                try:
                    key = plan.key(slot, number.to_bytes(KEY_ID_BYTES, "big"), pair.parties)
                except ValueError as error:
                    lost[slot] = error
                else:
                    keys.append(FreshKey(number, key, facts))
        except BaseException:
            wipe_all(keys)
            raise
        if lost:
            if not keys:
                raise lost[slots[0]]
            slots = [slot for slot in slots if slot not in lost]
        self._journal.note(self._heading, reel.source, slots, now)
        return keys


class Issuing:
    """This node's fresh keys."""

    def __init__(
        self,
        ctx: Context,
        *,
        sessions: Sessions,
        id_keys: IdKeyRing,
        pools: Pools,
        demand: Demand,
        journal: Journal,
    ) -> None:
        self._ctx = ctx
        self._sessions = sessions
        self.id_keys = id_keys
        self.journal = journal
        self._pools = pools
        self._demand = demand
        self._desks: OrderedDict[tuple[Pair, int, Bits, str], Desk] = OrderedDict()
        self._reels: OrderedDict[tuple[IssuerWindow, int, Bits, bytes, bytes], Reel] = OrderedDict()
        self._macs: dict[NodeId, tuple[bytes, IdMacs]] = {}  # with the session whose ID keys they use
        self._refilling: set[tuple[NodeId, bool]] = set()
        self.on_low: Callable[[NodeId], None] | None = None  # told when more windows, or more stock, may be needed
        self.on_short: Callable[[NodeId, bool, Accept], bool] | None = None  # told when little is left in hand
        self.ask_window: Callable[[NodeId, StrandKind, int], Awaitable[bool]] | None = None
        self.cede: Callable[[NodeId, int], Awaitable[int]] | None = None  # has slots change direction

    def available(self, pair: Pair, recipe: Recipe, size: Bits, accept: Accept) -> int:
        """Return how many keys could be issued now with `recipe`, under a live lease."""
        peer = pair.target.node
        if not self._sessions.has_lease(peer):
            return 0
        full = recipe.needs_qkd
        return self._pools.pair(peer).issuer.available(full=full, slots=recipe.slots_for(size), accept=accept)

    # --- at once

    def issue_now(
        self, pair: Pair, recipe: Recipe, *, number: int, size: Bits, accept: Accept, tls_group: str
    ) -> list[FreshKey]:
        """Issue `number` keys out of what is reserved, without waiting; none at all if that does not suffice.

        Raises:
            UnavailableError: the store takes no records, so nothing may be issued.
        """
        peer = pair.target.node
        if size > SIZE_MAX or not self._sessions.has_lease(peer):
            return []
        self.journal.refuse_if_full()
        full, per_key = recipe.needs_qkd, recipe.slots_for(size)
        takes = self._pools.pair(peer).issuer.take(number, full=full, slots=per_key, accept=accept)
        if not takes:
            return []
        now = self._ctx.clock.now()
        keys: list[FreshKey] = []
        try:
            desk = self.desk(pair, recipe, size, tls_group)
            for take in takes:
                reel = self.reel(peer, take.window, recipe, size, pair.policy)
                keys += desk.issue(reel, (take.slot,), now)
        except BaseException:
            wipe_all(keys)
            raise
        self._demand.note_issued(peer, full=full, slots=number * per_key)
        self.look_ahead(peer, full=full, accept=accept)
        return keys

    def desk(self, pair: Pair, recipe: Recipe, size: Bits, tls_group: str) -> Desk:
        """Return the desk of a pair."""
        key = (pair, recipe.code, size, tls_group)
        desk = self._desks.get(key)
        if desk is None:
            policy = pair.policy
            heading = Heading("issued", pair.initiator.name, pair.target.name, recipe, size, policy, tls_group)
            desk = self._desks[key] = Desk(pair, heading, self.journal)
            if len(self._desks) > _MOST_DESKS:
                self._desks.popitem(last=False)
        else:
            self._desks.move_to_end(key)
        return desk

    def reel(self, peer: NodeId, window: IssuerWindow, recipe: Recipe, size: Bits, policy: Policy) -> Reel:
        """Return the reel for a window that is in the pool.

        Raises:
            UnavailableError: its segment is gone, or there is no session.
        """
        key = (window, recipe.code, size, policy.digest, self.id_keys.issues_under(peer))
        reel = self._reels.get(key)
        if reel is None:
            segment = self._pools.strands.open_segment(peer, window.facts.record.segment)
            plan = KeyPlan(segment, recipe, size, policy=policy.digest)
            reel = self._reels[key] = Reel(peer, window, plan, self._macs_for(peer), recipe, size, policy)
            if len(self._reels) > _MOST_REELS:
                self._reels.popitem(last=False)
        return reel

    def _macs_for(self, peer: NodeId) -> IdMacs:
        """Return what seals key IDs in this session."""
        under = self.id_keys.issues_under(peer)
        kept = self._macs.get(peer)
        if kept is None or kept[0] != under:
            kept = self._macs[peer] = (under, IdMacs(self.id_keys.issuing(peer)))
        return kept[1]

    def flow(self, peer: NodeId, *, full: bool) -> Flow:
        """Return the count of what is issued; whoever takes slots adds to it."""
        return self._demand.flow(peer, full=full)

    def window_in_hand(self, peer: NodeId, *, full: bool, slots: int, accept: Accept) -> IssuerWindow | None:
        """Return the oldest window from which a key of so many slots can be issued without waiting."""
        return self._pools.pair(peer).issuer.first_ready(full=full, slots=slots, accept=accept)

    def look_ahead(self, peer: NodeId, *, full: bool, accept: Accept) -> None:
        """See to it that the next requests find slots in hand."""
        flow = self._demand.flow(peer, full=full)
        if self.on_short is None or (peer, full) in self._refilling:
            flow.until_look = max(1, flow.low // 4)  # nothing to be done before, and soon enough then
            return
        spare = self._pools.pair(peer).issuer.in_hand(full=full) - flow.low
        flow.until_look = max(spare, 1)
        if spare < 0 and self.on_short(peer, full, accept):
            self._refilling.add((peer, full))

    # --- what must wait

    async def issue(
        self, pair: Pair, recipe: Recipe, *, number: int, size: Bits, accept: Accept, tls_group: str
    ) -> list[FreshKey]:
        """Issue `number` keys, waiting for a reservation, or for the far node's grant, where too little is in hand.

        Raises:
            NotEnoughKeyError: not enough slots, or no lease; nothing was taken.
            StoreUnavailableError: the store confirms no reservation; nothing was taken.
        """
        if size > SIZE_MAX:
            raise NotEnoughKeyError(f"a key ID names at most {SIZE_MAX} bits")
        peer, full, per_key = pair.target.node, recipe.needs_qkd, recipe.slots_for(size)
        flow = self._demand.flow(peer, full=full)
        flow.waiting += number * per_key
        try:
            for _ in range(_ATTEMPTS):
                keys = self.issue_now(pair, recipe, number=number, size=size, accept=accept, tls_group=tls_group)
                if keys:
                    return keys
                if self.available(pair, recipe, size, accept) < number:
                    await self._get_window(pair, recipe, number=number, size=size, accept=accept)
                if self.available(pair, recipe, size, accept) < number:
                    break
                wanted = partial(self._demand.at_once, peer, full=full)
                if await self._pools.reserving.reserve(
                    peer, wanted, full=full, slots=per_key, accept=accept, keys=number
                ):
                    self._demand.note_reserved(peer, full=full)
        finally:
            flow.waiting -= number * per_key
        if self.on_low is not None:
            self.on_low(peer)
        raise NotEnoughKeyError(f"fewer than {number} keys of recipe {recipe.name} can be issued now")

    async def _get_window(self, pair: Pair, recipe: Recipe, *, number: int, size: Bits, accept: Accept) -> None:
        """Have the far node grant what is missing, or cede it to this one; one asks for all who wait."""
        peer, full, per_key = pair.target.node, recipe.needs_qkd, recipe.slots_for(size)
        if self.ask_window is None or not self._sessions.has_lease(peer):
            return
        kind = StrandKind.of(pair.policy, full=full)
        async with self._pools.pair(peer).asking:
            for _ in range(_ATTEMPTS):  # a grant ends with its segment, perhaps in the middle of a key
                missing = number - self.available(pair, recipe, size, accept)
                stock = self._pools.ungranted(peer, self._ctx.name, full=full, accept=accept)
                if missing <= 0:
                    return
                wanted = max(self._demand.at_once(peer, full=full), self._ctx.settings.window_slots)
                try:
                    if stock >= missing * per_key:
                        await self.ask_window(peer, kind, wanted)
                    elif self.cede is None or not await self.cede(peer, missing * per_key):
                        return
                except TrenzaError:  # whoever asked hears that there is too little
                    return

    async def refill(self, peer: NodeId, *, full: bool, accept: Accept) -> None:
        """Reserve ahead of need, so that requests need not wait."""
        try:
            wanted = partial(self._demand.at_once, peer, full=full)
            if await self._pools.reserving.reserve(peer, wanted, full=full, accept=accept):
                self._demand.note_reserved(peer, full=full)
        finally:
            self._refilling.discard((peer, full))
        if self.on_low is not None and (self._demand.windows_to_ask(peer) or self._demand.is_low(peer)):
            self.on_low(peer)
