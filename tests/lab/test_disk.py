"""The lab's disk loses what was not synced and nothing else, whichever way the machine ends."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from trenza.base.errors import ConflictError, StoreUnavailableError
from trenza.kms.ports import Append, Change, Exists, Expect, Insert, Put, Table
from trenza.lab.disk import DeathAt, DiskHealth, LabDisk
from trenza.lab.loop import run
from trenza.lab.volume import STORE, File, Volume, VolumeStore


class Bench:
    """A disk on a bench, and what is told of it."""

    def __init__(self, files: dict[str, bytes] | None = None, *, seed: int = 1, death: DeathAt | None = None) -> None:
        self.seen: list[bytes] = []
        self.groups: list[int] = []
        self.fired: Counter[str] = Counter()
        self.died = 0
        self.health = DiskHealth(delay=(1.0, 1.0))
        self.disk = LabDisk(
            VolumeStore.open(Volume(files)),
            chance=random.Random(seed),
            health=self.health,
            observe=lambda changes: self.seen.append(changes[0].key),
            on_group=self.groups.append,
            death=death,
            on_death=self._die,
            fired=self.fired,
        )

    def _die(self) -> None:
        self.died += 1

    async def rows(self) -> list[bytes]:
        return [key for key, _ in await self.disk.scan(Table.META)]


def row(name: str) -> list[Change]:
    return [Put(Table.META, name.encode(), b"x" * 400), Append(1, "note", name.encode() * 300, (f"key:{name}",))]


def test_commits_that_wait_share_a_group_and_take_effect_in_their_order() -> None:
    async def story() -> None:
        bench = Bench()
        await asyncio.gather(*(bench.disk.commit(row(name)) for name in "abc"))
        assert asyncio.get_running_loop().time() == 2.0  # a went alone, b and c together
        assert bench.seen == [b"a", b"b", b"c"]
        assert bench.groups == [1, 2, 3]
        with pytest.raises(ConflictError):
            await bench.disk.commit([Insert(Table.META, b"a")])

    run(story())


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("power", [False, True], ids=["killed", "without power"])
def test_what_was_answered_is_there_and_the_rest_is_a_beginning_of_what_was_called(seed, power) -> None:
    async def story() -> None:
        bench = Bench(seed=seed)
        await bench.disk.commit(row("a"))
        tasks = [asyncio.create_task(bench.disk.commit(row(name))) for name in "bcd"]
        await asyncio.sleep(1.5)  # b was answered; c and d are one group under way
        files, doubt = bench.disk.cut_power() if power else bench.disk.kill()
        again = Bench(files)
        rows = await again.rows()
        assert rows in ([b"a", b"b"], [b"a", b"b", b"c"], [b"a", b"b", b"c", b"d"])
        found = again.disk.counter() - doubt.durable
        assert found in range(len(doubt.tried) + 1)
        assert bench.seen == rows[: len(rows) - found]  # the next start tells of the others
        assert bench.fired["commits lost in a crash"] == (len(bench.seen) < 4)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with pytest.raises(StoreUnavailableError):
            await bench.disk.commit(row("e"))

    run(story())


def test_a_commit_that_is_refused_is_not_thought_to_be_there_though_its_group_may_be() -> None:
    async def story() -> None:
        for again, tried in (
            ([Insert(Table.META, b"a")], []),
            ([Expect(Table.META, b"a", b"y")], []),
            ([Exists(Table.META, b"b")], []),
            (
                [Exists(Table.META, b"a"), Insert(Table.META, b"b")],
                [Exists(Table.META, b"a"), Insert(Table.META, b"b")],
            ),
        ):
            bench = Bench()
            await bench.disk.commit(row("a"))
            task = asyncio.create_task(bench.disk.commit(again))
            await asyncio.sleep(0.5)
            _, doubt = bench.disk.cut_power()
            assert doubt.tried == [tried]
            task.cancel()

    run(story())


def test_a_store_that_does_not_sync_loses_what_it_answered(monkeypatch) -> None:
    """The one thing this disk is for: a store without durable commits is found out."""
    monkeypatch.setattr(File, "sync", lambda self: None)

    async def story() -> None:
        lost = 0
        for seed in range(10):
            bench = Bench(seed=seed)
            for name in "abc":
                await bench.disk.commit(row(name))
            files, doubt = bench.disk.cut_power()
            try:
                lost += Bench(files).disk.counter() < doubt.durable
            except Exception:  # noqa: BLE001 - not even a store any more
                lost += 1
        assert lost > 5

    run(story())


def test_a_full_disk_refuses_and_may_have_written_all_the_same() -> None:
    async def story() -> None:
        bench = Bench()
        bench.health.full = True
        for number in range(40):
            with pytest.raises(StoreUnavailableError):
                await bench.disk.commit(row(f"{number}"))
        assert 0 < len(await bench.rows()) < 40
        bench.health.full = False
        await bench.disk.commit(row("z"))

    run(story())


def test_a_slow_disk_takes_a_hundred_times_as_long() -> None:
    async def story() -> None:
        bench = Bench()
        bench.health.slow = True
        await bench.disk.commit(row("a"))
        assert asyncio.get_running_loop().time() == 100.0

    run(story())


@pytest.mark.parametrize(("when", "there"), [("before", []), ("after", [b"a"])])
def test_a_machine_dies_right_before_or_right_after_a_commit(when, there) -> None:
    async def story() -> None:
        bench = Bench(death=DeathAt(1, when))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(9.0):
                await bench.disk.commit(row("a"))
        assert bench.died == 1
        assert await bench.rows() == there

    run(story())


def test_unsynced_writes_survive_whole_in_part_or_not_at_all() -> None:
    volume = Volume({STORE: bytes(2_048)})
    file = volume.file(STORE)
    file.write(b"s" * 512, 0)
    file.sync()
    file.write(b"u" * 1_024, 512)
    file.write(b"v" * 512, 2_048)
    outcomes = {bytes(file.without_power(random.Random(seed))) for seed in range(60)}
    assert all(one.startswith(b"s" * 512) for one in outcomes)
    assert {one[512:1_536] for one in outcomes} == {bytes(1_024), b"u" * 512 + bytes(512), b"u" * 1_024}
    assert {one[2_048:] for one in outcomes} == {b"", b"v" * 512}
    assert volume.after_kill()[STORE].endswith(b"v" * 512)
