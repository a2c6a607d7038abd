"""Keys that are random at the initiator's node: for two SAEs of one node, and for several targets at once.

LOCAL: two SAEs of one node share no QKD or PQC strand; their key is drawn here and waits, sealed, for the other
(decision 3). WRAPPED: a key for several targets is drawn here and carried to each target's node under a full braid
with that node: one-time pad and one-time MAC, both from the braid. All or nothing, in two phases with voiding
(decision 9): these keys take round trips, and a key is as good as its weakest leg. What has arrived is in
`kms.waiting`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec

from trenza.base.errors import (
    FencedError,
    RefusedError,
    RemoteProtocolError,
    StoreUnavailableError,
    TrenzaError,
    UnauthorisedError,
    UnavailableError,
)
from trenza.base.names import NodeId, SaeId
from trenza.base.secret import Secret
from trenza.base.units import Bits, Nanoseconds, Seconds, bits_of_bytes, nanoseconds, whole_bytes
from trenza.core import hop
from trenza.core.choice import acceptance
from trenza.core.delivery import DeliveredKey, KeyFacts, Wishes
from trenza.core.policy import Policy, SaeEntry
from trenza.core.provenance import FORMAT_VERSION, WrapRecord
from trenza.core.recipe import LOCAL, WRAPPED, Recipe
from trenza.core.strand import Origin, worst_of
from trenza.kms.context import Context
from trenza.kms.issuing import Issuing
from trenza.kms.ports import Change
from trenza.kms.slots import Pair, Slots
from trenza.kms.together import together
from trenza.kms.waiting import WaitingKeys, decode_facts, encode_facts, entry_of
from trenza.wire.peer import Done, WrapCommit, WrapOffer, WrapVoid

MAC_BITS = bits_of_bytes(hop.MAC_KEY_BYTES)
"""The braid that carries a key is this much longer than the key."""

_LATER = frozenset({UnavailableError.code, StoreUnavailableError.code, FencedError.code})
"""Refusals after which a void is told again."""

_MOST_VOIDS = 10_000
"""While so many have not been heard, no key is drawn that might add to them."""


@dataclass(frozen=True, slots=True)
class Leg:
    """One target of a key, and the recipe that protects the way to its node; no recipe where it never travels."""

    pair: Pair
    recipe: Recipe | None


class Wrapped:
    """The keys that this node draws, and those that others place here."""

    def __init__(self, ctx: Context, *, issuing: Issuing, slots: Slots, waiting: WaitingKeys) -> None:
        self._ctx = ctx
        self._issuing = issuing
        self._slots = slots
        self._waiting = waiting
        self._unheard_voids: dict[tuple[NodeId, bytes], Nanoseconds] = {}  # until when there is a point in it
        self.on_void: Callable[[], None] | None = None  # wakes whoever calls tell_voids

    # --- drawing

    async def issue(
        self,
        initiator: SaeEntry,
        legs: Sequence[Leg],
        *,
        number: int,
        size: Bits,
        wishes: Wishes,
        tls_group: str,
    ) -> list[DeliveredKey]:
        """Draw `number` keys and place each with every target, or with none.

        Raises:
            NotEnoughKeyError: too many keys wait at this node for one of its own targets; none was drawn.
            UnavailableError: one target could not be reached or served; everything is void.
        """
        if len(self._unheard_voids) >= _MOST_VOIDS:
            raise UnavailableError("too many nodes have not heard yet which keys are void; try again later")
        for leg in legs:
            if leg.recipe is None:
                self._waiting.refuse_if_full(initiator.name, leg.pair.target.name, number=number)
        keys: list[DeliveredKey] = []
        try:
            while len(keys) < number:
                keys.append(await self._issue_one(initiator, legs, size, wishes, tls_group))
        except BaseException:
            for key in keys:
                key.key.wipe()
                self._void(legs, key.key_id.bytes)
            raise
        return keys

    async def _issue_one(
        self, initiator: SaeEntry, legs: Sequence[Leg], size: Bits, wishes: Wishes, tls_group: str
    ) -> DeliveredKey:
        ctx = self._ctx
        drawn = ctx.entropy.token(16)
        key_id = UUID(bytes=bytes(drawn), version=4)
        key = Secret(ctx.entropy.token(whole_bytes(size)))
        now = ctx.clock.now()
        lifetime = min(leg.pair.policy.key_lifetime_s for leg in legs)
        expires = Nanoseconds(now + nanoseconds(Seconds(float(lifetime))))
        try:
            braids = await self._braids(legs, size, wishes, tls_group)
            facts = _weakest(braids, size, now, expires)
            await self._offer_all(initiator, legs, braids, key_id.bytes, key, facts)
            await self._commit_all(legs, key_id.bytes)
            await self._record(initiator, legs, braids, key_id.bytes, size, tls_group)
        except TrenzaError as error:
            key.wipe()
            self._void(legs, key_id.bytes)
            if isinstance(error, UnavailableError):
                raise
            raise UnavailableError("not every target could be given the key; it is void") from error
        except BaseException:  # cancelled: whoever hears of it later is told by upkeep
            key.wipe()
            self._void(legs, key_id.bytes)
            raise
        return DeliveredKey(key_id, key, facts)

    async def _braids(
        self, legs: Sequence[Leg], size: Bits, wishes: Wishes, tls_group: str
    ) -> dict[SaeId, DeliveredKey]:
        """Issue to ourselves, for each far target, the braid that will wrap the key: pad, then MAC key."""
        braids: dict[SaeId, DeliveredKey] = {}
        try:
            for leg in legs:
                if leg.recipe is not None:
                    braids[leg.pair.target.name] = await self._braid(leg, leg.recipe, size, wishes, tls_group)
        except BaseException:
            _wipe(braids)
            raise
        return braids

    async def _braid(self, leg: Leg, recipe: Recipe, size: Bits, wishes: Wishes, tls_group: str) -> DeliveredKey:
        (braid,) = await self._issuing.issue(
            leg.pair,
            recipe,
            number=1,
            size=Bits(size + MAC_BITS),
            accept=acceptance(leg.pair.policy, wishes, now=self._ctx.clock.now()),
            tls_group=tls_group,
        )
        return braid.delivered()

    async def _offer_all(
        self,
        initiator: SaeEntry,
        legs: Sequence[Leg],
        braids: dict[SaeId, DeliveredKey],
        key_id: bytes,
        key: Secret,
        facts: KeyFacts,
    ) -> None:
        steps: list[Coroutine[Any, Any, None]] = []
        for leg in legs:
            target = leg.pair.target
            braid = braids.get(target.name)
            if braid is None:
                steps.append(self._waiting.keep(initiator.name, target.name, key_id, key, facts))
            else:
                steps.append(self._offer(initiator, target, braid, key_id, key, facts))
        try:
            await together(steps)
        finally:
            _wipe(braids)  # a leg that was cancelled before it began has not

    async def _offer(
        self,
        initiator: SaeEntry,
        target: SaeEntry,
        braid: DeliveredKey,
        key_id: bytes,
        key: Secret,
        facts: KeyFacts,
    ) -> None:
        ctx = self._ctx
        wrapped, mac_key = _wrapped(key, braid.key)
        braid.key.wipe()
        bare = WrapOffer(
            ctx.session(target.node).id,
            key_id,
            braid.key_id.bytes,
            initiator.name,
            target.name,
            len(key) * 8,
            wrapped,
            b"",
            facts.expires,
            encode_facts(facts),
        )
        offer = msgspec.structs.replace(bare, tag=hop.tag_of(_tagged(bare), mac_key))
        mac_key.wipe()
        answer = await ctx.peers.call(target.node, offer, timeout=ctx.settings.call_timeout)
        if not isinstance(answer, Done):
            raise RemoteProtocolError(f"node {target.node} did not take the key")

    async def _commit_all(self, legs: Sequence[Leg], key_id: bytes) -> None:
        await together(
            [
                self._waiting.make_ready(key_id, targets)
                if node == self._ctx.name
                else self._commit_at(node, key_id, targets)
                for node, targets in _by_node(legs).items()
            ]
        )

    async def _commit_at(self, node: NodeId, key_id: bytes, targets: Sequence[SaeId]) -> None:
        message = WrapCommit(key_id, tuple(targets))
        answer = await self._ctx.peers.call(node, message, timeout=self._ctx.settings.call_timeout)
        if not isinstance(answer, Done):
            raise RemoteProtocolError(f"node {node} did not commit the key")

    async def _record(
        self,
        initiator: SaeEntry,
        legs: Sequence[Leg],
        braids: dict[SaeId, DeliveredKey],
        key_id: bytes,
        size: Bits,
        tls_group: str,
    ) -> None:
        changes: list[Change] = []
        for leg in legs:
            braid = braids.get(leg.pair.target.name)
            record = WrapRecord(
                version=FORMAT_VERSION,
                key_id=key_id,
                initiator=initiator.name,
                target=leg.pair.target.name,
                recipe=LOCAL.name if braid is None else WRAPPED.name,
                size=size,
                braids=() if braid is None else (braid.key_id.bytes,),
                policy=leg.pair.policy.name,
                policy_digest=leg.pair.policy.digest,
                tls_group=tls_group,
                uncertainty=self._ctx.settings.clock_uncertainty,
            )
            changes.append(entry_of(self._ctx, "issued", record))
        await self._ctx.store.commit(changes)

    # --- voiding

    def _void(self, legs: Sequence[Leg], key_id: bytes) -> None:
        """Have the key destroyed wherever it may be: upkeep tells the nodes until they have heard."""
        self._ctx.counters["keys_voided"] += 1
        lifetime = max(leg.pair.policy.key_lifetime_s for leg in legs)
        until = Nanoseconds(self._ctx.clock.now() + nanoseconds(Seconds(float(lifetime))))
        self._unheard_voids |= dict.fromkeys(((node, key_id) for node in _by_node(legs)), until)
        if self.on_void is not None:
            self.on_void()

    async def tell_voids(self) -> None:
        """Tell the nodes that have not yet heard which keys are void; those that do not answer are told later."""
        now, silent = self._ctx.clock.now(), set[NodeId]()
        for (node, key_id), until in list(self._unheard_voids.items()):
            if node in silent:
                continue
            try:
                await self._tell_void(node, key_id)
            except UnavailableError:
                silent.add(node)
            except RefusedError as error:
                if error.remote_code in _LATER and until > now:
                    continue
                self._ctx.counters["voids_refused"] += 1
            except RemoteProtocolError:  # it answers with nonsense; the others are told all the same
                silent.add(node)
            if node not in silent or until < now:
                self._unheard_voids.pop((node, key_id), None)

    async def _tell_void(self, node: NodeId, key_id: bytes) -> None:
        if node == self._ctx.name:
            await self._waiting.destroy(key_id)
        else:
            await self._ctx.peers.call(node, WrapVoid(key_id), timeout=self._ctx.settings.call_timeout)

    # --- the target's node

    async def handle_offer(self, peer: NodeId, offer: WrapOffer) -> Done:
        """Phase one: unwrap under the braid that the key ID names, and hold the key, sealed.

        Raises:
            UnauthorisedError: the book does not let this node place such a key here.
            NotEnoughKeyError: too many keys wait here already; the braid is not used.
            RemoteProtocolError: the offer says what cannot be, or its tag does not verify.
        """
        ctx = self._ctx
        ctx.session_of(peer, offer.session)
        pair = self._offered_pair(peer, offer)
        self._waiting.refuse_if_full(pair.initiator.name, pair.target.name)
        found = self._slots.find(pair, (), [UUID(bytes=offer.braid_id)])
        (braid,) = await self._slots.deliver(found, tls_group="")
        try:
            key = _unwrapped(offer, braid.key)
        finally:
            braid.key.wipe()
        try:
            facts = self._checked_facts(offer, braid.facts, pair.policy)
            await self._waiting.keep(pair.initiator.name, pair.target.name, offer.key_id, key, facts)
        finally:
            key.wipe()
        return Done()

    def _offered_pair(self, peer: NodeId, offer: WrapOffer) -> Pair:
        """Return whose key is offered, if `peer` may place it here."""
        book = self._ctx.book
        initiator, target = book.sae_by_name.get(SaeId(offer.initiator)), book.sae_by_name.get(SaeId(offer.target))
        policy = book.policy_between(SaeId(offer.initiator), SaeId(offer.target))
        if initiator is None or target is None or policy is None:
            raise UnauthorisedError("the policy book does not let this pair share keys")
        if initiator.node != peer or target.node != self._ctx.name:
            raise UnauthorisedError("one of the SAEs is not served by the node that should serve it")
        if not policy.min_key_size <= offer.size <= policy.max_key_size:
            raise RemoteProtocolError("the policy of this pair knows no keys of that size")
        return Pair(initiator, target, policy)

    def _checked_facts(self, offer: WrapOffer, braid: KeyFacts, policy: Policy) -> KeyFacts:
        """Return what the application will be told: no more than the braid that carried the key allows."""
        facts, settings = decode_facts(offer.facts), self._ctx.settings
        latest = self._ctx.clock.now() + settings.clock_tolerance
        true = (
            facts.recipe == WRAPPED.name,
            frozenset(facts.origins) <= frozenset(braid.origins),
            braid.supply is None
            or (facts.supply is not None and worst_of((facts.supply, braid.supply)) is facts.supply),
            facts.strength == str(WRAPPED.strength(Bits(offer.size))),
            facts.hops >= braid.hops,
            facts.created <= latest,
            facts.expires == offer.expires <= latest + nanoseconds(Seconds(float(policy.key_lifetime_s))),
        )
        if not all(true):
            raise RemoteProtocolError("a wrapped key's facts say more than its braid, or its pair's policy, allows")
        return facts

    async def handle_commit(self, peer: NodeId, message: WrapCommit) -> Done:
        """Phase two: the key may be fetched."""
        self._refuse_unless_from(peer, message.key_id)
        await self._waiting.make_ready(message.key_id, [SaeId(target) for target in message.targets])
        return Done()

    async def handle_void(self, peer: NodeId, message: WrapVoid) -> Done:
        """Destroy a key that not all targets could hold."""
        if self._waiting.owner_of(message.key_id) is not None:
            self._refuse_unless_from(peer, message.key_id)
            await self._waiting.destroy(message.key_id)
        return Done()

    def _refuse_unless_from(self, peer: NodeId, key_id: bytes) -> None:
        owner = self._waiting.owner_of(key_id)
        entry = None if owner is None else self._ctx.book.sae_by_name.get(owner)
        if entry is None or entry.node != peer:
            raise UnauthorisedError("no key of that ID was placed here by this node")


def _wipe(braids: dict[SaeId, DeliveredKey]) -> None:
    for braid in braids.values():
        braid.key.wipe()


def _wrapped(key: Secret, braid: Secret) -> tuple[bytes, Secret]:
    """Return the key under the braid's first bits, and the rest of the braid: a MAC key, which the caller wipes."""
    pad = braid.cut(0, len(key))
    try:
        return hop.encrypt(key, pad), braid.cut(len(key), hop.MAC_KEY_BYTES)
    finally:
        pad.wipe()


def _unwrapped(offer: WrapOffer, braid: Secret) -> Secret:
    """Return the key that lies under the braid, its tag verified; the caller wipes both."""
    length = whole_bytes(Bits(offer.size))
    if len(braid) != length + hop.MAC_KEY_BYTES or len(offer.wrapped) != length:
        raise RemoteProtocolError("the braid does not fit the key it wraps")
    pad, mac_key = braid.cut(0, length), braid.cut(length, hop.MAC_KEY_BYTES)
    try:
        hop.check_tag(_tagged(offer), offer.tag, mac_key)
        return hop.decrypt(offer.wrapped, pad)
    finally:
        pad.wipe()
        mac_key.wipe()


def _tagged(offer: WrapOffer) -> bytes:
    """Return what the tag of an offer covers: all of it but the tag."""
    return msgspec.msgpack.encode(msgspec.structs.replace(offer, tag=b""))


def _weakest(braids: dict[SaeId, DeliveredKey], size: Bits, now: Nanoseconds, expires: Nanoseconds) -> KeyFacts:
    """Return what may be said of a key for several targets: no more than of its weakest leg."""
    facts = [braid.facts for braid in braids.values()]
    if not facts:
        return KeyFacts(LOCAL.name, (Origin.LOCAL,), None, str(LOCAL.strength(size)), 0, now, expires)
    origins = frozenset.intersection(*(frozenset(one.origins) for one in facts))
    supplies = [one.supply for one in facts if one.supply is not None]
    return KeyFacts(
        recipe=WRAPPED.name,
        origins=tuple(sorted(origins, key=lambda origin: origin.value)),
        supply=worst_of(supplies) if supplies else None,
        strength=str(WRAPPED.strength(size)),
        hops=max(one.hops for one in facts),
        created=now,
        expires=expires,
    )


def _by_node(legs: Sequence[Leg]) -> dict[NodeId, list[SaeId]]:
    nodes: dict[NodeId, list[SaeId]] = {}
    for leg in legs:
        nodes.setdefault(leg.pair.target.node, []).append(leg.pair.target.name)
    return nodes
