"""The link key a node holds: its blocks at rest, their bits while they are used, and what the far ends were told.

`core.pads` keeps the books; here they meet the store and the sealer. A block is two rows: LINK_BLOCK, its description
and sealed bits, written once; LINK_USED, which of its units are used, written before anything made of them leaves.
Bits are unsealed only while their block is drawn on. A block that is used up is erased; its sender tells the far end,
which may have missed units that were burnt and would otherwise hold the block for ever.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from trenza.base.errors import AuthenticationError, NotEnoughKeyError, StoreUnavailableError
from trenza.base.names import LinkId, NodeId
from trenza.base.secret import Secret
from trenza.base.units import Nanoseconds, Seconds
from trenza.core.pads import UNIT_BYTES, PadBlock, PadRange, PadStream, total_units
from trenza.core.strand import Supply
from trenza.kms.context import Context
from trenza.kms.ports import Change, Delete, Insert, Put, Sealed, Table

_OPEN_BLOCKS = 32
"""Blocks unsealed at once, each 32 KiB at most by default: enough for every direction of eight links."""

_TOLD_MAX = 4_096
"""Blocks a peer has still to be told of; beyond that the oldest wait for the next session, which compares all."""

_AT_ONCE = Seconds(0.0)


class BlockRow(msgspec.Struct, frozen=True, array_like=True):
    """LINK_BLOCK/id: what a block is, and its sealed bits."""

    link: str
    sender: str
    reserve: bool
    units: int
    supply: str
    created: int
    epsilon: float | None
    epoch: int  # of this node, when it was sealed
    key_ids: tuple[bytes, ...]  # the device's keys it is made of, to offer it (again); empty at the follower
    key_bytes: int
    handle: int
    box: bytes


class UsedRow(msgspec.Struct, frozen=True, array_like=True):
    """LINK_USED/id: whether both ends are known to hold it, and which units are used."""

    ready: bool
    used: bytes


@dataclass(frozen=True, slots=True)
class RawBlock:
    """A block as it comes from a device: its place in the books, its bits, and the device's names for them."""

    block: PadBlock
    bits: Secret
    key_ids: tuple[bytes, ...]
    key_bytes: int


@dataclass(frozen=True, slots=True)
class Said:
    """What the far end of a link says it can send under."""

    traffic: int
    reserve: int


@dataclass(slots=True)
class _Held:
    block: PadBlock
    peer: NodeId
    handle: int
    key_ids: tuple[bytes, ...]
    key_bytes: int
    users: int = 0  # stories that still need the bits or are writing the row; the block outlives them


class Pads:
    """All link key of one node, shared by ingest (which brings it) and relay (which uses it)."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._streams: dict[tuple[LinkId, NodeId], PadStream] = {}
        self._held: dict[bytes, _Held] = {}
        self._open: OrderedDict[bytes, Secret] = OrderedDict()
        self._gone: dict[NodeId, dict[bytes, Seconds]] = {}  # block → when it may be told
        self.said: dict[tuple[LinkId, NodeId], Said] = {}

    # --- what there is

    def stream(self, link: LinkId, sender: NodeId) -> PadStream:
        """Return the blocks of `link` under which `sender` sends; empty at first."""
        return self._streams.setdefault((link, sender), PadStream(link, sender))

    def holds(self, block_id: bytes) -> bool:
        return block_id in self._held

    def made_of(self, block_id: bytes) -> tuple[tuple[bytes, ...], int]:
        """Return the device keys that a held block is made of: their IDs and their length in bytes."""
        held = self._held[block_id]
        return held.key_ids, held.key_bytes

    def offered(self, link: LinkId) -> PadBlock | None:
        """Return the oldest block of `link` that the far end has not answered for, or None."""
        return next((h.block for h in self._held.values() if h.block.link == link and not h.block.ready), None)

    def blocks_with(self, peer: NodeId) -> tuple[bytes, ...]:
        """Return the IDs of all blocks of links shared with `peer`, in order."""
        return tuple(sorted(block_id for block_id, held in self._held.items() if held.peer == peer))

    # --- bringing and losing blocks

    async def load(self) -> None:
        """Read what the last process left; the context's presence is set. Whatever cannot be trusted is dropped.

        That is: blocks of an earlier epoch, of links that are no more, used up, or without the record of their use.
        """
        used = dict(await self._ctx.store.scan(Table.LINK_USED))
        rows = [
            (key, msgspec.msgpack.decode(value, type=BlockRow))
            for key, value in await self._ctx.store.scan(Table.LINK_BLOCK)
        ]
        described = {key for key, _ in rows}
        useless: list[Change] = [Delete(Table.LINK_USED, key) for key in used if key not in described]
        handles: list[int] = []
        for key, row in sorted(rows, key=lambda each: (each[1].created, each[0])):
            end = self._ctx.links.get(LinkId(row.link))
            block = _block_of(key, row, used.get(key))
            if block is None or end is None or row.epoch != self._ctx.presence.epoch or block.used_up:
                useless += _deletions(key)
                handles.append(row.handle)
                continue
            self.stream(block.link, block.sender).add(block)
            self._held[key] = _Held(block, end.peer, row.handle, row.key_ids, row.key_bytes)
        if useless:
            await self._ctx.store.commit(useless)
            await self._ctx.sealer.erase(handles)

    async def add(self, raw: RawBlock, peer: NodeId) -> None:
        """Seal a block and make it durable; from then on it is held. The bits stay the caller's.

        Raises:
            StoreUnavailableError: it is not held, and the next start drops what may have been written.
        """
        block, epoch = raw.block, self._ctx.presence.epoch
        sealed = await self._ctx.sealer.seal(raw.bits, associated=_associated(block, epoch))
        row = BlockRow(
            link=block.link,
            sender=block.sender,
            reserve=block.reserve,
            units=block.units,
            supply=block.supply.value,
            created=block.created,
            epsilon=block.epsilon,
            epoch=epoch,
            key_ids=raw.key_ids,
            key_bytes=raw.key_bytes,
            handle=sealed.handle,
            box=sealed.box,
        )
        try:
            await self._ctx.store.commit(
                [Insert(Table.LINK_BLOCK, block.id, msgspec.msgpack.encode(row)), _used_row(block)]
            )
        except BaseException:
            await self._ctx.sealer.erase([sealed.handle])
            raise
        self.stream(block.link, block.sender).add(block)
        self._held[block.id] = _Held(block, peer, sealed.handle, raw.key_ids, raw.key_bytes)

    async def set_ready(self, block: PadBlock) -> None:
        """Note, durably and then here, that the far end holds the block too."""
        ready = UsedRow(ready=True, used=block.bitmap())
        await self._ctx.store.commit([Put(Table.LINK_USED, block.id, msgspec.msgpack.encode(ready))])
        block.ready = True

    async def drop(self, block_ids: Iterable[bytes], *, tell: bool = False) -> None:
        """Forget blocks and erase their keys; with `tell`, their peers hear of it. Unknown ones are passed over."""
        dropped = [(block_id, self._held.pop(block_id)) for block_id in block_ids if block_id in self._held]
        for block_id, held in dropped:
            self.stream(held.block.link, held.block.sender).remove(block_id)
            if secret := self._open.pop(block_id, None):
                secret.wipe()
            if tell:
                self.tell_gone(held.peer, block_id)
        if not dropped:
            return
        try:
            await self._ctx.store.commit([change for block_id, _ in dropped for change in _deletions(block_id)])
        finally:  # without its key the row is only waste, and the next start sweeps it
            await self._ctx.sealer.erase([held.handle for _, held in dropped])

    async def sweep(self) -> None:
        """Erase the blocks that are used up and that nobody is reading."""
        spent = [held for held in self._held.values() if held.block.used_up and not held.users]
        grace = Seconds(2 * self._ctx.settings.relay_timeout)  # what was sent under them may still be on its way
        for held in spent:
            if held.block.sender == self._ctx.name:
                self.tell_gone(held.peer, held.block.id, after=grace)
        try:
            await self.drop([held.block.id for held in spent])
        except StoreUnavailableError:
            self._ctx.counters["link_sweeps_failed"] += 1

    # --- using units

    @contextmanager
    def using(self, ranges: Iterable[PadRange]) -> Iterator[None]:
        """Keep the blocks of units that were allocated or claimed until their bits are read and their use durable."""
        users = [self._held[block_id] for block_id in sorted({named.block for named in ranges})]
        for held in users:
            held.users += 1
        try:
            yield
        finally:
            for held in users:
                held.users -= 1

    async def bits(self, ranges: Sequence[PadRange]) -> Secret:
        """Return the units' bits, end to end; the caller wipes them.

        Raises:
            NotEnoughKeyError: a block is no longer held.
        """
        joined = bytearray(total_units(ranges) * UNIT_BYTES)  # at once: growing it would leave copies behind
        end = 0
        try:
            for named in ranges:
                start, end = end, end + named.count * UNIT_BYTES
                block = await self._opened(named.block)  # nothing comes between this and the copy
                joined[start:end] = block.view()[named.first * UNIT_BYTES : (named.first + named.count) * UNIT_BYTES]
        except BaseException:
            Secret(joined).wipe()
            raise
        return Secret(joined)

    def used_rows(self, ranges: Iterable[PadRange]) -> list[Change]:
        """Return the rows that make the use of these units durable, as it stands now.

        Commit them before anything else is awaited: rows of one block are snapshots, and the last one written counts.
        """
        blocks = sorted({named.block for named in ranges})
        return [_used_row(self._held[block_id].block) for block_id in blocks if block_id in self._held]

    # --- what the far ends must hear

    def tell_gone(self, peer: NodeId, block_id: bytes, *, after: Seconds = _AT_ONCE) -> None:
        """Note that `peer` is to be told that this node holds the block no more."""
        waiting = self._gone.setdefault(peer, {})
        waiting.setdefault(block_id, Seconds(self._ctx.clock.elapsed() + after))
        if len(waiting) > _TOLD_MAX:
            del waiting[next(iter(waiting))]

    def gone(self, peer: NodeId) -> tuple[bytes, ...]:
        """Return the blocks that `peer` is to be told of now."""
        now = self._ctx.clock.elapsed()
        return tuple(block_id for block_id, after in self._gone.get(peer, {}).items() if after <= now)

    def told(self, peer: NodeId, block_ids: Collection[bytes]) -> None:
        """Note that `peer` has heard."""
        for block_id in block_ids:
            self._gone.get(peer, {}).pop(block_id, None)

    def stocked(self, block: PadBlock) -> None:
        """Count a block that both ends now hold into what its sender last said, until it says more."""
        if said := self.said.get((block.link, block.sender)):
            self.said[block.link, block.sender] = Said(
                said.traffic + (0 if block.reserve else block.units), said.reserve + block.units * block.reserve
            )

    async def hear_gone(self, peer: NodeId, block_ids: Iterable[bytes]) -> None:
        """Drop blocks that `peer` holds no more; only those shared with it."""
        await self.drop([block_id for block_id in block_ids if self._shared(peer, block_id)])

    def _shared(self, peer: NodeId, block_id: bytes) -> bool:
        held = self._held.get(block_id)
        return held is not None and held.peer == peer

    async def _opened(self, block_id: bytes) -> Secret:
        if block_id in self._open:
            self._open.move_to_end(block_id)
            return self._open[block_id]
        secret = await self._unsealed(block_id)
        if block_id not in self._held or block_id in self._open:  # dropped, or opened by another, in the meantime
            secret.wipe()
            return await self._opened(block_id)
        self._open[block_id] = secret
        while len(self._open) > _OPEN_BLOCKS:
            self._open.popitem(last=False)[1].wipe()
        return secret

    async def _unsealed(self, block_id: bytes) -> Secret:
        held, value = self._held.get(block_id), await self._ctx.store.get(Table.LINK_BLOCK, block_id)
        if held is None or value is None:
            raise NotEnoughKeyError("a block of link key was dropped while it was drawn on")
        row = msgspec.msgpack.decode(value, type=BlockRow)
        try:
            return await self._ctx.sealer.unseal(
                Sealed(row.handle, row.box), associated=_associated(held.block, row.epoch)
            )
        except AuthenticationError:
            self._ctx.counters["link_blocks_unreadable"] += 1
            await self.drop([block_id], tell=True)
            raise NotEnoughKeyError(f"link {held.block.link}: a block could not be unsealed and is dropped") from None


def _block_of(block_id: bytes, row: BlockRow, used: bytes | None) -> PadBlock | None:
    """Return the block in the books' words, or None where the record of its use is missing or of another block."""
    if used is None:
        return None
    state = msgspec.msgpack.decode(used, type=UsedRow)
    block = PadBlock(
        id=block_id,
        link=LinkId(row.link),
        sender=NodeId(row.sender),
        reserve=row.reserve,
        units=row.units,
        supply=Supply(row.supply),
        created=Nanoseconds(row.created),
        ready=state.ready,
        epsilon=row.epsilon,
    )
    try:
        block.restore(state.used)
    except ValueError:
        return None
    return block


def _used_row(block: PadBlock) -> Put:
    return Put(Table.LINK_USED, block.id, msgspec.msgpack.encode(UsedRow(block.ready, block.bitmap())))


def _deletions(block_id: bytes) -> list[Change]:
    return [Delete(Table.LINK_BLOCK, block_id), Delete(Table.LINK_USED, block_id)]


def _associated(block: PadBlock, epoch: int) -> bytes:
    """Return what the sealed bits are bound to: no row can be passed off as another's."""
    return msgspec.msgpack.encode(
        ("trenza link block v1", block.link, block.sender, block.reserve, block.id, block.units, epoch)
    )
