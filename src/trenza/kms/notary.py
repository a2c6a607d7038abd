"""Signing the ledger's head now and then: how an auditor tells whether anything behind it changed (decision 4)."""

from __future__ import annotations

import msgspec

from trenza.base.units import Seconds
from trenza.core.chain import Checkpoint, sign_checkpoint
from trenza.kms.context import Context
from trenza.kms.journal import Journal
from trenza.kms.ports import Put, Table

_PREFIX = b"checkpoint:"


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
        key = _PREFIX + head.sequence.to_bytes(8, "big")
        await ctx.store.commit([Put(Table.META, key, msgspec.msgpack.encode(checkpoint))])
        self._sequence, self._at = head.sequence, ctx.clock.elapsed()
        return checkpoint

    async def checkpoints(self) -> list[Checkpoint]:
        """Return every checkpoint that this node has signed, oldest first."""
        kept = await self._ctx.store.scan(Table.META, _PREFIX)
        return [msgspec.msgpack.decode(value, type=Checkpoint) for _, value in kept]
