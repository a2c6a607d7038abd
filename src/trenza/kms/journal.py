"""The journal: which slots became which keys, written behind in batches.

A key may leave before its record is durable, since what makes it unique is: its reserved slots, or its delivery mark.
A crash therefore loses records of at most one batch and never a key's provenance, which is its segment's record; the
next start names the slots in question in a "doubtful" entry. Memory is bounded: while the store takes nothing, notes
gather up to a limit, and then nothing more is issued (docs/adr/0018-reserve-ahead-record-behind.md).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from trenza.base.errors import ConflictError, TrenzaError, UnavailableError
from trenza.base.names import NodeId, SaeId
from trenza.base.units import Bits, Nanoseconds, Seconds
from trenza.core.key_records import decode_key_records, encode_key_records
from trenza.core.policy import Policy
from trenza.core.provenance import KEY_RECORD_VERSION, DoubtfulRecord, KeyRecord
from trenza.core.recipe import Recipe, recipe_named
from trenza.kms.context import Context
from trenza.kms.ports import Append, Change, Delete, Insert, LedgerQuery, Table

SPAN: Final = Nanoseconds(10_000_000_000)
"""The keys of one entry are less than this apart, so that a search by time need not look further back."""

_RECORDS: Final = 256  # in one entry at most, which is some 10 kB: whoever looks for one key reads all of it
_PAGE: Final = 1_000  # entries read at once
_BATCHES: Final = b"journal:"
_DOUBTFUL: Final = "doubtful"

_IDLE: Final = Seconds(600.0)
"""A marker of another life that stays so long the same is of a batch that nobody writes again without a look."""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Where keys come from: what the records of all pairs that draw on one window have in common."""

    peer: NodeId
    window: int
    segment: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Heading:
    """What the records of one pair have in common, out of whatever window. Its maker keeps it."""

    deed: str  # "issued" | "delivered"
    initiator: SaeId
    target: SaeId
    recipe: Recipe
    size: Bits
    policy: Policy
    tls_group: str


_Note = tuple[Heading, Source, int, Nanoseconds]  # the last two: first slot of the key, and when


class _Stretch(NamedTuple):
    """Keys of one record in the order in which they were noted, all within one span of time."""

    heading: Heading
    source: Source
    slots: list[int]
    times: list[Nanoseconds]


@dataclass(frozen=True, slots=True)
class _Batch:
    changes: Sequence[Change]
    keys: int
    since: Seconds  # on Clock.elapsed


class Journal:
    """The notes of one node on their way to its ledger."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._notes: list[_Note] = []  # of the batch to come
        self._doubts: list[DoubtfulRecord] = []
        self._pending = 0  # keys noted that are not known to be durable
        self._batch: _Batch | None = None  # handed to the store, and not known to be durable
        self._number = 0
        self._last = b""
        self._others: dict[bytes, Seconds] = {}  # markers of other lives, and since when they are known
        self._writing = asyncio.Lock()
        self._has_notes = asyncio.Event()
        self._is_large = asyncio.Event()

    # --- noting

    def note(self, heading: Heading, source: Source, slots: Sequence[int], now: Nanoseconds) -> None:
        """Note that the keys with these first slots were issued or delivered now."""
        before = len(self._notes)
        self._notes += [(heading, source, slot, now) for slot in slots]
        self._pending += len(slots)
        if before == 0:
            self._has_notes.set()
        if before < self._ctx.settings.journal_batch <= len(self._notes):
            self._is_large.set()

    def doubt(self, record: DoubtfulRecord) -> None:
        """Note that nobody here will learn what became of these slots."""
        self._doubts.append(record)
        self._pending += len(record.slots)
        self._has_notes.set()

    def refuse_if_full(self) -> None:
        """Raise UnavailableError while so much is unrecorded that nothing may be added."""
        if self._pending >= self._ctx.settings.journal_records:
            self._ctx.counters["journal_refusals"] += 1
            raise UnavailableError("the store takes no records now; try again later")

    @property
    def is_full(self) -> bool:
        return self._pending >= self._ctx.settings.journal_records

    @property
    def pending(self) -> int:
        """Return how many keys are noted and not known to be recorded."""
        return self._pending

    # --- writing

    async def run(self) -> None:
        """Write what is noted, some time behind, until cancelled."""
        settings = self._ctx.settings
        while True:
            await self._has_notes.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(settings.journal_delay):
                    await self._is_large.wait()
            try:
                await self.flush()
            except TrenzaError:
                await asyncio.sleep(settings.journal_delay)

    async def flush(self) -> None:
        """Return when all that was noted before the call is durable.

        Raises:
            StoreUnavailableError: the store did not confirm it; it stays noted and is written once, later.
        """
        if not self._pending:
            return
        async with self._writing:
            if self._batch is not None:
                await self._write(self._batch)
            self._has_notes.clear()
            self._is_large.clear()
            if self._notes or self._doubts:
                self._batch = self._cut()
                await self._write(self._batch)

    async def flush_of(self, segment: bytes) -> None:
        """Return when all that was noted of keys out of one segment is durable; mostly it is already.

        Raises:
            StoreUnavailableError: as `flush`.
        """
        noted = any(source.segment == segment for _, source, _, _ in self._notes)
        if noted or self._batch is not None or any(record.segment == segment for record in self._doubts):
            await self.flush()

    def _cut(self) -> _Batch:
        """Make one batch of all notes."""
        self._number += 1
        name = _BATCHES + self._ctx.presence.nonce + self._number.to_bytes(8, "big")
        changes: list[Change] = [Insert(Table.META, name)]
        if self._last:
            changes.append(Delete(Table.META, self._last))
        self._last = name
        notes, self._notes = self._notes, []
        keys = len(notes)
        changes += self._entries(notes)
        doubts, self._doubts = self._doubts, []
        changes += [doubtful_entry(self._ctx.clock.now(), record) for record in doubts]
        keys += sum(len(record.slots) for record in doubts)
        return _Batch(changes, keys, self._ctx.clock.elapsed())

    async def _write(self, batch: _Batch) -> None:
        try:
            if not await self._stands(batch):
                with contextlib.suppress(ConflictError):  # it was written when the store seemed to fail
                    await self._ctx.store.commit(batch.changes)
        except TrenzaError:
            self._ctx.counters["journal_writes_failed"] += 1
            self._has_notes.set()  # it is tried again
            raise
        self._batch = None
        self._pending -= batch.keys

    async def _stands(self, batch: _Batch) -> bool:
        """Tell whether a batch that could not be written for so long that its marker may be gone is in the ledger."""
        if self._ctx.shared is None or self._ctx.clock.elapsed() - batch.since < _IDLE / 2:
            return False
        first = next(change for change in batch.changes if isinstance(change, Append))
        query = LedgerQuery(first.terms[0], first.kind, first.time, first.time, limit=_PAGE)
        return any(entry.body == first.body for entry in await self._ctx.store.entries(query))

    def _entries(self, notes: Sequence[_Note]) -> Iterator[Append]:
        """Return entries for what was issued and what was delivered, one span of time after the other."""
        spans: dict[tuple[str, int], list[_Stretch]] = {}
        for span, stretch in _stretches_of(notes):
            spans.setdefault((stretch.heading.deed, span), []).append(stretch)
        for (deed, _), stretches in spans.items():
            for first in range(0, len(stretches), _RECORDS):
                yield self._entry(deed, stretches[first : first + _RECORDS])

    def _entry(self, deed: str, stretches: Sequence[_Stretch]) -> Append:
        since = min(min(one.times) for one in stretches)
        sources = dict.fromkeys(one.source for one in stretches)
        terms = dict.fromkeys(f"segment:{one.segment.hex()}" for one in sources)
        terms |= dict.fromkeys(window_term(one.peer, one.window) for one in sources)
        body = encode_key_records(self._record(one, since) for one in stretches)
        return Append(Nanoseconds(since), deed, body, tuple(terms))

    def _record(self, one: _Stretch, since: int) -> KeyRecord:
        heading, source = one.heading, one.source
        return KeyRecord(
            version=KEY_RECORD_VERSION,
            segment=source.segment,
            peer=source.peer,
            window=source.window,
            slots=tuple(one.slots),
            initiator=heading.initiator,
            target=heading.target,
            recipe=heading.recipe.name,
            size=heading.size,
            policy=heading.policy.name,
            policy_digest=heading.policy.digest,
            tls_group=heading.tls_group,
            uncertainty=self._ctx.settings.clock_uncertainty,
            times=tuple((time - since) // 1_000 for time in one.times),
        )

    # --- at start

    async def load(self) -> None:
        """Find the last batch of the life before, whose marker the first batch of this one removes."""
        found = await self._ctx.store.scan(Table.META, _BATCHES)
        if found:
            self._last = found[-1][0]

    async def settle_others(self) -> None:
        """Remove the markers of lives that are over, of other instances and before: those that rest for long.

        One of an instance that lives and has nothing to write goes with them, and does no harm.
        """
        own = _BATCHES + self._ctx.presence.nonce
        now, found = self._ctx.clock.elapsed(), await self._ctx.store.scan(Table.META, _BATCHES)
        self._others = {key: self._others.get(key, now) for key, _ in found if not key.startswith(own)}
        over = [key for key, since in self._others.items() if now - since >= _IDLE]
        if over:
            await self._ctx.store.commit([Delete(Table.META, key) for key in over])

    async def recorded(self, deed: str, peer: NodeId, window: int, segment: bytes) -> set[int]:
        """Return the slots of a window that the ledger names, in a record of their keys or as doubtful."""
        slots: set[int] = set()
        term = window_term(peer, window)
        for kind in (deed, _DOUBTFUL):
            after = 0
            while entries := await self._ctx.store.entries(
                LedgerQuery(term=term, kind=kind, after_sequence=after, limit=_PAGE)
            ):
                after = entries[-1].sequence
                for entry in entries:
                    slots |= _slots_in(entry.body, kind, deed, peer, window, segment)
                    await asyncio.sleep(0)  # there may be very many, and others wait
        return slots


def doubtful_entry(time: Nanoseconds, record: DoubtfulRecord) -> Append:
    """Return the ledger entry for slots of which nobody wrote down what became of them."""
    terms = (f"segment:{record.segment.hex()}", window_term(NodeId(record.peer), record.window))
    return Append(time, _DOUBTFUL, msgspec.msgpack.encode(record), terms)


def _slots_in(body: bytes, kind: str, deed: str, peer: NodeId, window: int, segment: bytes) -> frozenset[int]:
    if kind == _DOUBTFUL:
        doubtful = msgspec.msgpack.decode(body, type=DoubtfulRecord)
        return doubtful.slots if (doubtful.deed, doubtful.segment) == (deed, segment) else frozenset()
    return frozenset(
        slot
        for record in decode_key_records(body, window=(peer, window), segment=segment)
        for first in record.slots
        for slot in range(first, first + recipe_named(record.recipe).slots_for(Bits(record.size)))
    )


def _stretches_of(notes: Sequence[_Note]) -> Iterator[tuple[int, _Stretch]]:
    """Return the keys of each record to be, with the span of time in which they lie."""
    found: dict[tuple[Heading, Source, int], _Stretch] = {}
    for heading, source, slot, now in notes:
        which = heading, source, now // SPAN
        stretch = found.get(which)
        if stretch is None:
            stretch = found[which] = _Stretch(heading, source, [], [])
        stretch.slots.append(slot)
        stretch.times.append(now)
    for (_, _, span), stretch in found.items():
        yield span, stretch


def window_term(peer: NodeId, number: int) -> str:
    """Return the ledger term of one window."""
    return f"window:{peer}:{number}"
