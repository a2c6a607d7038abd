"""Fetching: finding the slots that a key ID names, and making the target's copy of the key, once.

The other half of issuing without a round trip (`kms.issuing`; design decision 9). A delivery is durable before its
key is braided. Who may ask is decided by `kms.deliver`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final, NamedTuple
from uuid import UUID

from trenza.base.errors import ConflictError, FencedError, UnauthorisedError, UnknownKeyError
from trenza.base.names import NodeId
from trenza.base.secret import Secret
from trenza.base.units import NANOSECONDS_PER_SECOND, Bits, Nanoseconds, Seconds, nanoseconds
from trenza.core.binding import Parties
from trenza.core.choice import StrandKind
from trenza.core.delivery import DeliveredKey, KeyFacts
from trenza.core.keyid import (
    KeyAddress,
    pair_binding,
    pair_handle,
    read_key_id,
    read_packed,
    size_and_recipe_of,
    slot_of,
    verify_key_id,
    verify_packed,
    window_of,
)
from trenza.core.plan import KeyPlan
from trenza.core.policy import Book, Policy, SaeEntry
from trenza.core.provenance import FORMAT_VERSION, DoubtfulRecord
from trenza.core.recipe import Recipe, recipe_of_code
from trenza.core.segment import OpenSegment, SegmentFacts
from trenza.core.strand import Origin
from trenza.core.window import HeldWindow
from trenza.kms.context import Context
from trenza.kms.id_keys import IdKeyRing
from trenza.kms.journal import Heading, Journal, Source
from trenza.kms.pools import Pools
from trenza.kms.ports import Change, Exists, Insert, Table
from trenza.kms.rows import HOLDER, delivered_key, window_key

_MOST_REELS: Final = 4_096  # those used last
_MOST_HEADINGS: Final = 32_768  # likewise


@dataclass(frozen=True, eq=False)
class Pair:
    """Two SAEs on two nodes, and what their keys must be made of. Kept by its maker: what it derives is cached."""

    initiator: SaeEntry
    target: SaeEntry
    policy: Policy

    @cached_property
    def handle(self) -> int:
        return pair_handle(self.initiator.name, self.target.name)

    @cached_property
    def binding(self) -> bytes:
        """Return what the MAC of the pair's key IDs covers."""
        return pair_binding(
            self.initiator.node,
            self.target.node,
            self.initiator.name,
            self.target.name,
            policy_digest=self.policy.digest,
        )

    @cached_property
    def parties(self) -> Parties:
        """Return whom the pair's keys are bound to."""
        return Parties(self.initiator.node, self.target.node, self.initiator.name, self.target.name)


class HeldReel:
    """What the keys of one recipe, size and policy out of one held window have in common, whatever their pair."""

    __slots__ = (
        "_expires",
        "_facts",
        "_opened",
        "_plan",
        "_policy",
        "is_in_policy",
        "lifetime",
        "recipe",
        "size",
        "slots",
        "source",
        "window",
    )

    def __init__(self, peer: NodeId, window: HeldWindow, recipe: Recipe, size: Bits, policy: Policy) -> None:
        self.window = window
        self.recipe = recipe
        self.size = size
        self.slots = recipe.slots_for(size)
        self.source = Source(peer, window.number, window.facts.record.segment)
        self.lifetime = nanoseconds(Seconds(float(policy.key_lifetime_s)))
        self.is_in_policy = recipe in policy.recipes and (
            not recipe.needs_qkd or StrandKind.of(policy, full=True).acceptance(oldest=Nanoseconds(0))(window.facts)
        )
        self._policy = policy
        self._opened: OpenSegment | None = None
        self._plan: KeyPlan
        self._expires = -1  # in seconds; keys of one second share their facts
        self._facts: KeyFacts

    def key(self, segment: OpenSegment, slot: int, key_id: UUID, parties: Parties) -> bytearray:
        """Make the key whose delivery is durable; the caller wipes it."""
        if segment is not self._opened:
            self._plan = KeyPlan(segment, self.recipe, self.size, policy=self._policy.digest)
            self._opened = segment
        return self._plan.key(slot, key_id.bytes, parties)

    def facts(self, slot: int, now: Nanoseconds) -> KeyFacts:
        """Return what applications are told of the key."""
        window = self.window
        issued = window.heard_at(slot) or now
        expires = (issued + self.lifetime) // NANOSECONDS_PER_SECOND
        if expires != self._expires:
            self._expires = expires
            self._facts = facts_of(self.recipe, self.size, window.facts, issued, self._policy)
        return self._facts


class Found(NamedTuple):
    """The slots that a key ID names, held for one delivery."""

    key_id: UUID
    pair: Pair
    reel: HeldReel
    slot: int  # the first of them

    @property
    def window(self) -> HeldWindow:
        return self.reel.window

    @property
    def slots(self) -> range:
        return range(self.slot, self.slot + self.reel.slots)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose key an ID names, and where it lies."""

    pair: Pair
    address: KeyAddress
    peer: NodeId
    issued_here: bool


class Slots:
    """Finding and delivering slots that other nodes have issued to this one."""

    def __init__(self, ctx: Context, *, id_keys: IdKeyRing, pools: Pools, journal: Journal) -> None:
        self._ctx = ctx
        self._id_keys = id_keys
        self._pools = pools
        self._journal = journal
        self._reels: OrderedDict[tuple[NodeId, int, int, bytes], HeldReel] = OrderedDict()
        self._headings: OrderedDict[tuple[Pair, int, Bits, str], Heading] = OrderedDict()
        self._named: dict[tuple[NodeId, int, bool], list[Pair]] = {}
        self._named_in: Book | None = None

    # --- fetching

    def find(self, pair: Pair, former: Sequence[Policy], key_ids: Sequence[UUID]) -> list[Found]:
        """Find and reserve the slots of every key ID, or of none.

        Args:
            pair: who says it is the target, and whom it names as initiator.
            former: the pair's policies in the books before this one, under which a key may still have been issued.
            key_ids: each once.

        Raises:
            UnauthorisedError: one of them is a genuine ID of another pair.
            UnknownKeyError: one of them cannot be returned: never issued, expired, void, or delivered before.
        """
        pairs = [pair, *(Pair(pair.initiator, pair.target, policy) for policy in former)]
        located = [self._locate(pairs, key_id) for key_id in key_ids]
        if any(
            found is None and self._is_of_other(pair, key_id) for found, key_id in zip(located, key_ids, strict=True)
        ):
            raise UnauthorisedError("a key of another pair was asked for")
        reserved: list[Found] = []
        for found in located:
            if found is None or not self._is_alive(found) or not found.window.reserve(found.slots):
                self.release(reserved)
                raise UnknownKeyError("one or more keys specified are not found on KME")
            reserved.append(found)
        return reserved

    def _locate(self, pairs: Sequence[Pair], key_id: UUID) -> Found | None:
        peer = pairs[0].initiator.node
        for keys in self._id_keys.fetchable(peer):
            packed = read_packed(key_id.int, keys.theirs)
            for pair in pairs:
                if not verify_packed(key_id.int, packed, keys.theirs, binding=pair.binding):
                    continue
                reel = self._reel(pair, packed)
                if reel is None:
                    return None
                if reel.is_in_policy:
                    return Found(key_id, pair, reel, slot_of(packed))
                self._ctx.counters["keys_outside_policy"] += 1
                return None
        return None

    def _reel(self, pair: Pair, packed: int) -> HeldReel | None:
        """Return the reel for a genuine address; None where its window is not held.

        It tells whether the issuing node kept to the officer's policy; its word is not taken for it (decision 13).
        """
        peer = pair.initiator.node
        window = self._pools.pair(peer).held.get(window_of(packed))
        if window is None:
            return None
        wanted = (peer, window.number, size_and_recipe_of(packed), pair.policy.digest)
        reel = self._reels.get(wanted)
        if reel is not None and reel.window is window:
            self._reels.move_to_end(wanted)
            return reel
        address = KeyAddress.unpack(packed)
        reel = HeldReel(peer, window, recipe_of_code(address.recipe), address.size, pair.policy)
        self._reels[wanted] = reel
        if len(self._reels) > _MOST_REELS:
            self._reels.popitem(last=False)
        return reel

    def _heading(self, one: Found, tls_group: str) -> Heading:
        pair, reel = one.pair, one.reel
        wanted = (pair, reel.recipe.code, reel.size, tls_group)
        heading = self._headings.get(wanted)
        if heading is None:
            names = pair.initiator.name, pair.target.name
            heading = Heading("delivered", *names, reel.recipe, reel.size, pair.policy, tls_group)
            self._headings[wanted] = heading
            if len(self._headings) > _MOST_HEADINGS:
                self._headings.popitem(last=False)
        else:
            self._headings.move_to_end(wanted)
        return heading

    def _is_of_other(self, pair: Pair, key_id: UUID) -> bool:
        owner = self.owner(key_id)
        return owner is not None and (owner.pair.initiator, owner.pair.target) != (pair.initiator, pair.target)

    def owner(self, key_id: UUID) -> Owner | None:
        """Return whose key ID this is, whoever asks; None when this node cannot tell that it is genuine."""
        for peer in self._id_keys.peers:
            for keys in self._id_keys.fetchable(peer):
                for issued_here, side in ((False, keys.theirs), (True, keys.mine)):
                    address = read_key_id(key_id, side)
                    for pair in self._pairs_named(peer, address.handle, issued_here=issued_here):
                        if verify_key_id(key_id, address, side, binding=pair.binding):
                            return Owner(pair, address, peer, issued_here)
        return None

    def _pairs_named(self, peer: NodeId, handle: int, *, issued_here: bool) -> Sequence[Pair]:
        """Return the pairs that a handle may mean.

        Looked up: invented key IDs are many, and so are the pairs of a large book.
        """
        book = self._ctx.book
        if book is not self._named_in:
            self._named.clear()
            for mine, other, policy in book.pairs_of_node(self._ctx.name):
                for here, pair in ((True, Pair(mine, other, policy)), (False, Pair(other, mine, policy))):
                    self._named.setdefault((other.node, pair.handle, here), []).append(pair)
            self._named_in = book
        return self._named.get((peer, handle, issued_here), ())

    def segment_of_window(self, peer: NodeId, window: int) -> bytes | None:
        """Return the segment of a window granted to `peer`, while it is held."""
        held = self._pools.pair(peer).held.get(window)
        return None if held is None else held.facts.record.segment

    def _is_alive(self, found: Found) -> bool:
        heard = found.window.heard_at(found.slot)
        return heard is None or self._ctx.clock.now() - heard <= found.reel.lifetime

    @staticmethod
    def release(found: Iterable[Found]) -> None:
        """Give reservations back; nothing was committed for them."""
        for one in found:
            one.window.release(one.slots)

    async def deliver(self, found: Sequence[Found], *, tls_group: str) -> list[DeliveredKey]:
        """Make the delivery of reserved slots durable, then braid.

        Raises:
            UnknownKeyError: one was delivered before, as the store knows.
            StoreUnavailableError: the outcome is unknown, as it is for who stops waiting; the keys are burnt in this
                life, or the store knows where instances share it.
            UnavailableError: the store takes no records; nothing is burnt.
        """
        if self._journal.is_full:
            self.release(found)
            self._journal.refuse_if_full()
        peer = found[0].pair.initiator.node
        windows = {one.window.number for one in found}
        changes: list[Change] = [  # a window that was forgotten took the marks of its deliveries along
            Exists(Table.WINDOW, window_key(HOLDER, peer, number)) for number in sorted(windows)
        ]
        changes += [
            Insert(Table.DELIVERED, delivered_key(peer, one.window.number, slot))
            for one in found
            for slot in one.slots
        ]
        held = self._pools.pair(peer).held
        with self._pools.strands.using(peer, (one.window.facts.record.segment for one in found)):
            try:
                await self._ctx.store.commit(changes)
            except ConflictError:  # nothing was written: what another instance has not delivered is still there
                self.release(found)
                raise UnknownKeyError("one or more keys specified are not found on KME") from None
            except FencedError:  # nor here
                self.release(found)
                raise
            except BaseException:  # also who asked may be gone, or have waited too long: the commit goes on
                self._doubt(found)
                if self._ctx.shared is not None:
                    self.release(found)  # whoever asks again learns from the store whether it was written
                raise
            for one in found:
                held.settle(one.window)
            keys: list[DeliveredKey] = []
            try:
                for one in found:
                    keys.append(await self._made(peer, one, tls_group))  # noqa: PERF401 - a part is wiped
            except BaseException:
                self._doubt(found[len(keys) :])
                for key in keys:
                    key.key.wipe()
                raise
            return keys

    def _doubt(self, found: Sequence[Found]) -> None:
        """Record that these keys may be marked as delivered, by a commit whose outcome nobody waits for."""
        self._ctx.counters["keys_doubtful"] += len(found)
        for one in found:
            record, peer = one.window.facts.record, one.pair.initiator.node
            ranges = ((one.slot, one.reel.slots),)
            self._journal.doubt(
                DoubtfulRecord(FORMAT_VERSION, "delivered", record.segment, peer, one.window.number, ranges)
            )

    async def _made(self, peer: NodeId, one: Found, tls_group: str) -> DeliveredKey:
        segment = await self._pools.strands.opened(peer, one.window.facts.record.segment)
        key = Secret(one.reel.key(segment, one.slot, one.key_id, one.pair.parties))
        now = self._ctx.clock.now()
        self._journal.note(self._heading(one, tls_group), one.reel.source, (one.slot,), now)
        return DeliveredKey(one.key_id, key, one.reel.facts(one.slot, now))


def facts_of(recipe: Recipe, size: Bits, facts: SegmentFacts, issued: Nanoseconds, policy: Policy) -> KeyFacts:
    """Return what applications are told of a key; it expires with a whole second, so that keys of one share this."""
    origins, strength = _origins_and_strength(recipe.code, size)
    qkd = Origin.QKD in origins
    expires = issued + nanoseconds(Seconds(float(policy.key_lifetime_s)))
    return KeyFacts(
        recipe=recipe.name,
        origins=origins,
        supply=facts.record.supply if qkd else None,
        strength=strength,
        hops=len(facts.record.hops) if qkd else 0,
        created=Nanoseconds(facts.record.created),
        expires=Nanoseconds(expires // NANOSECONDS_PER_SECOND * NANOSECONDS_PER_SECOND),
    )


@lru_cache(maxsize=256)
def _origins_and_strength(code: int, size: Bits) -> tuple[tuple[Origin, ...], str]:
    """Return what every key of one recipe and size is told of; remembered, because it is told of every key."""
    recipe = recipe_of_code(code)
    return tuple(sorted(recipe.origins, key=lambda origin: origin.value)), str(recipe.strength(size))
