"""The lab's disk: the store of production, with answers that take their time, and a machine that may die at a commit.

A commit takes effect in the order in which it was called, as the Store contract says; its answer comes later. A
machine that dies *before* a commit leaves nothing of it; one that dies *after* leaves all of it, and nobody was told.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from trenza.adapters.sqlite import InlineStore
from trenza.base.errors import StoreUnavailableError
from trenza.kms.ports import ChainHead, Change, LedgerEntry, LedgerQuery, Table

Observer = Callable[[Sequence[Change]], None]


@dataclass(frozen=True, slots=True)
class DeathAt:
    """Where a machine dies: right before or right after the commit of this number, counted from its first start."""

    commit: int
    when: Literal["before", "after"]


class LabDisk:
    """Implements kms.ports.Store around an InlineStore."""

    def __init__(
        self,
        inner: InlineStore,
        *,
        chance: random.Random,
        delay: tuple[float, float],
        observe: Observer,
        commits: int = 0,
        death: DeathAt | None = None,
        on_death: Callable[[], None],
    ) -> None:
        """Put a disk around `inner`.

        Args:
            inner: the store.
            chance: seeded; decides how long each answer takes.
            delay: least and most seconds of virtual time that a commit's answer takes.
            observe: told of every commit that became durable.
            commits: how many commits this machine has called before, in earlier lives.
            death: where the machine dies, if it does.
            on_death: called when it does; the commit then never returns.
        """
        self.inner = inner
        self.commits = commits
        self._chance = chance
        self._delay = delay
        self._observe = observe
        self._death = death
        self._on_death = on_death
        self._dead = False

    def die(self) -> None:
        """The process is gone: whatever of it still unwinds writes and reads nothing."""
        self._dead = True

    async def commit(self, changes: Sequence[Change]) -> None:
        self._check()
        self.commits += 1
        await self._die_if(DeathAt(self.commits, "before"))
        await self.inner.commit(changes)
        self._observe(changes)
        await self._die_if(DeathAt(self.commits, "after"))
        await self._answer()

    async def _die_if(self, here: DeathAt) -> None:
        if here == self._death:
            self._on_death()
            await asyncio.Event().wait()

    async def _answer(self) -> None:
        await asyncio.sleep(self._chance.uniform(*self._delay))
        self._check()

    def _check(self) -> None:
        if self._dead:
            raise StoreUnavailableError("this process is dead")

    async def get(self, table: Table, key: bytes) -> bytes | None:
        self._check()
        value = await self.inner.get(table, key)
        await asyncio.sleep(0)
        return value

    async def scan(self, table: Table, prefix: bytes = b"") -> list[tuple[bytes, bytes]]:
        self._check()
        found = await self.inner.scan(table, prefix)
        await asyncio.sleep(0)
        return found

    async def head(self) -> ChainHead:
        self._check()
        return await self.inner.head()

    async def entries(self, query: LedgerQuery) -> list[LedgerEntry]:
        self._check()
        found = await self.inner.entries(query)
        await asyncio.sleep(0)
        return found

    def counter(self) -> int:
        return self.inner.counter()

    async def close(self) -> None:
        self.die()
        await self.inner.close()
