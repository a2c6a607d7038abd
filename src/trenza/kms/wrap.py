"""Keys that are random at the initiator's node: for two SAEs of one node, and for several targets at once.

LOCAL: two SAEs of one node share no QKD or PQC strand; their key is drawn here and waits, sealed, for the other
(decision 3). WRAPPED: a key for several targets is drawn here and carried to each target's node under a full braid
with that node: one-time pad and one-time MAC, both from the braid. All or nothing, in two phases with voiding
(decision 9): these keys take round trips, and a key is as good as its weakest leg.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.poly1305 import Poly1305

from trenza.base.errors import (
    AuthenticationError,
    RefusedError,
    RemoteProtocolError,
    StoreUnavailableError,
    TrenzaError,
    UnauthorisedError,
    UnavailableError,
    UnknownKeyError,
)
from trenza.base.names import NodeId, SaeId
from trenza.base.secret import Secret
from trenza.base.units import Bits, Nanoseconds, Seconds, nanoseconds, whole_bytes
from trenza.core.choice import acceptance
from trenza.core.delivery import DeliveredKey, KeyFacts, Wishes
from trenza.core.policy import Policy, SaeEntry
from trenza.core.provenance import FORMAT_VERSION, WrapRecord
from trenza.core.recipe import LOCAL, WRAPPED, Recipe
from trenza.core.strand import Origin, Supply, worst_of
from trenza.kms import rows
from trenza.kms.context import Context
from trenza.kms.ports import Append, Change, Delete, Insert, Put, Sealed, Table
from trenza.kms.slots import Pair, Slots
from trenza.kms.together import together
from trenza.wire.peer import Done, WrapCommit, WrapOffer, WrapVoid

_MAC_BITS = Bits(256)
_LATER = frozenset({UnavailableError.code, StoreUnavailableError.code})
"""Refusals after which a void is told again."""

_UNCOMMITTED = Seconds(30.0)  # a key whose second phase does not come within this time is destroyed


class _Facts(msgspec.Struct, frozen=True, array_like=True):
    """KeyFacts as they travel and rest."""

    recipe: str
    origins: tuple[Origin, ...]
    supply: Supply | None
    strength: str
    hops: int
    created: int
    expires: int

    @staticmethod
    def encode(facts: KeyFacts) -> bytes:
        flat = _Facts(
            facts.recipe, facts.origins, facts.supply, facts.strength, facts.hops, facts.created, facts.expires
        )
        return msgspec.msgpack.encode(flat)

    @staticmethod
    def decode(body: bytes) -> KeyFacts:
        try:
            flat = msgspec.msgpack.decode(body, type=_Facts)
        except msgspec.DecodeError as error:
            raise RemoteProtocolError(f"not the facts of a key: {error}") from None
        created, expires = Nanoseconds(flat.created), Nanoseconds(flat.expires)
        return KeyFacts(flat.recipe, flat.origins, flat.supply, flat.strength, flat.hops, created, expires)


@dataclass(slots=True)
class _Waiting:
    """A key that waits at this node for one SAE."""

    initiator: SaeId
    target: SaeId
    size: int
    sealed: Sealed
    facts: KeyFacts
    expires: Nanoseconds
    ready: bool
    taken: bool = field(default=False)  # a delivery under way has reserved it


@dataclass(frozen=True, slots=True)
class Leg:
    """One target of a key, and the recipe that protects the way to its node; no recipe where it never travels."""

    pair: Pair
    recipe: Recipe | None


class Wrapped:
    """The keys that wait at this node, and those this node draws for others."""

    def __init__(self, ctx: Context, *, slots: Slots) -> None:
        self._ctx = ctx
        self._slots = slots
        self._waiting: dict[tuple[bytes, SaeId], _Waiting] = {}
        self._unheard_voids: dict[tuple[NodeId, bytes], Nanoseconds] = {}  # until when there is a point in it
        self.on_void: Callable[[], None] | None = None  # wakes whoever calls tell_voids

    async def load(self) -> None:
        """Read the keys that wait; those whose second phase never came are destroyed by upkeep."""
        for key, value in await self._ctx.store.scan(Table.WRAPPED):
            row = rows.decode(value, rows.WrappedRow)
            self._waiting[key[:16], SaeId(key[16:].decode())] = _Waiting(
                SaeId(row.initiator),
                SaeId(row.target),
                row.size,
                row.sealed.sealed,
                _Facts.decode(row.facts),
                Nanoseconds(row.expires),
                row.ready,
            )

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
            UnavailableError: one target could not be reached or served; everything is void.
        """
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
        for leg in legs:
            if leg.recipe is None:
                continue
            issued = await self._slots.issue(
                leg.pair,
                leg.recipe,
                number=1,
                size=Bits(size + _MAC_BITS),
                accept=acceptance(leg.pair.policy, wishes, now=self._ctx.clock.now()),
                tls_group=tls_group,
            )
            braids[leg.pair.target.name] = issued[0]
        return braids

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
                steps.append(self._keep(initiator.name, target.name, key_id, key, facts, ready=False))
            else:
                steps.append(self._offer(initiator, target, braid, key_id, key, facts))
        await together(steps)

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
        wrapped = _xor(key.view(), braid.key.view()[: len(key)])
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
            _Facts.encode(facts),
        )
        mac_key = bytes(braid.key.view()[len(key) :])
        tag = Poly1305.generate_tag(mac_key, msgspec.msgpack.encode(bare))
        braid.key.wipe()
        offer = msgspec.structs.replace(bare, tag=tag)
        answer = await ctx.peers.call(target.node, offer, timeout=ctx.settings.call_timeout)
        if not isinstance(answer, Done):
            raise RemoteProtocolError(f"node {target.node} did not take the key")

    async def _commit_all(self, legs: Sequence[Leg], key_id: bytes) -> None:
        await together(
            [
                self._make_ready(key_id, targets)
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
            changes.append(self._entry("issued", record))
        await self._ctx.store.commit(changes)

    def _entry(self, kind: str, record: WrapRecord) -> Append:
        body = msgspec.msgpack.encode(record)
        return Append(self._ctx.clock.now(), kind, body, (f"key:{UUID(bytes=record.key_id)}",))

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
            if node not in silent or until < now:
                self._unheard_voids.pop((node, key_id), None)

    async def _tell_void(self, node: NodeId, key_id: bytes) -> None:
        if node == self._ctx.name:
            await self._destroy(key_id)
        else:
            await self._ctx.peers.call(node, WrapVoid(key_id), timeout=self._ctx.settings.call_timeout)

    # --- the target's node

    async def handle_offer(self, peer: NodeId, offer: WrapOffer) -> Done:
        """Phase one: unwrap under the braid that the key ID names, and hold the key, sealed."""
        ctx = self._ctx
        ctx.session_of(peer, offer.session)
        book = ctx.book
        initiator, target = book.sae_by_name.get(SaeId(offer.initiator)), book.sae_by_name.get(SaeId(offer.target))
        policy = book.policy_between(SaeId(offer.initiator), SaeId(offer.target))
        if initiator is None or target is None or policy is None:
            raise UnauthorisedError("the policy book does not let this pair share keys")
        if initiator.node != peer or target.node != ctx.name:
            raise UnauthorisedError("one of the SAEs is not served by the node that should serve it")
        found = self._slots.find(Pair(initiator, target, policy), (), [UUID(bytes=offer.braid_id)])
        (braid,) = await self._slots.deliver(found, tls_group="")
        key: Secret | None = None
        try:
            length = whole_bytes(Bits(offer.size))
            if len(braid.key) != length + whole_bytes(_MAC_BITS) or len(offer.wrapped) != length:
                raise RemoteProtocolError("the braid does not fit the key it wraps")
            bare = msgspec.structs.replace(offer, tag=b"")
            try:
                mac_key = bytes(braid.key.view()[length:])
                Poly1305.verify_tag(mac_key, msgspec.msgpack.encode(bare), offer.tag)
            except InvalidSignature:
                raise AuthenticationError("the wrapped key is not what its initiator wrapped") from None
            key = Secret(bytearray(_xor(offer.wrapped, braid.key.view()[:length])))
            facts = _Facts.decode(offer.facts)
            await self._keep(initiator.name, target.name, offer.key_id, key, facts, ready=False)
        finally:
            braid.key.wipe()
            if key is not None:
                key.wipe()
        return Done()

    async def handle_commit(self, peer: NodeId, message: WrapCommit) -> Done:
        """Phase two: the key may be fetched."""
        self._refuse_unless_from(peer, message.key_id)
        await self._make_ready(message.key_id, [SaeId(target) for target in message.targets])
        return Done()

    async def handle_void(self, peer: NodeId, message: WrapVoid) -> Done:
        """Destroy a key that not all targets could hold."""
        if any(key_id == message.key_id for key_id, _ in self._waiting):
            self._refuse_unless_from(peer, message.key_id)
            await self._destroy(message.key_id)
        return Done()

    def _refuse_unless_from(self, peer: NodeId, key_id: bytes) -> None:
        book = self._ctx.book
        held = [waiting for (held_id, _), waiting in self._waiting.items() if held_id == key_id]
        nodes = {entry.node for one in held if (entry := book.sae_by_name.get(one.initiator)) is not None}
        if nodes != {peer}:
            raise UnauthorisedError("no key of that ID was placed here by this node")

    # --- waiting keys

    async def _keep(
        self, initiator: SaeId, target: SaeId, key_id: bytes, key: Secret, facts: KeyFacts, *, ready: bool
    ) -> None:
        ctx = self._ctx
        sealed = await ctx.sealer.seal(key, associated=_associated(key_id, target))
        waiting = _Waiting(initiator, target, len(key) * 8, sealed, facts, facts.expires, ready)
        row = self._row(waiting)
        try:
            await ctx.store.commit([Insert(Table.WRAPPED, key_id + target.encode(), row)])
        except BaseException:
            await ctx.sealer.erase([sealed.handle])
            raise
        self._waiting[key_id, target] = waiting

    @staticmethod
    def _row(waiting: _Waiting) -> bytes:
        return rows.encode(
            rows.WrappedRow(
                waiting.initiator,
                waiting.target,
                waiting.size,
                rows.SealedRow.of(waiting.sealed),
                _Facts.encode(waiting.facts),
                waiting.expires,
                waiting.ready,
            )
        )

    async def _make_ready(self, key_id: bytes, targets: Sequence[SaeId]) -> None:
        """Let the targets fetch the key; durable before it counts."""
        found = {target: self._waiting.get((key_id, target)) for target in targets}
        changes: list[Change] = []
        for target, waiting in found.items():
            if waiting is None:
                raise UnknownKeyError("a key to be committed is not here")
            changes.append(Put(Table.WRAPPED, key_id + target.encode(), self._row(replace(waiting, ready=True))))
        await self._ctx.store.commit(changes)
        if any(self._waiting.get((key_id, target)) is not waiting for target, waiting in found.items()):
            await self._ctx.store.commit([Delete(Table.WRAPPED, key_id + target.encode()) for target in found])
            raise UnknownKeyError("a key was destroyed while it was committed")
        for waiting in found.values():
            assert waiting is not None
            waiting.ready = True

    def holds(self, key_id: UUID, target: SaeId) -> bool:
        """Tell whether a key of that ID waits here for `target`."""
        return (key_id.bytes, target) in self._waiting

    def owner_of(self, key_id: UUID) -> SaeId | None:
        """Return the initiator of a key that waits here for anyone."""
        return next((one.initiator for (held, _), one in self._waiting.items() if held == key_id.bytes), None)

    def reserve(self, key_id: UUID, initiator: SaeId, target: SaeId) -> None:
        """Reserve a waiting key for one delivery.

        Raises:
            UnauthorisedError: it is of another initiator.
            UnknownKeyError: it cannot be returned.
        """
        waiting = self._waiting[key_id.bytes, target]
        if waiting.initiator != initiator:
            raise UnauthorisedError("a key of another pair was asked for")
        if not waiting.ready or waiting.taken or waiting.expires < self._ctx.clock.now():
            raise UnknownKeyError("one or more keys specified are not found on KME")
        waiting.taken = True

    def release(self, key_id: UUID, target: SaeId) -> None:
        """Give a reservation back; nothing was committed for it."""
        waiting = self._waiting.get((key_id.bytes, target))
        if waiting is not None:  # it may have been declared void in the meantime
            waiting.taken = False

    async def deliver(self, key_id: UUID, target: SaeId, *, policy: Policy, tls_group: str) -> DeliveredKey:
        """Hand out a reserved key: gone from the store before it leaves."""
        ctx = self._ctx
        waiting = self._waiting[key_id.bytes, target]
        key = await ctx.sealer.unseal(waiting.sealed, associated=_associated(key_id.bytes, target))
        record = WrapRecord(
            version=FORMAT_VERSION,
            key_id=key_id.bytes,
            initiator=waiting.initiator,
            target=target,
            recipe=waiting.facts.recipe,
            size=waiting.size,
            braids=(),
            policy=policy.name,
            policy_digest=policy.digest,
            tls_group=tls_group,
            uncertainty=ctx.settings.clock_uncertainty,
        )
        row_key = key_id.bytes + target.encode()
        try:
            await ctx.store.commit([Delete(Table.WRAPPED, row_key), self._entry("delivered", record)])
        except BaseException:  # it may be recorded as delivered or not: doubtful, so nobody gets it any more
            key.wipe()
            ctx.counters["keys_doubtful"] += 1
            self._waiting.pop((key_id.bytes, target), None)
            await ctx.sealer.erase([waiting.sealed.handle])
            raise
        self._waiting.pop((key_id.bytes, target), None)
        await ctx.sealer.erase([waiting.sealed.handle])
        return DeliveredKey(key_id, key, waiting.facts)

    async def tidy(self) -> None:
        """Destroy expired keys, and those whose second phase never came."""
        now = self._ctx.clock.now()
        patience = nanoseconds(_UNCOMMITTED)
        for (key_id, target), waiting in list(self._waiting.items()):
            abandoned = not waiting.ready and waiting.facts.created + patience < now
            if not waiting.taken and (waiting.expires < now or abandoned):
                await self._forget(key_id, target)

    async def drop_all(self) -> None:
        """Destroy every waiting key: this node cannot prove that its memory is whole."""
        for key_id, target in list(self._waiting):
            await self._forget(key_id, target)

    async def _destroy(self, key_id: bytes) -> None:
        for held, target in list(self._waiting):
            if held == key_id:
                await self._forget(held, target)

    async def _forget(self, key_id: bytes, target: SaeId) -> None:
        waiting = self._waiting.pop((key_id, target), None)
        if waiting is None:  # another story was quicker
            return
        await self._ctx.sealer.erase([waiting.sealed.handle])
        await self._ctx.store.commit([Delete(Table.WRAPPED, key_id + target.encode())])


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


def _xor(one: bytes | memoryview, other: bytes | memoryview) -> bytes:
    length = len(one)
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).to_bytes(length, "big")


def _associated(key_id: bytes, target: SaeId) -> bytes:
    return b"wrapped" + key_id + target.encode()
