"""How much of the ledger is kept: old entries are archived, then pruned, never beyond a signed checkpoint.

In this order, so that a crash between any two steps loses nothing: the archive is durable, the ledger says what will
be pruned and where it was kept (an entry `pruned`), the entries go in small commits. What may still be asked for in
earnest stays whatever the limits say: the records of segments and windows that the node holds, and everything since
the oldest key that may still be fetched. A clock that nobody vouches for makes nothing old (kms.clock_check). Why:
docs/adr/0021-retention.md.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

import msgspec

from trenza.base.errors import UnavailableError
from trenza.base.units import Nanoseconds, Seconds, nanoseconds
from trenza.core.archive import ArchiveHead, Mark
from trenza.core.chain import Checkpoint, Head
from trenza.core.provenance import FORMAT_VERSION, PrunedRecord
from trenza.kms import rows
from trenza.kms.context import Context
from trenza.kms.id_keys import lifetime_of
from trenza.kms.notary import Notary
from trenza.kms.ports import Append, LedgerEntry, LedgerExtent, LedgerQuery, Prune, Table

PRUNED: Final = "pruned"
"""The kind of the entry that announces it; its body is a PrunedRecord."""

_DAY: Final = Seconds(86_400.0)
_BATCH: Final = 200  # entries that one commit removes: others wait for it no longer than for an fsync
_PAGE: Final = 250  # entries read at once for an archive; one may tell of hundreds of pairs
_STRETCH: Final = 250_000  # entries in one archive, if a checkpoint lies in them
_REST: Final = 4.0  # of the time that a batch took: what pruning leaves to others
_SLACK: Final = 0.9  # of the most bytes: what is pruned down to, so that it is not done at every look


class Retention:
    """Keeps one node's ledger within its limits."""

    def __init__(self, ctx: Context, *, notary: Notary, clock_is_sound: Callable[[], bool]) -> None:
        self._ctx = ctx
        self._clock_is_sound = clock_is_sound
        self._notary = notary
        self._seen = 0  # the last announcement known
        self._announced: PrunedRecord | None = None

    async def pruned(self) -> PrunedRecord | None:
        """Return what this node last announced that it prunes; None where its ledger is whole."""
        while found := await self._ctx.store.entries(LedgerQuery(kind=PRUNED, after_sequence=self._seen)):
            self._seen, self._announced = found[-1].sequence, PrunedRecord.decode(found[-1].body)
        return self._announced

    async def step(self) -> bool:
        """Go on with what was announced, or see whether more is to be pruned; tell whether to come again at once.

        Raises:
            StoreUnavailableError: the archive or the store cannot be written; nothing is pruned that is not archived.
            UnavailableError: the ledger is larger than it may be, and nothing of it may be pruned; or some of it is
                old by a clock that cannot be believed.
        """
        extent = await self._ctx.store.extent()
        announced = await self.pruned()
        if announced is not None and announced.through > extent.start.sequence:
            await self._prune(announced.through)
            return True
        if self._clock_is_sound():
            await self._notary.thin(keep=announced.through if announced else 0)
        target = await self._target(extent)
        if target is None:
            return False
        await self._announce(extent, target)
        return True

    # --- what to prune

    async def _target(self, extent: LedgerExtent) -> Checkpoint | None:
        """Return the checkpoint up to which to prune next."""
        settings, now = self._ctx.settings, self._ctx.clock.now()
        is_large = 0 < settings.ledger_max_bytes < extent.bytes
        if not is_large and not await self._has_older(extent, now):
            return None
        signed = [one for one in await self._notary.checkpoints() if one.sequence > extent.start.sequence]
        old = self._last_old(signed, now)
        much = self._last_too_much(signed, extent) if is_large else -1
        floor = await self._floor(signed, now)
        sound = self._clock_is_sound()
        last = max(old, much) if sound else much
        allowed = [one for one in signed[: last + 1] if one.sequence <= floor]
        if allowed:
            within = bisect_right([one.sequence for one in allowed], extent.start.sequence + _STRETCH)
            return allowed[max(0, within - 1)]
        if is_large:
            self._ctx.counters["retention_held_back"] += 1
            raise UnavailableError(
                f"the ledger takes about {extent.bytes} bytes, more than ledger_max_bytes, and all of it is of "
                "segments that are held, of keys that may still be fetched, or not signed yet"
            )
        if not sound and any(one.sequence <= floor for one in signed[: old + 1]):
            self._ctx.counters["retention_waits_for_clock"] += 1
            raise UnavailableError(
                "the oldest records are older than ledger_days by this node's clock, which too few of its peers have "
                "agreed with since the node started or its clock was set: nothing is pruned for its age"
            )
        return None

    async def _has_older(self, extent: LedgerExtent, now: Nanoseconds) -> bool:
        days = self._ctx.settings.ledger_days
        oldest = await self._ctx.store.entries(LedgerQuery(after_sequence=extent.start.sequence, limit=1))
        young = now - nanoseconds(Seconds(days * _DAY))
        return bool(oldest) and days > 0 and not young <= oldest[0].time <= now

    def _last_old(self, signed: Sequence[Checkpoint], now: Nanoseconds) -> int:
        """Return the place of the last checkpoint all of whose entries are too old; -1 where there is none."""
        days = self._ctx.settings.ledger_days
        if days <= 0:
            return -1
        return _last_before(signed, Nanoseconds(now - nanoseconds(Seconds(days * _DAY))), now)

    def _last_too_much(self, signed: Sequence[Checkpoint], extent: LedgerExtent) -> int:
        """Return the place of the checkpoint behind which about as much remains as may; entries count alike."""
        share = 1 - _SLACK * self._ctx.settings.ledger_max_bytes / extent.bytes
        last = extent.start.sequence + int(share * (extent.head.sequence - extent.start.sequence))
        return min(bisect_left([one.sequence for one in signed], last), len(signed) - 1)

    async def _floor(self, signed: Sequence[Checkpoint], now: Nanoseconds) -> int:
        """Return the last entry that nobody may need before it has been looked for in an archive."""
        unfetchable = _last_before(signed, Nanoseconds(now - lifetime_of(self._ctx)), now)
        floor = signed[unfetchable].sequence if unfetchable >= 0 else 0
        for segment in sorted(await self._held()):
            query = LedgerQuery(term=f"segment:{segment.hex()}", kind="segment", limit=1)
            for entry in await self._ctx.store.entries(query):
                floor = min(floor, entry.sequence - 1)
        return floor

    async def _held(self) -> set[bytes]:
        """Return the segments that this node holds, or of which it holds a window."""
        store = self._ctx.store
        held = {key for key, _ in await store.scan(Table.SEGMENT)}
        for _, value in await store.scan(Table.WINDOW, rows.ISSUER):
            held.add(rows.decode(value, rows.IssuerWindowRow).segment)
        for _, value in await store.scan(Table.WINDOW, rows.HOLDER):
            held.add(rows.decode(value, rows.HeldWindowRow).segment)
        return held

    # --- pruning

    async def _announce(self, extent: LedgerExtent, target: Checkpoint) -> None:
        """Archive the entries up to a checkpoint, then say in the ledger that they will be pruned."""
        ctx, name = self._ctx, ""
        if ctx.archive is not None:
            signed = await self._notary.checkpoints()
            within = [one for one in signed if extent.start.sequence <= one.sequence <= target.sequence]
            head = ArchiveHead(ctx.name, _mark(extent.start), _mark(target), tuple(within))
            name = await ctx.archive.keep(head, self._entries(extent.start.sequence, target.sequence))
            ctx.counters["ledger_archives"] += 1
        record = PrunedRecord(FORMAT_VERSION, target.sequence, target.hash, target.time, name)
        await ctx.store.commit([Append(ctx.clock.now(), PRUNED, msgspec.msgpack.encode(record))])

    async def _entries(self, after: int, last: int) -> AsyncIterator[Sequence[LedgerEntry]]:
        while after < last:
            page = await self._ctx.store.entries(LedgerQuery(after_sequence=after, limit=min(_PAGE, last - after)))
            if not page:
                return
            yield page
            after = page[-1].sequence
            await asyncio.sleep(0)

    async def _prune(self, through: int) -> None:
        """Remove entries, a few with each commit, and leave most of the time to others."""
        store, clock = self._ctx.store, self._ctx.clock
        begun, after = clock.elapsed(), (await store.extent()).start.sequence
        async for page in self._pages(after, through):
            await store.commit([Prune(page[-1].sequence, page[-1].hash)])
            self._ctx.counters["ledger_entries_pruned"] += len(page)
            await asyncio.sleep(_REST * (clock.elapsed() - begun))
            begun = clock.elapsed()

    async def _pages(self, after: int, last: int) -> AsyncIterator[Sequence[LedgerEntry]]:
        while page := await self._ctx.store.entries(
            LedgerQuery(after_sequence=after, limit=min(_BATCH, last - after))
        ):
            yield page
            after = page[-1].sequence


def _last_before(signed: Sequence[Checkpoint], moment: Nanoseconds, now: Nanoseconds) -> int:
    """Return the place of the last checkpoint that, with all before it, is of before a moment; -1: there is none.

    Clocks are set: what follows a checkpoint of later than the moment is no older, whatever time it bears (a machine
    may begin in 1970 at each boot); and of a time that is yet to come only the neighbours tell.
    """
    last = -1
    for place, one in enumerate(signed):
        if moment < one.time <= now:
            break
        if one.time <= moment:
            last = place
    return last


def _mark(head: Head) -> Mark:
    return Mark(head.sequence, head.hash)
