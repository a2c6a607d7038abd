"""Keys that wait at this node, sealed, for one SAE to fetch them: not computed from slots, but drawn and placed.

A key is kept, becomes ready once every target holds it, and is then delivered once, or expires, or is destroyed.
`kms.wrap` places them: LOCAL keys, and those for several targets. So that nobody can fill a node's keyring, only so
many wait for each ordered pair of SAEs, only so many that another node has placed here, and only so many in all: half
of these for this node's own initiators, half for those of other nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

import msgspec

from trenza.base.errors import (
    AuthenticationError,
    ConflictError,
    NotEnoughKeyError,
    RemoteProtocolError,
    UnauthorisedError,
    UnknownKeyError,
)
from trenza.base.names import NodeId, SaeId
from trenza.base.secret import Secret
from trenza.base.units import Nanoseconds, Seconds
from trenza.core.delivery import DeliveredKey, KeyFacts
from trenza.core.policy import Policy
from trenza.core.provenance import FORMAT_VERSION, WrapRecord
from trenza.core.strand import Origin, Supply
from trenza.kms import rows
from trenza.kms.context import Context
from trenza.kms.ports import Append, Change, Delete, Exists, Insert, Put, Sealed, Table

_UNCOMMITTED = Seconds(30.0)
"""A key whose second phase does not come within this time is destroyed. Counted from when it was here: who drew it is
mostly another machine, whose clock may be off."""

_NODE_SHARE = 4
"""Another node may place as many keys here as this many pairs of SAEs."""

_NOT_FOUND = "one or more keys specified are not found on KME"


class _Facts(msgspec.Struct, frozen=True, array_like=True):
    """KeyFacts as they travel and rest."""

    recipe: str
    origins: tuple[Origin, ...]
    supply: Supply | None
    strength: str
    hops: int
    created: int
    expires: int


def encode_facts(facts: KeyFacts) -> bytes:
    """Return the facts as they travel to a target's node and rest in its store."""
    flat = _Facts(facts.recipe, facts.origins, facts.supply, facts.strength, facts.hops, facts.created, facts.expires)
    return msgspec.msgpack.encode(flat)


def decode_facts(body: bytes) -> KeyFacts:
    """Return what was encoded.

    Raises:
        RemoteProtocolError: it is something else.
    """
    try:
        flat = msgspec.msgpack.decode(body, type=_Facts)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"not the facts of a key: {error}") from None
    created, expires = Nanoseconds(flat.created), Nanoseconds(flat.expires)
    return KeyFacts(flat.recipe, flat.origins, flat.supply, flat.strength, flat.hops, created, expires)


def entry_of(ctx: Context, kind: str, record: WrapRecord) -> Append:
    """Return the ledger entry of a drawn key, under which `kms.explain` finds it."""
    body = msgspec.msgpack.encode(record)
    return Append(ctx.clock.now(), kind, body, (f"key:{UUID(bytes=record.key_id)}",))


@dataclass(slots=True)
class _Waiting:
    """A key that waits at this node for one SAE."""

    initiator: SaeId
    target: SaeId
    node: NodeId | None  # that placed it; None: the book knew its initiator no longer when it was loaded
    size: int
    sealed: Sealed
    facts: KeyFacts
    ready: bool
    since: Seconds  # on Clock.elapsed: since when it is in hand here
    taken: bool = field(default=False)  # a delivery under way has reserved it


class WaitingKeys:
    """The keys that wait at one node."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._held: dict[bytes, dict[SaeId, _Waiting]] = {}  # key ID -> target -> key
        self._counts: Counter[tuple[SaeId, SaeId]] = Counter()  # by pair, with those that are just being sealed
        self._placed: Counter[NodeId | None] = Counter()  # the same, by the node that placed them

    async def load(self) -> None:
        """Read the keys that wait; those whose second phase never came are destroyed by upkeep."""
        for key, value in await self._ctx.store.scan(Table.WRAPPED):
            self._take_in(key, value)

    def _take_in(self, key: bytes, value: bytes) -> None:
        row = rows.decode(value, rows.WrappedRow)
        initiator, target = SaeId(row.initiator), SaeId(row.target)
        if (known := self._find(key[:16], target)) is not None:
            known.ready = known.ready or row.ready  # the row may have been read before it became so
            return
        facts = decode_facts(row.facts)
        node = self._node_of(initiator) if self._ctx.has_book else None
        waiting = _Waiting(
            initiator, target, node, row.size, row.sealed.sealed, facts, row.ready, self._ctx.clock.elapsed()
        )
        self._held.setdefault(key[:16], {})[target] = waiting
        self._count(initiator, target, node)

    # --- what other instances of this node have written

    async def find(self, key_id: UUID, target: SaeId) -> bool:
        """Read one key from the store; tell whether it waits for `target`."""
        key = _row_key(key_id.bytes, target)
        value = await self._ctx.store.get(Table.WRAPPED, key)
        if value is not None:
            self._take_in(key, value)
        return value is not None

    async def refresh(self) -> None:
        """Read all keys that wait: those that others have placed, and without those that others have delivered."""
        before = [(key_id, target) for key_id, targets in self._held.items() for target in targets]
        found = await self._ctx.store.scan(Table.WRAPPED)
        for key, value in found:
            self._take_in(key, value)
        present = {key for key, _ in found}
        for key_id, target in before:
            waiting = self._find(key_id, target)
            if _row_key(key_id, target) not in present and waiting is not None and not waiting.taken:
                self._pop(key_id, target)

    # --- how many

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    @property
    def most(self) -> int:
        """Return how many keys may wait for one ordered pair of SAEs."""
        return self._ctx.settings.stock_target * 2

    def room(self, initiator: SaeId, target: SaeId) -> int:
        """Return how many more keys of `initiator` may wait here for `target`."""
        return max(0, self.most - self._counts[initiator, target])

    def refuse_if_full(self, initiator: SaeId, target: SaeId, *, number: int = 1) -> None:
        """See that `number` more keys may wait here.

        Raises:
            NotEnoughKeyError: too many wait: of this pair, of all that the initiator's node has placed here, or of
                all that this node's initiators, or other nodes', have placed together.
        """
        room = self.room(initiator, target)
        node, half = self._node_of(initiator), self._ctx.settings.waiting_keys_max // 2
        own = self._placed[self._ctx.name]
        if node == self._ctx.name:
            room = min(room, max(0, half - own))
        else:
            others = self._placed.total() - own
            room = min(room, max(0, self.most * _NODE_SHARE - self._placed[node]), max(0, half - others))
        if number > room:
            raise NotEnoughKeyError(
                "too many keys wait to be fetched; try again later",
                details=({"available": room}, {"requested": number}),
            )

    def _node_of(self, sae: SaeId) -> NodeId | None:
        entry = self._ctx.book.sae_by_name.get(sae)
        return None if entry is None else entry.node

    def _count(self, initiator: SaeId, target: SaeId, node: NodeId | None) -> None:
        self._counts[initiator, target] += 1
        self._placed[node] += 1

    def _uncount(self, initiator: SaeId, target: SaeId, node: NodeId | None) -> None:
        self._counts[initiator, target] -= 1
        if not self._counts[initiator, target]:
            del self._counts[initiator, target]
        self._placed[node] -= 1
        if not self._placed[node]:
            del self._placed[node]

    # --- placing

    async def keep(self, initiator: SaeId, target: SaeId, key_id: bytes, key: Secret, facts: KeyFacts) -> None:
        """Hold a key, sealed and durable, that is not ready yet; `key` stays the caller's.

        Raises:
            NotEnoughKeyError: too many keys wait.
            ConflictError: a key of that ID waits for this target, or is of another initiator.
        """
        others = self._held.get(key_id, {})
        if target in others or any(one.initiator != initiator for one in others.values()):
            raise ConflictError("a key of that ID waits here already")
        self.refuse_if_full(initiator, target)
        node = self._node_of(initiator)
        self._count(initiator, target, node)
        try:
            sealed = await self._ctx.sealer.seal(key, associated=_associated(key_id, target))
            since = self._ctx.clock.elapsed()
            waiting = _Waiting(initiator, target, node, len(key) * 8, sealed, facts, ready=False, since=since)
            try:
                await self._ctx.store.commit([Insert(Table.WRAPPED, _row_key(key_id, target), _row(waiting))])
            except BaseException:
                await self._ctx.sealer.erase([sealed.handle])
                raise
        except BaseException:
            self._uncount(initiator, target, node)
            raise
        if self._find(key_id, target) is not None:  # read from the store meanwhile, and counted
            self._uncount(initiator, target, node)
            return
        self._held.setdefault(key_id, {})[target] = waiting

    async def make_ready(self, key_id: bytes, targets: Sequence[SaeId]) -> None:
        """Let the targets fetch the key; durable before it counts.

        Raises:
            UnknownKeyError: it is not here, or no longer.
        """
        found = {target: self._find(key_id, target) for target in targets}
        changes: list[Change] = []
        for target, waiting in found.items():
            if waiting is None:
                raise UnknownKeyError("a key to be committed is not here")
            changes.append(Put(Table.WRAPPED, _row_key(key_id, target), _row(replace(waiting, ready=True))))
        await self._ctx.store.commit(changes)
        if any(self._find(key_id, target) is not waiting for target, waiting in found.items()):
            await self._ctx.store.commit([Delete(Table.WRAPPED, _row_key(key_id, target)) for target in found])
            raise UnknownKeyError("a key was destroyed while it was committed")
        for waiting in found.values():
            assert waiting is not None
            waiting.ready = True

    # --- delivering

    def _find(self, key_id: bytes, target: SaeId) -> _Waiting | None:
        return self._held.get(key_id, {}).get(target)

    def holds(self, key_id: UUID, target: SaeId) -> bool:
        """Tell whether a key of that ID waits here for `target`."""
        return self._find(key_id.bytes, target) is not None

    def owner_of(self, key_id: bytes) -> SaeId | None:
        """Return the initiator of a key that waits here for anyone."""
        return next((one.initiator for one in self._held.get(key_id, {}).values()), None)

    def reserve(self, key_id: UUID, initiator: SaeId, target: SaeId) -> None:
        """Reserve a waiting key for one delivery.

        Raises:
            UnauthorisedError: it is of another initiator.
            UnknownKeyError: it cannot be returned.
        """
        waiting = self._find(key_id.bytes, target)
        if waiting is not None and waiting.initiator != initiator:
            raise UnauthorisedError("a key of another pair was asked for")
        now = self._ctx.clock.now()
        if waiting is None or not waiting.ready or waiting.taken or waiting.facts.expires < now:
            raise UnknownKeyError(_NOT_FOUND)
        waiting.taken = True

    def release(self, key_id: UUID, target: SaeId) -> None:
        """Give a reservation back; nothing was committed for it."""
        waiting = self._find(key_id.bytes, target)
        if waiting is not None:  # it may have been declared void in the meantime
            waiting.taken = False

    async def deliver(self, key_id: UUID, target: SaeId, *, policy: Policy, tls_group: str) -> DeliveredKey:
        """Hand out a reserved key: gone from the store before it leaves.

        Raises:
            UnknownKeyError: it expired or was declared void since it was reserved.
            StoreUnavailableError: the outcome is unknown; the key is burnt.
        """
        ctx = self._ctx
        waiting = self._find(key_id.bytes, target)
        if waiting is None:
            raise UnknownKeyError(_NOT_FOUND)
        key = await self._opened(key_id.bytes, waiting)
        record = _delivery_record(
            key_id.bytes, waiting, policy, tls_group, uncertainty=ctx.settings.clock_uncertainty
        )
        changes: list[Change] = [
            Exists(Table.WRAPPED, _row_key(key_id.bytes, target)),
            Delete(Table.WRAPPED, _row_key(key_id.bytes, target)),
            entry_of(ctx, "delivered", record),
        ]
        try:
            await ctx.store.commit(changes)
        except ConflictError:  # another instance of this node has delivered it
            key.wipe()
            raise UnknownKeyError(_NOT_FOUND) from None
        except BaseException:  # it may be recorded as delivered or not: doubtful, so nobody gets it any more
            key.wipe()
            ctx.counters["keys_doubtful"] += 1
            raise
        finally:
            self._pop(key_id.bytes, target)
            await ctx.sealer.erase([waiting.sealed.handle])
        return DeliveredKey(key_id, key, waiting.facts)

    async def _opened(self, key_id: bytes, waiting: _Waiting) -> Secret:
        """Unseal a key that is not taken away meanwhile."""
        try:
            key = await self._ctx.sealer.unseal(waiting.sealed, associated=_associated(key_id, waiting.target))
        except AuthenticationError:
            row = _row_key(key_id, waiting.target)
            if self._find(key_id, waiting.target) is waiting and await self._ctx.store.get(Table.WRAPPED, row):
                raise
            self._pop(key_id, waiting.target)  # delivered here meanwhile, or by another instance
            raise UnknownKeyError(_NOT_FOUND) from None
        if self._find(key_id, waiting.target) is not waiting:
            key.wipe()
            raise UnknownKeyError(_NOT_FOUND)
        return key

    # --- destroying

    async def tidy(self) -> None:
        """Destroy expired keys, reserved or not, and those whose second phase never came."""
        now, elapsed = self._ctx.clock.now(), self._ctx.clock.elapsed()
        for key_id, targets in list(self._held.items()):
            for target, waiting in list(targets.items()):
                abandoned = not waiting.ready and elapsed - waiting.since > _UNCOMMITTED
                if waiting.facts.expires < now or abandoned:
                    await self._forget(key_id, target)

    async def destroy(self, key_id: bytes) -> None:
        """Destroy a key for every target that it waits for here."""
        for target in list(self._held.get(key_id, {})):
            await self._forget(key_id, target)

    async def drop_all(self) -> None:
        """Destroy every waiting key: this node cannot prove that its memory is whole."""
        for key_id in list(self._held):
            await self.destroy(key_id)

    async def _forget(self, key_id: bytes, target: SaeId) -> None:
        waiting = self._pop(key_id, target)
        if waiting is None:  # another story was quicker
            return
        await self._ctx.sealer.erase([waiting.sealed.handle])
        await self._ctx.store.commit([Delete(Table.WRAPPED, _row_key(key_id, target))])

    def _pop(self, key_id: bytes, target: SaeId) -> _Waiting | None:
        targets = self._held.get(key_id, {})
        waiting = targets.pop(target, None)
        if waiting is None:
            return None
        if not targets:
            del self._held[key_id]
        self._uncount(waiting.initiator, target, waiting.node)
        return waiting


def _row_key(key_id: bytes, target: SaeId) -> bytes:
    return key_id + target.encode()


def _row(waiting: _Waiting) -> bytes:
    return rows.encode(
        rows.WrappedRow(
            waiting.initiator,
            waiting.target,
            waiting.size,
            rows.SealedRow.of(waiting.sealed),
            encode_facts(waiting.facts),
            waiting.facts.expires,
            waiting.ready,
        )
    )


def _delivery_record(
    key_id: bytes, waiting: _Waiting, policy: Policy, tls_group: str, *, uncertainty: Nanoseconds
) -> WrapRecord:
    return WrapRecord(
        version=FORMAT_VERSION,
        key_id=key_id,
        initiator=waiting.initiator,
        target=waiting.target,
        recipe=waiting.facts.recipe,
        size=waiting.size,
        braids=(),
        policy=policy.name,
        policy_digest=policy.digest,
        tls_group=tls_group,
        uncertainty=uncertainty,
    )


def _associated(key_id: bytes, target: SaeId) -> bytes:
    return b"wrapped" + key_id + target.encode()
