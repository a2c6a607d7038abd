"""The strands of verified segments: sealed in the store, and open in memory while keys are made of them.

A segment's strands are sealed under a key of its own and stay so until a window of the segment is in use; to destroy
them is to erase that key (design decision 10). What a segment is for is the bookkeeping of kms.pools.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from trenza.base.errors import UnavailableError
from trenza.base.names import NodeId
from trenza.base.secret import Secret
from trenza.core.segment import OpenSegment
from trenza.kms import rows
from trenza.kms.context import Context
from trenza.kms.pairs import Pair
from trenza.kms.ports import Sealed, Table
from trenza.kms.stock import Segment


class Strands:
    """Those of all pairs of this node."""

    def __init__(self, ctx: Context, pair: Callable[[NodeId], Pair]) -> None:
        self._ctx = ctx
        self._pair = pair

    async def seal(self, segment: Segment, material: Secret) -> Sealed:
        """Seal the strands of a segment that is to be stored. The material stays the caller's."""
        return await self._ctx.sealer.seal(material, associated=self._associated(segment))

    async def opened(self, peer: NodeId, segment_id: bytes) -> OpenSegment:
        """Return a segment's strands, unsealed; good until the next `await`, unless within `using`.

        Raises:
            UnavailableError: the segment is gone.
        """
        segment = self._pair(peer).segments.get(segment_id)
        if segment is None:
            raise UnavailableError("the strands of this key are gone")
        if segment.open is None:
            value = await self._ctx.store.get(Table.SEGMENT_BYTES, segment_id)
            if value is None:
                raise UnavailableError("the strands of this key are gone")
            sealed = rows.decode(value, rows.SealedRow).sealed
            material = await self._ctx.sealer.unseal(sealed, associated=self._associated(segment))
            self._keep_open(segment, material)
        assert segment.open is not None
        return segment.open

    def open_segment(self, peer: NodeId, segment_id: bytes) -> OpenSegment:
        """Return the strands of a segment that is open already, as that of every window in the issuer's pool is.

        Raises:
            UnavailableError: it is gone, or not open.
        """
        segment = self._pair(peer).segments.get(segment_id)
        if segment is None or segment.open is None:
            raise UnavailableError("the strands of this key are gone")
        return segment.open

    @staticmethod
    def _keep_open(segment: Segment, material: Secret) -> None:
        if segment.open is None:
            segment.open = OpenSegment(segment.facts, material)
        else:  # another story opened it while this one waited for the store
            material.wipe()

    @contextmanager
    def using(self, peer: NodeId, segment_ids: Iterable[bytes]) -> Iterator[None]:
        """Keep segments from being tidied away while keys are made of them."""
        held = self._pair(peer).segments
        used = [held[segment_id] for segment_id in dict.fromkeys(segment_ids) if segment_id in held]
        for segment in used:
            segment.users += 1
        try:
            yield
        finally:
            for segment in used:
                segment.users -= 1

    def _associated(self, segment: Segment) -> bytes:
        return b"segment" + self._ctx.name.encode() + b"\0" + segment.peer.encode() + b"\0" + segment.id

    async def erase(self, segment: Segment) -> None:
        """Destroy the strands of a segment: those in memory, and the key that seals the others."""
        if segment.open is not None:
            segment.open.wipe()
            segment.open = None
        value = await self._ctx.store.get(Table.SEGMENT_BYTES, segment.id)
        if value is not None:
            await self._ctx.sealer.erase([rows.decode(value, rows.SealedRow).handle])
