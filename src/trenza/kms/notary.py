"""Signing the ledger's head now and then: how an auditor tells whether anything behind it changed (decision 4)."""

from __future__ import annotations

import itertools

import msgspec

from trenza.base.units import Seconds, nanoseconds
from trenza.core.chain import Checkpoint, sign_checkpoint
from trenza.kms.context import Context
from trenza.kms.journal import Journal
from trenza.kms.ports import Delete, Put, Table

_PREFIX = b"checkpoint:"
_HOUR, _DAY, _MONTH = (nanoseconds(Seconds(seconds)) for seconds in (3_600.0, 86_400.0, 30 * 86_400.0))
_BATCH = 100  # checkpoints that one commit removes


class Notary:
    """This node's checkpoints."""

    def __init__(self, ctx: Context, *, journal: Journal) -> None:
        self._ctx = ctx
        self._journal = journal
        self._sequence = 0
        self._at = Seconds(0.0)

    async def sign_if_due(self) -> None:
        """Sign a checkpoint when enough was appended, or enough time has passed since the last."""
        head = await self._ctx.store.head()
        settings = self._ctx.settings
        fresh = head.sequence - self._sequence
        waited = self._ctx.clock.elapsed() - self._at
        if fresh >= settings.checkpoint_entries or (fresh and waited >= settings.checkpoint_seconds):
            await self.sign()

    async def sign(self) -> Checkpoint | None:
        """Sign and keep a checkpoint of the ledger as it stands; None where it is empty or signed already."""
        ctx = self._ctx
        await self._journal.flush()
        head = await ctx.store.head()
        if head.sequence in {0, self._sequence}:
            return None
        checkpoint = sign_checkpoint(ctx.signer.sign, node=ctx.name, head=head, time=ctx.clock.now())
        await ctx.store.commit([Put(Table.META, _key(head.sequence), msgspec.msgpack.encode(checkpoint))])
        self._sequence, self._at = head.sequence, ctx.clock.elapsed()
        return checkpoint

    async def thin(self, *, keep: int) -> None:
        """Forget checkpoints that later ones make needless: they would outgrow the ledger.

        Of those older than a day the last of each hour stays, of those older than a month the last of each day, and
        of those before the ledger's start none.

        Args:
            keep: the sequence of one that stays in any case.
        """
        now, start = self._ctx.clock.now(), (await self._ctx.store.extent()).start.sequence
        signed = await self.checkpoints()
        needless: list[int] = []
        for one, later in itertools.pairwise(signed):
            span = _span_at(now - one.time)
            if one.sequence < start or (span and one.time // span == later.time // span):
                needless.append(one.sequence)
        changes = [Delete(Table.META, _key(sequence)) for sequence in needless if sequence != keep]
        for first in range(0, len(changes), _BATCH):
            await self._ctx.store.commit(changes[first : first + _BATCH])

    async def checkpoints(self) -> list[Checkpoint]:
        """Return every checkpoint that this node has signed, oldest first."""
        kept = await self._ctx.store.scan(Table.META, _PREFIX)
        return [msgspec.msgpack.decode(value, type=Checkpoint) for _, value in kept]


def _key(sequence: int) -> bytes:
    return _PREFIX + sequence.to_bytes(8, "big")


def _span_at(age: int) -> int:
    """Return the time in which one checkpoint of this age is enough; 0: every one is kept."""
    if age <= _DAY:
        return 0
    return _HOUR if age <= _MONTH else _DAY
