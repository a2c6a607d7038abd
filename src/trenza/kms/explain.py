"""What protected this key, and which keys did that node see: reading provenance back (decision 4).

Answers come from what the derivation consumed: the segment's record, whose digest is bound into the key, and the
key's own ledger entries. For auditors; applications are told less.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from uuid import UUID

import msgspec

from trenza.base.errors import UnknownKeyError
from trenza.base.names import NodeId
from trenza.base.units import Nanoseconds
from trenza.core.provenance import KeyRecord, SegmentRecord, WrapRecord, segment_digest
from trenza.core.recipe import recipe_of_code
from trenza.kms.context import Context
from trenza.kms.ports import LedgerEntry, LedgerQuery
from trenza.kms.slots import Slots, window_term


@dataclass(frozen=True, slots=True)
class KeyEvent:
    """One ledger entry about a key, at the node that was asked."""

    kind: str  # "issued" | "delivered"
    time: Nanoseconds
    sequence: int  # in the node's ledger
    record: KeyRecord | WrapRecord


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


@dataclass(frozen=True, slots=True)
class Exposed:
    """Keys of one window whose strands a node saw."""

    event: KeyEvent
    segment: SegmentRecord


class Explain:
    """Queries over this node's ledger."""

    def __init__(self, ctx: Context, *, slots: Slots) -> None:
        self._ctx = ctx
        self._slots = slots

    async def key(self, key_id: UUID) -> Explanation:
        """Return what this node knows of a key.

        Raises:
            UnknownKeyError: the ID is not one that this node issued, holds or has delivered.
        """
        drawn = await self._ctx.store.entries(LedgerQuery(term=f"key:{key_id}"))
        if drawn:
            return self._of_drawn(key_id, drawn)
        owner = self._slots.owner(key_id)
        if owner is None:
            raise UnknownKeyError(f"node {self._ctx.name} cannot tell whose key {key_id} is")
        entries = await self._all(LedgerQuery(term=window_term(owner.peer, owner.address.window)))
        kind = "issued" if owner.issued_here else "delivered"
        events: list[KeyEvent] = []
        for entry in entries:
            record = msgspec.msgpack.decode(entry.body, type=KeyRecord)
            mine = (record.initiator, record.target) == (owner.pair.initiator.name, owner.pair.target.name)
            if entry.kind == kind and mine and owner.address.slot in record.slots:
                events.append(KeyEvent(entry.kind, entry.time, entry.sequence, record))
        segment = await self._segment_of(events, owner.peer, owner.address.window)
        if segment is None:
            raise UnknownKeyError(f"node {self._ctx.name} has no record of the strands of key {key_id}")
        recipe = recipe_of_code(owner.address.recipe)
        return Explanation(key_id, self._ctx.name, recipe.name, owner.address.size, tuple(events), *segment)

    async def _segment_of(
        self, events: list[KeyEvent], peer: NodeId, window: int
    ) -> tuple[SegmentRecord, bytes] | None:
        segment = next((one.record.segment for one in events if isinstance(one.record, KeyRecord)), None)
        if segment is None:
            segment = self._slots.segment_of_window(peer, window)
        if segment is None:
            return None
        entries = await self._ctx.store.entries(LedgerQuery(term=f"segment:{segment.hex()}", kind="segment"))
        if not entries:
            return None
        return SegmentRecord.decode(entries[0].body), segment_digest(entries[0].body)

    def _of_drawn(self, key_id: UUID, entries: list[LedgerEntry]) -> Explanation:
        events = tuple(
            KeyEvent(one.kind, one.time, one.sequence, msgspec.msgpack.decode(one.body, type=WrapRecord))
            for one in entries
        )
        first = events[0].record
        braids = tuple(
            UUID(bytes=braid) for one in events if isinstance(one.record, WrapRecord) for braid in one.record.braids
        )
        return Explanation(key_id, self._ctx.name, first.recipe, first.size, events, None, b"", braids)

    async def exposed(self, node: NodeId, *, since: Nanoseconds, until: Nanoseconds) -> list[Exposed]:
        """Return the keys issued or delivered here in a time whose QKD strands `node` saw as a relay."""
        found: list[Exposed] = []
        for entry in await self._all(LedgerQuery(term=f"node:{node}", kind="segment")):
            segment = SegmentRecord.decode(entry.body)
            if node not in segment.known_to:
                continue
            term = f"segment:{segment.segment.hex()}"
            for used in await self._all(LedgerQuery(term=term, since=since, until=until)):
                if used.kind != "segment":
                    record = msgspec.msgpack.decode(used.body, type=KeyRecord)
                    found.append(Exposed(KeyEvent(used.kind, used.time, used.sequence, record), segment))
        return sorted(found, key=lambda one: one.event.sequence)

    async def _all(self, query: LedgerQuery) -> list[LedgerEntry]:
        """Return every entry that matches, however many there are."""
        found: list[LedgerEntry] = []
        while True:
            page = await self._ctx.store.entries(replace(query, after_sequence=found[-1].sequence if found else 0))
            found += page
            if len(page) < query.limit:
                return found
