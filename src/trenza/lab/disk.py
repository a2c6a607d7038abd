"""The lab's disk: production's store on a volume, with group commits that take their time, and machines that die.

Commits wait while a group is being written, then go together, as with production's writer thread. A group takes
effect when it is synced; then its commits are answered. What was called and not answered when the machine dies is
doubtful: of the group under way some first commits may be there, and with the power going in the midst of one, a torn
part of it that the store must not take for a whole. What was answered must be there: the next start counts.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

from trenza.base.errors import StoreUnavailableError, TrenzaError
from trenza.kms.ports import ChainHead, Change, Exists, Expect, Insert, LedgerEntry, LedgerExtent, LedgerQuery, Table
from trenza.lab.volume import Volume, VolumeStore

T = TypeVar("T")

Observer = Callable[[Sequence[Change]], None]


@dataclass(frozen=True, slots=True)
class DeathAt:
    """Where a machine dies: right before or right after the commit of this number, counted from its first start."""

    commit: int
    when: Literal["before", "after"]


@dataclass(slots=True)
class DiskHealth:
    """What a disk is like at present; a machine's own, whichever process runs on it."""

    delay: tuple[float, float] = (0.0, 0.003)  # least and most seconds that a group takes
    full: bool = False  # commits fail
    slow: bool = False  # each group takes a hundred times as long


class _Waiting(NamedTuple):
    number: int
    changes: Sequence[Change]
    answer: asyncio.Future[None]


@dataclass(slots=True)
class Doubt:
    """What a start finds out: how many of the last commits are there."""

    durable: int  # commits that the store had made durable for certain
    tried: list[Sequence[Change]]  # those that may have been made durable after these, in their order


class LabDisk:
    """Implements kms.ports.Store around the store on a volume."""

    def __init__(
        self,
        inner: VolumeStore,
        *,
        chance: random.Random,
        health: DiskHealth,
        observe: Observer,
        on_group: Callable[[int], None],
        commits: int = 0,
        death: DeathAt | None = None,
        on_death: Callable[[], None],
        fired: Counter[str],
    ) -> None:
        """Put a disk around `inner`.

        Args:
            inner: the store.
            chance: seeded; decides how long each group takes and what a death leaves of it.
            health: how the disk is.
            observe: told of every commit that became durable.
            on_group: told the store's counter when a group became durable, before its answers leave.
            commits: how many commits this machine has called before, in earlier lives.
            death: where the machine dies, if it does.
            on_death: called when it does; the commit then never returns.
            fired: counts faults by kind.
        """
        self.inner = inner
        self.commits = commits
        self._store = inner.inner
        self._chance = chance
        self._health = health
        self._observe = observe
        self._on_group = on_group
        self.death = death
        self._on_death = on_death
        self._fired = fired
        self._dead = False
        self._queue: list[_Waiting] = []
        self._under_way: list[_Waiting] = []
        self._watchers: list[asyncio.Future[None]] = []

    # --- the end

    def kill(self) -> tuple[dict[str, bytes], Doubt]:
        """End the process: return what is on the disk, and what is doubtful of it."""
        doubt = self._die(self._chance.randint(0, len(self._under_way)))
        return self._left(doubt, self.inner.volume.after_kill)

    def cut_power(self) -> tuple[dict[str, bytes], Doubt]:
        """End the machine at once, in the midst of a write if there is one."""
        doubt = self._die(self._chance.randrange(len(self._under_way) or 1))
        if self._under_way:
            first = self._under_way[0]
            doubt.tried.append([] if self._refuses(first.changes) else first.changes)  # an empty group may be there
            self.inner.volume.fail_after(self._chance.randrange(12))
            try:
                _at_once(self._store.commit(first.changes))
            except TrenzaError:
                self._fired["torn group"] += 1
        return self._left(doubt, lambda: self.inner.volume.after_power_loss(self._chance))

    def _die(self, made: int) -> Doubt:
        """Make so many commits of the group under way durable; whatever still unwinds writes and reads nothing."""
        self._dead = True
        for waiting in self._under_way[:made]:
            self._applied(waiting.changes)
        del self._under_way[:made]
        if self._under_way or self._queue:
            self._fired["commits lost in a crash"] += 1
        return Doubt(self._store.counter(), [])

    def _refuses(self, changes: Sequence[Change]) -> bool:
        """Tell whether the store as it stands answers a commit with a conflict."""
        for change in changes:
            match change:
                case Insert(table, key):
                    refused = _at_once(self._store.get(table, key)) is not None
                case Expect(table, key, value):
                    refused = _at_once(self._store.get(table, key)) != value
                case Exists(table, key):
                    refused = _at_once(self._store.get(table, key)) is None
                case _:
                    refused = False
            if refused:
                return True
        return False

    def _left(self, doubt: Doubt, files: Callable[[], dict[str, bytes]]) -> tuple[dict[str, bytes], Doubt]:
        left = files()
        self.inner.abandon()
        return left, doubt

    # --- the Store port

    async def commit(self, changes: Sequence[Change]) -> None:
        self._check()
        self.commits += 1
        number = self.commits
        await self._die_if(DeathAt(number, "before"))
        waiting = _Waiting(number, changes, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        if not self._under_way:
            self._begin_group()
        await waiting.answer
        await self._die_if(DeathAt(number, "after"))

    async def _die_if(self, here: DeathAt) -> None:
        if here == self.death:
            self._on_death()
            await asyncio.Event().wait()

    def _begin_group(self) -> None:
        self._under_way, self._queue = self._queue, []
        loop, pause = asyncio.get_running_loop(), self.pause()
        loop.call_later(pause, self._synced)
        if self._watchers:
            loop.call_later(pause / 2, self._tell)

    async def busy(self, *, within: float = 3.0) -> None:
        """Wait for the midst of a group, or so many seconds."""
        watcher: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watchers.append(watcher)
        await asyncio.wait([watcher], timeout=within)

    def _tell(self) -> None:
        for watcher in self._watchers:
            watcher.set_result(None)
        self._watchers.clear()

    def pause(self) -> float:
        """Return how long the next access takes."""
        if self._health.slow:
            self._fired["slow disk"] += 1
        return self._chance.uniform(*self._health.delay) * (100 if self._health.slow else 1)

    def _synced(self) -> None:
        if self._dead:
            return
        group, self._under_way = self._under_way, []
        for waiting in group:
            error = self._applied(waiting.changes)
            if waiting.answer.done():
                continue  # its caller was cancelled; the changes stand
            if error is None:
                waiting.answer.set_result(None)
            else:
                waiting.answer.set_exception(error)
        self.inner.tidy()
        if self._queue:
            self._begin_group()

    def _applied(self, changes: Sequence[Change]) -> BaseException | None:
        if self._health.full and self._chance.random() < 0.8:
            self._fired["full disk"] += 1
            return StoreUnavailableError("the disk is full")
        try:
            _at_once(self._store.commit(changes))
        except Exception as error:  # noqa: BLE001 - it is its caller's
            return error
        self._on_group(self._store.counter())
        self._observe(changes)
        if self._health.full:
            self._fired["full disk"] += 1
            return StoreUnavailableError("the disk did not say whether it synced")
        return None

    def _check(self) -> None:
        if self._dead:
            raise StoreUnavailableError("this process is dead")

    async def get(self, table: Table, key: bytes) -> bytes | None:
        self._check()
        value = await self._store.get(table, key)
        await asyncio.sleep(0)
        return value

    async def scan(self, table: Table, prefix: bytes = b"") -> list[tuple[bytes, bytes]]:
        self._check()
        found = await self._store.scan(table, prefix)
        await asyncio.sleep(0)
        return found

    async def head(self) -> ChainHead:
        self._check()
        return await self._store.head()

    async def extent(self) -> LedgerExtent:
        self._check()
        return await self._store.extent()

    async def entries(self, query: LedgerQuery) -> list[LedgerEntry]:
        self._check()
        found = await self._store.entries(query)
        await asyncio.sleep(0)
        return found

    def counter(self) -> int:
        return self._store.counter()

    async def close(self) -> None:
        self._dead = True


def _at_once(deed: Coroutine[Any, Any, T]) -> T:
    """Run what never waits: the store of the lab answers in its caller's turn."""
    try:
        deed.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    raise AssertionError("the lab's store waits for nothing")


def opened(files: dict[str, bytes] | None) -> VolumeStore:
    """Return the store in a copy of a data directory."""
    return VolumeStore.open(Volume(files))
