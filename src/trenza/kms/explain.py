"""What protected this key: reading provenance back (decision 4). Which keys a node saw: kms.exposed.

Answers come from what the derivation consumed: the segment's record, whose digest is bound into the key, and the
key's own ledger entries. For auditors; applications are told less.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

import msgspec

from trenza.base.errors import UnknownKeyError
from trenza.base.names import NodeId, SaeId
from trenza.base.units import Nanoseconds
from trenza.core.key_records import decode_key_records
from trenza.core.keyid import KeyAddress, pair_binding, read_key_id, verify_key_id
from trenza.core.provenance import DoubtfulRecord, KeyRecord, SegmentRecord, WrapRecord, segment_digest
from trenza.core.recipe import recipe_of_code
from trenza.kms.context import Context
from trenza.kms.id_keys import IdKeyRing
from trenza.kms.journal import Journal, window_term
from trenza.kms.ports import LedgerEntry, LedgerQuery
from trenza.kms.retention import Retention
from trenza.kms.slots import Owner, Slots

_PAGE: Final = 1_000  # entries read at once


@dataclass(frozen=True, slots=True)
class KeyEvent:
    """One ledger entry about a key, at the node that was asked."""

    kind: str  # "issued" | "delivered" | "doubtful"
    time: Nanoseconds
    sequence: int  # in the node's ledger
    record: KeyRecord | WrapRecord | DoubtfulRecord


@dataclass(frozen=True, slots=True)
class Doubt(KeyEvent):
    """An entry that names the key's slot among those of which a crash left no record."""

    record: DoubtfulRecord


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that one node knows of one key."""

    key_id: UUID
    node: NodeId
    recipe: str
    size: int
    events: tuple[KeyEvent, ...]
    segment: SegmentRecord | None  # None for keys drawn at a node
    segment_digest: bytes
    braids: tuple[UUID, ...] = ()  # the keys that carried it to its targets; each can be explained by itself
    issuer: NodeId | None = None  # which of the two issued it: slots change direction, so the segment does not say


class Explain:
    """Queries over this node's ledger."""

    def __init__(
        self, ctx: Context, *, id_keys: IdKeyRing, slots: Slots, journal: Journal, retention: Retention
    ) -> None:
        self._ctx = ctx
        self._journal = journal
        self._id_keys = id_keys
        self._slots = slots
        self._retention = retention

    async def key(self, key_id: UUID) -> Explanation:
        """Return what this node knows of a key.

        Raises:
            UnknownKeyError: the ID is not one that this node issued, holds or has delivered.
        """
        await self._journal.flush()
        drawn = await self._ctx.store.entries(LedgerQuery(term=f"key:{key_id}"))
        if drawn:
            return self._of_drawn(key_id, drawn)
        used = await self._used(key_id)
        if used is not None:
            return used
        owner = self._slots.owner(key_id)
        if owner is None:
            raise await self._unknown(key_id)
        if doubts := await self._doubts(owner):
            issuer = self._ctx.name if owner.issued_here else owner.peer
            return await self._explained(key_id, owner.address, doubts, doubts[0].record.segment, issuer)
        if owner.issued_here:
            raise await self._unknown(key_id)  # windows of that number which this node granted are others
        segment_id = self._slots.segment_of_window(owner.peer, owner.address.window)
        if segment_id is None:
            raise await self._unknown(key_id)
        return await self._explained(key_id, owner.address, (), segment_id, owner.peer)

    async def _unknown(self, key_id: UUID) -> UnknownKeyError:
        return UnknownKeyError(f"node {self._ctx.name} cannot tell whose key {key_id} is{await self._but_pruned()}")

    async def _but_pruned(self) -> str:
        """Return what is to be added where something was not found: it may have been."""
        record = await self._retention.pruned()
        if record is None:
            return ""
        kept = f"; they are archived, the last of them in {record.archive}" if record.archive else ""
        return f"; its oldest records were pruned{kept}"

    async def pruned_until(self) -> Nanoseconds | None:
        """Return the moment before which this node's answers are not whole; None where its ledger is."""
        record = await self._retention.pruned()
        return None if record is None else Nanoseconds(record.until)

    async def _doubts(self, owner: Owner) -> tuple[Doubt, ...]:
        """Return the entries that name this key's slot as one of which a crash left no record."""
        deed = "issued" if owner.issued_here else "delivered"
        term = window_term(owner.peer, owner.address.window)
        decoded = [
            (entry, msgspec.msgpack.decode(entry.body, type=DoubtfulRecord))
            for entry in await self._all(LedgerQuery(term=term, kind="doubtful"))
        ]
        return tuple(
            Doubt(entry.kind, entry.time, entry.sequence, record)
            for entry, record in decoded
            if record.deed == deed and record.names(owner.address.slot)
        )

    async def _used(self, key_id: UUID) -> Explanation | None:
        """Explain a key that this node issued or delivered, whatever book was in force then."""
        for peer in self._id_keys.peers:
            for keys in self._id_keys.all_of(peer):
                for kind, side in (("issued", keys.mine), ("delivered", keys.theirs)):
                    address = read_key_id(key_id, side)
                    found = [
                        (entry, record)
                        for entry, record in await self._records(peer, address, kind)
                        if verify_key_id(key_id, address, side, binding=self._binding(peer, kind, record))
                    ]
                    if found:
                        events = tuple(KeyEvent(one.kind, one.time, one.sequence, record) for one, record in found)
                        issuer = self._ctx.name if kind == "issued" else peer
                        return await self._explained(key_id, address, events, found[0][1].segment, issuer)
        return None

    async def _records(self, peer: NodeId, address: KeyAddress, kind: str) -> list[tuple[LedgerEntry, KeyRecord]]:
        """Return the entries of one kind that name this slot of a window as a key's first."""
        term = window_term(peer, address.window)
        return [
            _of_slot(entry, record, address.slot)
            for entry in await self._all(LedgerQuery(term=term, kind=kind))
            for record in decode_key_records(entry.body, window=(peer, address.window))
            if address.slot in record.slots
        ]

    def _binding(self, peer: NodeId, kind: str, record: KeyRecord) -> bytes:
        issuer, holder = (self._ctx.name, peer) if kind == "issued" else (peer, self._ctx.name)
        initiator, target = SaeId(record.initiator), SaeId(record.target)
        return pair_binding(issuer, holder, initiator, target, policy_digest=record.policy_digest)

    async def _explained(
        self, key_id: UUID, address: KeyAddress, events: tuple[KeyEvent, ...], segment: bytes, issuer: NodeId
    ) -> Explanation:
        entries = await self._ctx.store.entries(LedgerQuery(term=f"segment:{segment.hex()}", kind="segment"))
        if not entries:
            why = f"node {self._ctx.name} has no record of the strands of key {key_id}"
            raise UnknownKeyError(f"{why}{await self._but_pruned()}")
        recipe, body = recipe_of_code(address.recipe), entries[0].body
        record, digest = SegmentRecord.decode(body), segment_digest(body)
        name, size = self._ctx.name, address.size
        return Explanation(key_id, name, recipe.name, size, events, record, digest, issuer=issuer)

    def _of_drawn(self, key_id: UUID, entries: list[LedgerEntry]) -> Explanation:
        records = [msgspec.msgpack.decode(one.body, type=WrapRecord) for one in entries]
        events = tuple(
            KeyEvent(one.kind, one.time, one.sequence, record) for one, record in zip(entries, records, strict=True)
        )
        first = records[0]
        braids = tuple(UUID(bytes=braid) for record in records for braid in record.braids)
        return Explanation(key_id, self._ctx.name, first.recipe, first.size, events, None, b"", braids)

    async def _all(self, query: LedgerQuery) -> list[LedgerEntry]:
        """Return every entry that matches, however many there are."""
        found: list[LedgerEntry] = []
        while True:
            after = found[-1].sequence if found else 0
            page = await self._ctx.store.entries(replace(query, after_sequence=after, limit=_PAGE))
            found += page
            if len(page) < _PAGE:
                return found


def _of_slot(entry: LedgerEntry, record: KeyRecord, slot: int) -> tuple[LedgerEntry, KeyRecord]:
    """Return of an entry for many keys what it says of the one whose first slot is `slot`, with that key's time."""
    index = record.slots.index(slot)
    return replace(entry, time=record.time_of(index, entry.time)), record.only([index])
