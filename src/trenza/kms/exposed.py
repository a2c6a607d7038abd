"""Which keys did that node see: page by page, for a ledger may be far larger than an answer (decision 4).

A page costs as much as it reads, which is bounded, and others have their turns meanwhile. In the order of the
segments, and of the entries about each; what is recorded while somebody reads comes on a later page or not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import msgspec

from trenza.base.names import NodeId
from trenza.base.units import Nanoseconds
from trenza.core.key_records import decode_key_records
from trenza.core.provenance import DoubtfulRecord, KeyRecord, SegmentRecord
from trenza.kms.context import Context
from trenza.kms.explain import Doubt, KeyEvent
from trenza.kms.journal import SPAN, Journal
from trenza.kms.ports import LedgerEntry, LedgerQuery

MOST_KEYS: Final = 10_000
"""Keys on one page at most, but for those of its last entry."""

_MOST_ENTRIES: Final = 2_000  # read for one page, whether they tell of such keys or not
_AT_ONCE: Final = 50  # entries read at once; one may tell of hundreds of pairs


class Place(NamedTuple):
    """Where a page ends: the ledger's entry of the segment looked at, and the last entry read about its keys."""

    segment: int = 0
    entry: int = 0


START: Final = Place()


@dataclass(frozen=True, slots=True)
class Exposed:
    """Keys of one window whose strands a node saw."""

    event: KeyEvent
    segment: SegmentRecord


@dataclass(frozen=True, slots=True)
class Page:
    found: tuple[Exposed, ...]
    next: Place | None  # from where to read on; None: this was all


class Exposures:
    """Searches in this node's ledger."""

    def __init__(self, ctx: Context, *, journal: Journal) -> None:
        self._ctx = ctx
        self._journal = journal

    async def page(
        self,
        node: NodeId,
        *,
        since: Nanoseconds,
        until: Nanoseconds,
        after: Place = START,
        most_keys: int = MOST_KEYS,
        most_entries: int = _MOST_ENTRIES,
    ) -> Page:
        """Return keys issued or delivered here in a time whose QKD strands `node` saw as a relay.

        Args:
            node: that saw them.
            since: the first moment.
            until: the last.
            after: where the page before ended.
            most_keys: on this page; those of one entry stay together.
            most_entries: of the ledger to be read, at least two.

        Raises:
            StoreUnavailableError: what is noted of keys cannot be recorded now, so that some would lack.
        """
        await self._journal.flush()
        found: list[Exposed] = []
        keys = entries = 0
        async with aclosing(self._uses(node, Nanoseconds(max(0, since - SPAN)), after)) as uses:
            async for place, segment, entry in uses:
                if entry is not None:
                    for event in _events_within(entry, segment.segment, since, until):
                        found.append(Exposed(event, segment))
                        keys += _keys_of(event)
                entries += 1
                if keys >= most_keys or entries >= most_entries:
                    return Page(tuple(found), place)
                await asyncio.sleep(0)
        return Page(tuple(found), None)

    async def _uses(
        self, node: NodeId, since: Nanoseconds, after: Place
    ) -> AsyncGenerator[tuple[Place, SegmentRecord, LedgerEntry | None], None]:
        """Yield each segment that may be meant, and behind it the entries about its keys from `since` on."""
        term, before = f"node:{node}", max(0, after.segment - 1)
        while segments := await self._read(LedgerQuery(term, "segment", after_sequence=before, limit=_AT_ONCE)):
            for told in segments:
                segment = SegmentRecord.decode(told.body)
                last = after.entry if told.sequence == after.segment else 0
                yield Place(told.sequence, last), segment, None
                if node not in segment.known_to:
                    continue
                uses = LedgerQuery(f"segment:{segment.segment.hex()}", since=since, limit=_AT_ONCE)
                while entries := await self._read(replace(uses, after_sequence=last)):
                    for entry in entries:
                        last = entry.sequence
                        yield Place(told.sequence, last), segment, entry
            before = segments[-1].sequence

    async def _read(self, query: LedgerQuery) -> list[LedgerEntry]:
        return await self._ctx.store.entries(query)


def _keys_of(event: KeyEvent) -> int:
    return len(event.record.slots) if isinstance(event.record, KeyRecord | DoubtfulRecord) else 1


def _events_within(entry: LedgerEntry, segment: bytes, since: Nanoseconds, until: Nanoseconds) -> Iterator[KeyEvent]:
    """Return what an entry says of the keys that a segment's slots became in a time: one event for keys alike."""
    if entry.kind == "segment":
        return
    if entry.kind == "doubtful":  # of the time before its own; to leave it out would hide keys
        if entry.time >= since:
            record = msgspec.msgpack.decode(entry.body, type=DoubtfulRecord)
            yield Doubt(entry.kind, entry.time, entry.sequence, record)
        return
    if entry.time > until:  # of its first key
        return
    for used in decode_key_records(entry.body, segment=segment):
        within = [index for index in range(len(used.slots)) if since <= used.time_of(index, entry.time) <= until]
        if within:
            yield KeyEvent(entry.kind, used.time_of(within[0], entry.time), entry.sequence, used.only(within))
