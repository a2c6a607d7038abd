"""The ledger within its limits: archived, announced, pruned; whatever crashes, no entry is in neither place."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from tests.kms.fakes import FakeClock, FakeNetwork, make_context

from trenza.adapters.archive import ArchiveDirectory, opened_archive
from trenza.adapters.sqlite import InlineStore
from trenza.base.errors import StoreUnavailableError, UnavailableError
from trenza.base.names import NodeId
from trenza.core.archive import Mark, verify_archive
from trenza.core.chain import verify_chain
from trenza.kms import rows
from trenza.kms.context import Settings
from trenza.kms.journal import Journal
from trenza.kms.notary import Notary
from trenza.kms.ports import Append, LedgerQuery, Put, Table
from trenza.kms.retention import Retention

A = NodeId("A")
KEY = MLDSA65PrivateKey.from_seed_bytes(bytes(32))
DAY = 86_400.0
HELD = bytes([7]) * 16


class CrashError(BaseException):
    """The process ends here."""


class Crashing:
    """A store whose process dies right before or right after one commit."""

    def __init__(self, store: InlineStore, at: tuple[int, str] | None = None) -> None:
        self._store, self._at, self.commits = store, at, 0

    def __getattr__(self, name):
        return getattr(self._store, name)

    async def commit(self, changes) -> None:
        self.commits += 1
        if self._at == (self.commits, "before"):
            raise CrashError
        await self._store.commit(changes)
        if self._at == (self.commits, "after"):
            raise CrashError


class Signer:
    def sign(self, message: bytes) -> bytes:
        return KEY.sign(message)


class World:
    """A node's ledger, its archives, and its upkeep."""

    def __init__(self, folder: Path | None, *, image: bytes | None = None, clock=None, at=None, **settings) -> None:
        self.folder, self.clock = folder, clock or FakeClock()
        self.disk = InlineStore() if image is None else InlineStore.from_image(image)
        self.store = Crashing(self.disk, at)
        self.ctx = make_context(
            A, FakeNetwork(), clock=self.clock, settings=replace(Settings(), **settings), store=self.store
        )
        self.ctx.signer = Signer()
        self.ctx.archive = None if folder is None else ArchiveDirectory(folder)
        self.notary = Notary(self.ctx, journal=Journal(self.ctx))
        self.sound = True  # whether the clock can be believed
        self.retention = Retention(self.ctx, notary=self.notary, clock_is_sound=lambda: self.sound)

    async def live(self, *, days: float, per_day: int = 100, signs: bool = True) -> None:
        """Let time go by; each day brings entries and four checkpoints."""
        for _ in range(round(days * 4)):
            now = self.clock.now()
            await self.disk.commit([Append(now, "issued", b"x" * 80, ("window:B:1",)) for _ in range(per_day // 4)])
            self.clock.advance(DAY / 4)
            if signs:
                await self.notary.sign()

    async def settle(self) -> None:
        while await self.retention.step():
            pass

    async def extent(self):
        return await self.disk.extent()

    async def audit(self) -> int:
        """Check archives and ledger as an auditor does; return the first entry that is anywhere."""
        reached, first = None, None
        for path in sorted(self.folder.glob("*.ledger.gz")) if self.folder else ():
            with opened_archive(path) as (head, entries):
                first = first or head.previous.sequence + 1
                reached = verify_archive(
                    head, entries, KEY.public_key().public_bytes_raw(), reached=reached, name=path.name
                )
        extent = await self.extent()
        if reached is not None:
            assert reached.sequence >= extent.start.sequence
        places = [*await self.notary.checkpoints(), *([reached] if reached else [])]
        end = verify_chain(await self.disk.entries(LedgerQuery()), extent.start, through=places)
        assert Mark(*end) == Mark(extent.head.sequence, extent.head.hash)
        return first or extent.start.sequence + 1


def run(story) -> None:
    asyncio.run(story())


def test_what_is_older_than_the_limit_goes_into_an_archive_and_out_of_the_ledger(tmp_path) -> None:
    async def story() -> None:
        world = World(tmp_path, ledger_days=10.0)
        await world.live(days=30)
        await world.settle()
        extent = await world.extent()
        assert 1_950 <= extent.start.sequence <= 2_000
        (oldest,) = await world.disk.entries(LedgerQuery(limit=1))
        assert oldest.time >= world.clock.now() - 10.5 * DAY * 1e9
        assert await world.audit() == 1
        record = await world.retention.pruned()
        assert (record.through, record.hash) == (extent.start.sequence, extent.start.hash)
        assert record.archive in {path.name for path in tmp_path.iterdir()}
        assert min(one.sequence for one in await world.notary.checkpoints()) == record.through
        assert world.ctx.counters["ledger_entries_pruned"] == record.through
        head = extent.head
        await world.settle()
        assert (await world.extent()).head == head  # nothing more to say

    run(story)


def test_what_is_more_than_the_limit_is_pruned_whatever_its_age() -> None:
    async def story() -> None:
        world = World(None, ledger_days=0.0, ledger_max_bytes=150_000)
        await world.live(days=30)
        assert (await world.extent()).bytes > 800_000
        await world.settle()
        assert 100_000 < (await world.extent()).bytes <= 150_000
        assert (await world.retention.pruned()).archive == ""
        await world.audit()

    run(story)


@pytest.mark.parametrize("limits", [{"ledger_days": 10.0}, {"ledger_days": 0.0, "ledger_max_bytes": 10_000}])
def test_a_machine_that_begins_in_1970_at_each_boot_does_not_make_what_was_before_it_old(limits) -> None:
    async def story() -> None:
        world = World(None, **limits)
        today, boots = world.clock.now(), 16
        for boot in range(boots):
            for moment in (10**9, today + boot * 60 * 10**9):  # until its clock is set, and after that
                world.clock.advance((moment - world.clock.now()) / 1e9)
                await world.disk.commit([Append(world.clock.now(), "issued", b"x" * 80, ("window:B:1",))] * 20)
                await world.notary.sign()
        with contextlib.suppress(UnavailableError):  # too large, but keys of the last hour may still be fetched
            await world.settle()
        assert (await world.extent()).start.sequence <= 20

    run(story)


def test_a_clock_that_was_ahead_for_a_while_does_not_keep_the_ledger_for_ever() -> None:
    async def story() -> None:
        world = World(None, ledger_days=10.0)
        await world.live(days=5.0)
        world.clock.advance(300 * DAY)
        await world.live(days=0.25)
        world.clock.advance(-300 * DAY)
        await world.live(days=20.0)
        await world.settle()
        assert (await world.extent()).start.sequence >= 1_400

    run(story)


def test_by_a_clock_that_nobody_vouches_for_nothing_is_old() -> None:
    async def story() -> None:
        world = World(None, ledger_days=10.0)
        await world.live(days=9)
        world.sound = False
        world.clock.advance(300 * DAY)
        checkpoints = await world.notary.checkpoints()
        with pytest.raises(UnavailableError, match="clock"):
            await world.settle()
        assert world.ctx.counters["retention_waits_for_clock"] == 1
        assert (await world.extent()).start.sequence == 0
        assert await world.notary.checkpoints() == checkpoints  # none is thinned either
        world.clock.advance(-300 * DAY)
        await world.settle()  # nothing is old, so nothing waits
        world.clock.advance(10 * DAY)
        world.sound = True
        await world.settle()
        assert (await world.extent()).start.sequence > 0

    run(story)


def test_a_ledger_that_is_too_large_waits_for_no_clock() -> None:
    async def story() -> None:
        world = World(None, ledger_days=10.0, ledger_max_bytes=150_000)
        await world.live(days=9)
        world.sound = False
        world.clock.advance(300 * DAY)
        with pytest.raises(UnavailableError, match="clock"):  # of the rest
            await world.settle()
        assert 100_000 < (await world.extent()).bytes <= 150_000

    run(story)


def test_without_limits_nothing_is_pruned() -> None:
    async def story() -> None:
        world = World(None, ledger_days=0.0, ledger_max_bytes=0)
        await world.live(days=30)
        await world.settle()
        assert (await world.extent()).start.sequence == 0

    run(story)


def test_nothing_is_pruned_that_no_checkpoint_vouches_for() -> None:
    async def story() -> None:
        world = World(None, ledger_days=1.0, ledger_max_bytes=1_000)
        await world.live(days=3)
        signed = (await world.notary.checkpoints())[-1].sequence
        await world.live(days=30, signs=False)
        with pytest.raises(UnavailableError, match="not signed yet"):
            await world.settle()
        assert (await world.extent()).start.sequence == signed

    run(story)


def test_records_of_segments_and_windows_that_are_held_stay() -> None:
    async def story() -> None:
        world = World(None, ledger_days=1.0)
        await world.live(days=4)
        record = Append(world.clock.now(), "segment", b"record", (f"segment:{HELD.hex()}",))
        window = rows.encode(rows.HeldWindowRow(HELD, 0, 4, 4, 0, None, ()))
        await world.disk.commit([record, Put(Table.WINDOW, rows.window_key(rows.HOLDER, NodeId("B"), 1), window)])
        sequence = (await world.extent()).head.sequence
        await world.live(days=20)
        await world.settle()
        assert sequence - 26 <= (await world.extent()).start.sequence < sequence
        await world.disk.commit([Put(Table.SEGMENT, HELD, b"")])
        await world.disk.commit([Put(Table.WINDOW, rows.window_key(rows.HOLDER, NodeId("B"), 1), window)])
        await world.settle()
        assert (await world.extent()).start.sequence < sequence

    run(story)


def test_what_may_still_be_fetched_stays_even_if_the_ledger_is_too_large() -> None:
    async def story() -> None:
        world = World(None, ledger_max_bytes=1_000)
        await world.live(days=0.25)
        world.clock.advance(-DAY / 4 + 60.0)  # signed a minute ago, and keys may wait an hour
        with pytest.raises(UnavailableError, match="may still be fetched"):
            await world.settle()
        assert (await world.extent()).start.sequence == 0
        assert world.ctx.counters["retention_held_back"] == 1
        world.clock.advance(DAY)
        await world.settle()
        assert (await world.extent()).start.sequence == 25

    run(story)


class FullDisk:
    async def keep(self, head, entries) -> str:
        raise StoreUnavailableError("the archive cannot be written: No space left on device")


def test_what_cannot_be_archived_is_not_pruned() -> None:
    async def story() -> None:
        world = World(None, ledger_days=1.0)
        world.ctx.archive = FullDisk()
        await world.live(days=3)
        before = await world.extent()
        with pytest.raises(StoreUnavailableError, match="No space left"):
            await world.settle()
        assert await world.extent() == before

    run(story)


def commits_of_a_pruning() -> int:
    async def story() -> int:
        world = World(None, ledger_days=10.0)
        await world.live(days=15)
        await world.settle()
        return world.store.commits

    return asyncio.run(story())


def test_whatever_commit_a_crash_ends_every_entry_is_in_the_ledger_or_in_an_archive(tmp_path) -> None:
    async def story(number: int, when: str) -> None:
        folder = tmp_path / f"{number}-{when}"
        world = World(folder, ledger_days=10.0, at=None)
        await world.live(days=15)
        dying = World(folder, image=world.disk.image(), clock=world.clock, ledger_days=10.0, at=(number, when))
        with pytest.raises(CrashError):
            await dying.settle()
        again = World(folder, image=dying.disk.image(), clock=world.clock, ledger_days=10.0)
        assert await again.audit() == 1  # right after the crash
        await again.live(days=1)  # and another day goes by before it gets to it
        await again.settle()
        assert await again.audit() == 1
        assert (await again.extent()).start.sequence >= 500

    total = commits_of_a_pruning() - 60  # those before were the checkpoints
    assert total >= 4
    for number in range(1, total + 1):
        for when in ("before", "after"):
            asyncio.run(story(number, when))


def test_checkpoints_are_thinned_with_age_and_the_ledger_still_passes_through_all_that_are_left() -> None:
    async def story() -> None:
        world = World(None, ledger_days=0.0)
        for _ in range(200):
            await world.disk.commit([Append(world.clock.now(), "issued", b"x")])
            await world.notary.sign()
            world.clock.advance(900.0)
        await world.live(days=40)
        await world.notary.thin(keep=50)
        left = [one.sequence for one in await world.notary.checkpoints()]
        await world.audit()
        assert 50 in left
        assert len([sequence for sequence in left if sequence <= 200]) <= 5  # two days of long ago: one each
        assert len([one for one in left if one > 200]) >= 10 + 4 * 29
        (entry,) = await world.disk.entries(LedgerQuery(after_sequence=left[-1] - 1, limit=1))
        assert left[-1] == (await world.extent()).head.sequence == entry.sequence
        assert msgspec.msgpack.decode((await world.disk.scan(Table.META, b"checkpoint:"))[-1][1])["node"] == "A"

    run(story)
