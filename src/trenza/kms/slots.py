"""From slots to keys: taking slots for new keys, and finding the slots that a key ID names.

The heart of issuing without a round trip (design decision 9). Here a slot is taken, made durable, and only then
braided. Who may ask is decided by `kms.deliver`; what a key for several targets needs is in `kms.wrap`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import groupby
from uuid import UUID

import msgspec

from trenza.base.errors import (
    ConflictError,
    NotEnoughKeyError,
    TrenzaError,
    UnauthorisedError,
    UnknownKeyError,
)
from trenza.base.names import NodeId
from trenza.base.secret import Secret
from trenza.base.units import Bits, Nanoseconds, Seconds, nanoseconds
from trenza.core.binding import BindingInfo
from trenza.core.choice import StrandKind
from trenza.core.combine import combine
from trenza.core.delivery import DeliveredKey, KeyFacts
from trenza.core.keyid import (
    SIZE_MAX,
    IdKeys,
    KeyAddress,
    pair_binding,
    pair_handle,
    read_key_id,
    seal_key_id,
    verify_key_id,
)
from trenza.core.policy import Policy, SaeEntry
from trenza.core.provenance import FORMAT_VERSION, KeyRecord
from trenza.core.recipe import Recipe, recipe_of_code
from trenza.core.segment import SegmentFacts
from trenza.core.strand import NO_EXCHANGE, Origin
from trenza.core.window import HeldWindow, Take
from trenza.kms.context import Context
from trenza.kms.demand import Demand
from trenza.kms.id_keys import IdKeyRing
from trenza.kms.pools import Pools
from trenza.kms.ports import Append, Change, Insert, Table
from trenza.kms.rows import delivered_key
from trenza.kms.sessions import Sessions


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


@dataclass(frozen=True, slots=True)
class Found:
    """The slots that a key ID names, reserved for one delivery."""

    key_id: UUID
    pair: Pair
    address: KeyAddress
    recipe: Recipe
    window: HeldWindow = field(repr=False)

    @property
    def slots(self) -> range:
        return range(self.address.slot, self.address.slot + self.recipe.slots_for(self.address.size))


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose key an ID names, and where it lies."""

    pair: Pair
    address: KeyAddress
    peer: NodeId
    issued_here: bool


class Slots:
    """Taking and finding slots of this node's pools."""

    def __init__(self, ctx: Context, *, sessions: Sessions, id_keys: IdKeyRing, pools: Pools, demand: Demand) -> None:
        self._ctx = ctx
        self._sessions = sessions
        self._id_keys = id_keys
        self._pools = pools
        self._demand = demand
        self.on_low: Callable[[NodeId], None] | None = None  # told when little is left to issue

    # --- issuing

    def available(self, pair: Pair, recipe: Recipe, size: Bits, accept: Callable[[SegmentFacts], bool]) -> int:
        """Return how many keys could be issued now with `recipe`, under a live lease."""
        peer = pair.target.node
        if not self._sessions.has_lease(peer):
            return 0
        full = Origin.QKD in recipe.origins
        return self._pools.pair(peer).issuer.available(full=full, slots=recipe.slots_for(size), accept=accept)

    async def issue(
        self,
        pair: Pair,
        recipe: Recipe,
        *,
        number: int,
        size: Bits,
        accept: Callable[[SegmentFacts], bool],
        tls_group: str,
    ) -> list[DeliveredKey]:
        """Take slots for `number` keys, make that durable, then braid. Nothing leaves before the commit.

        Raises:
            NotEnoughKeyError: not enough slots, or no lease; nothing was taken.
            StoreUnavailableError: the outcome of the commit is unknown; the slots are burnt and declared void.
        """
        if size > SIZE_MAX:
            raise NotEnoughKeyError(f"a key ID names at most {SIZE_MAX} bits")
        peer = pair.target.node
        takes: list[Take] = []
        if self._sessions.has_lease(peer):
            full = Origin.QKD in recipe.origins
            per_key = recipe.slots_for(size)
            takes = self._pools.pair(peer).issuer.take(number, full=full, slots=per_key, accept=accept)
        if not takes:
            raise NotEnoughKeyError(f"fewer than {number} keys of recipe {recipe.name} can be issued now")
        self._note_demand(peer, full=full, slots=number * per_key)
        with self._pools.using(peer, (take.window.facts.record.segment for take in takes)):
            try:
                await self._ctx.store.commit(self._changes_of_issue(pair, recipe, size, takes, tls_group))
            except BaseException:
                self._burn(takes)
                raise
            keys = self._id_keys.issuing(peer)
            return [await self._braid_taken(pair, recipe, size, take, keys) for take in takes]

    def _note_demand(self, peer: NodeId, *, full: bool, slots: int) -> None:
        self._demand.note_issued(peer, full=full, slots=slots)
        little = self._ctx.settings.stock_target // 2
        if self.on_low is not None and self._pools.pair(peer).issuer.available(full=full) < little:
            self.on_low(peer)

    def _changes_of_issue(
        self, pair: Pair, recipe: Recipe, size: Bits, takes: Sequence[Take], tls_group: str
    ) -> list[Change]:
        peer = pair.target.node
        now = self._ctx.clock.now()
        changes: list[Change] = []
        for number, group in groupby(takes, key=lambda take: take.window.number):
            some = list(group)
            window = some[0].window
            changes.append(self._pools.issuer_row(peer, window))
            slots = tuple(take.slot for take in some)
            record = self._record(pair, recipe, size, peer, number, window.facts, slots, tls_group)
            changes.append(self._entry(now, "issued", record))
        return changes

    def _record(
        self,
        pair: Pair,
        recipe: Recipe,
        size: Bits,
        peer: NodeId,
        window: int,
        facts: SegmentFacts,
        slots: tuple[int, ...],
        tls_group: str,
    ) -> KeyRecord:
        return KeyRecord(
            version=FORMAT_VERSION,
            segment=facts.record.segment,
            peer=peer,
            window=window,
            slots=slots,
            initiator=pair.initiator.name,
            target=pair.target.name,
            recipe=recipe.name,
            size=size,
            policy=pair.policy.name,
            policy_digest=pair.policy.digest,
            tls_group=tls_group,
            uncertainty=self._ctx.settings.clock_uncertainty,
        )

    @staticmethod
    def _entry(now: Nanoseconds, kind: str, record: KeyRecord) -> Append:
        terms = (f"segment:{record.segment.hex()}", window_term(NodeId(record.peer), record.window))
        return Append(now, kind, msgspec.msgpack.encode(record), terms)

    def _burn(self, takes: Iterable[Take]) -> None:
        """Declare void what may or may not have been recorded: it is doubtful and is never used."""
        for take in takes:
            take.window.void.extend(range(take.slot, take.slot + take.slots))
            self._ctx.counters["slots_doubtful"] += take.slots

    async def _braid_taken(self, pair: Pair, recipe: Recipe, size: Bits, take: Take, keys: IdKeys) -> DeliveredKey:
        address = KeyAddress(take.window.number, take.slot, pair.handle, size, recipe.code)
        key_id = seal_key_id(address, keys, binding=pair.binding)
        slots = range(take.slot, take.slot + take.slots)
        key = await self._braid(pair.target.node, take.window.facts, pair, recipe, key_id, size, slots)
        now = self._ctx.clock.now()
        return DeliveredKey(key_id, key, self._facts(recipe, size, take.window.facts, now, pair.policy))

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
            address = read_key_id(key_id, keys.theirs)
            for pair in pairs:
                if not verify_key_id(key_id, address, keys.theirs, binding=pair.binding):
                    continue
                window = self._pools.pair(peer).held.get(address.window)
                if window is None:
                    return None
                found = Found(key_id, pair, address, recipe_of_code(address.recipe), window)
                return found if self._is_in_policy(found) else None
        return None

    def _is_in_policy(self, found: Found) -> bool:
        """Tell whether the issuing node kept to the officer's policy; its word is not taken for it (decision 13)."""
        policy, recipe = found.pair.policy, found.recipe
        suits = StrandKind.of(policy, full=recipe.needs_qkd).acceptance(oldest=Nanoseconds(0))
        if recipe in policy.recipes and (not recipe.needs_qkd or suits(found.window.facts)):
            return True
        self._ctx.counters["keys_outside_policy"] += 1
        return False

    def _is_of_other(self, pair: Pair, key_id: UUID) -> bool:
        owner = self.owner(key_id)
        return owner is not None and (owner.pair.initiator, owner.pair.target) != (pair.initiator, pair.target)

    def owner(self, key_id: UUID) -> Owner | None:
        """Return whose key ID this is, whoever asks; None when this node cannot tell that it is genuine."""
        book = self._ctx.book
        for peer in self._id_keys.peers:
            for keys in self._id_keys.fetchable(peer):
                for issued_here, side in ((False, keys.theirs), (True, keys.mine)):
                    address = read_key_id(key_id, side)
                    for mine, other, policy in book.pairs_of_node(self._ctx.name):
                        pair = Pair(mine, other, policy) if issued_here else Pair(other, mine, policy)
                        named = other.node == peer and pair.handle == address.handle
                        if named and verify_key_id(key_id, address, side, binding=pair.binding):
                            return Owner(pair, address, peer, issued_here)
        return None

    def segment_of_window(self, peer: NodeId, window: int) -> bytes | None:
        """Return the segment of a window granted to `peer`, while it is held."""
        held = self._pools.pair(peer).held.get(window)
        return None if held is None else held.facts.record.segment

    def _is_alive(self, found: Found) -> bool:
        heard = found.window.heard_at(found.address.slot)
        lifetime = nanoseconds(Seconds(float(found.pair.policy.key_lifetime_s)))
        return heard is None or self._ctx.clock.now() - heard <= lifetime

    @staticmethod
    def release(found: Iterable[Found]) -> None:
        """Give reservations back; nothing was committed for them."""
        for one in found:
            one.window.release(one.slots)

    async def deliver(self, found: Sequence[Found], *, tls_group: str) -> list[DeliveredKey]:
        """Make the delivery of reserved slots durable, then braid.

        Raises:
            UnknownKeyError: one was delivered before, as the store knows.
            StoreUnavailableError: the outcome is unknown; the keys are burnt.
        """
        changes: list[Change] = []
        now = self._ctx.clock.now()
        for one in found:
            peer = one.pair.initiator.node
            changes += [Insert(Table.DELIVERED, delivered_key(peer, one.window.number, slot)) for slot in one.slots]
        for (number, recipe, size, _), group in groupby(
            found, key=lambda one: (one.window.number, one.recipe, one.address.size, one.pair.policy.digest)
        ):
            some = list(group)
            first = some[0]
            peer = first.pair.initiator.node
            slots = tuple(one.address.slot for one in some)
            record = self._record(first.pair, recipe, size, peer, number, first.window.facts, slots, tls_group)
            changes.append(self._entry(now, "delivered", record))
        peer = found[0].pair.initiator.node
        with self._pools.using(peer, (one.window.facts.record.segment for one in found)):
            try:
                await self._ctx.store.commit(changes)
            except ConflictError:
                raise UnknownKeyError("one or more keys specified are not found on KME") from None
            except TrenzaError:
                self._ctx.counters["keys_doubtful"] += len(found)
                raise
            return [await self._braid_found(one) for one in found]

    async def _braid_found(self, one: Found) -> DeliveredKey:
        peer, size = one.pair.initiator.node, one.address.size
        key = await self._braid(peer, one.window.facts, one.pair, one.recipe, one.key_id, size, one.slots)
        issued = one.window.heard_at(one.address.slot) or self._ctx.clock.now()
        return DeliveredKey(one.key_id, key, self._facts(one.recipe, size, one.window.facts, issued, one.pair.policy))

    # --- both

    async def _braid(
        self,
        peer: NodeId,
        facts: SegmentFacts,
        pair: Pair,
        recipe: Recipe,
        key_id: UUID,
        size: Bits,
        slots: range,
    ) -> Secret:
        segment = await self._pools.opened(peer, facts.record.segment)
        bundles = [segment.bundle(slot, recipe.origins) for slot in slots]
        try:
            info = BindingInfo(
                recipe=recipe,
                initiator_node=pair.initiator.node,
                target_node=pair.target.node,
                initiator_sae=pair.initiator.name,
                target_sae=pair.target.name,
                key_id=key_id.bytes,
                policy_digest=pair.policy.digest,
                provenance_digest=facts.digest,
                size=size,
            )
            transcript = segment.transcript if _uses_exchange(recipe) else NO_EXCHANGE
            return combine(bundles, recipe=recipe, transcript=transcript, info=info, size=size)
        finally:
            for bundle in bundles:
                bundle.wipe()

    def _facts(
        self, recipe: Recipe, size: Bits, facts: SegmentFacts, issued: Nanoseconds, policy: Policy
    ) -> KeyFacts:
        origins, strength = _origins_and_strength(recipe.code, size)
        qkd = Origin.QKD in origins
        return KeyFacts(
            recipe=recipe.name,
            origins=origins,
            supply=facts.record.supply if qkd else None,
            strength=strength,
            hops=len(facts.record.hops) if qkd else 0,
            created=Nanoseconds(facts.record.created),
            expires=Nanoseconds(issued + nanoseconds(Seconds(float(policy.key_lifetime_s)))),
        )


@lru_cache(maxsize=256)
def _origins_and_strength(code: int, size: Bits) -> tuple[tuple[Origin, ...], str]:
    """Return what every key of one recipe and size is told of; remembered, because it is told of every key."""
    recipe = recipe_of_code(code)
    return tuple(sorted(recipe.origins, key=lambda origin: origin.value)), str(recipe.strength(size))


def _uses_exchange(recipe: Recipe) -> bool:
    return not recipe.origins.isdisjoint({Origin.CLASSICAL, Origin.PQC})


def window_term(peer: NodeId, number: int) -> str:
    """Return the ledger term of one window."""
    return f"window:{peer}:{number}"
