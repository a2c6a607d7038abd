"""Pads: a link's key in blocks of units, each unit used once, under which one end sends and the other receives.

Keeps the books only: which units of which block are used. The bits are elsewhere (kms/pads), and so is the disk;
pure and synchronous, so that no other story can come between asking for units and having them.

Both ends hold identical copies of a block. A block belongs to one direction (only its `sender` allocates; the other
end claims what the sender names) and to one purpose: traffic, or the reserve that authenticates traffic and that
traffic never draws on. Marks are only ever set, never cleared: what is doubtful stays used.
Source: the one-time pad's only rule; the reserve is our decision 11 (ITU-T Y.3803 leaves it open).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from trenza.base.errors import NotEnoughKeyError, RemoteProtocolError
from trenza.base.names import LinkId, NodeId
from trenza.base.units import Nanoseconds
from trenza.core.strand import STRAND_BYTES, Supply

UNIT_BYTES = STRAND_BYTES
"""One unit carries one strand, or is one one-time MAC key."""

BLOCK_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class PadRange:
    """Units [first, first + count) of one block."""

    block: bytes
    first: int
    count: int


@dataclass(slots=True)
class PadBlock:
    """One block of link key and which of its units are used."""

    id: bytes
    link: LinkId
    sender: NodeId
    reserve: bool
    units: int
    supply: Supply
    created: Nanoseconds
    ready: bool  # False: offered to the other end, which may hold it or not; nothing is allocated from it yet
    epsilon: float | None = None  # of the device's key; reserved: no source states one yet (decision 14)
    used: int = 0  # bit n is set when unit n is used

    def __post_init__(self) -> None:
        if len(self.id) != BLOCK_ID_BYTES or self.units < 1 or self.used >> self.units:
            raise ValueError("a block has an ID of 16 bytes, at least one unit, and marks on its own units only")

    @property
    def free(self) -> int:
        """Units not used yet."""
        return self.units - self.used.bit_count()

    @property
    def used_up(self) -> bool:
        return self.free == 0

    def bitmap(self) -> bytes:
        """Return which units are used: unit n is bit n % 8 of byte n // 8."""
        return self.used.to_bytes(_bitmap_bytes(self.units), "little")

    def restore(self, bitmap: bytes) -> None:
        """Take over the marks of an encoded bitmap, keeping those that are here.

        Raises:
            ValueError: it is not the bitmap of a block of this size.
        """
        marks = int.from_bytes(bitmap, "little")
        if len(bitmap) != _bitmap_bytes(self.units) or marks >> self.units:
            raise ValueError("the bitmap is of another block")
        self.used |= marks

    def take(self, wanted: int) -> list[PadRange]:
        """Mark the first `wanted` free units as used (fewer, if it has fewer) and return them."""
        taken: list[PadRange] = []
        while wanted > 0 and not self.used_up:
            first = (~self.used & (self.used + 1)).bit_length() - 1
            beyond = self.used >> first
            gap = (beyond & -beyond).bit_length() - 1 if beyond else self.units - first
            found = PadRange(self.id, first, min(gap, wanted))
            self.used |= mask_of(found)
            wanted -= found.count
            taken.append(found)
        return taken


class PadStream:
    """All blocks of one link under which one end sends, oldest first."""

    def __init__(self, link: LinkId, sender: NodeId) -> None:
        self.link = link
        self.sender = sender
        self._blocks: dict[bytes, PadBlock] = {}

    @property
    def blocks(self) -> Mapping[bytes, PadBlock]:
        """The blocks by ID, in the order in which they were added."""
        return MappingProxyType(self._blocks)

    def add(self, block: PadBlock) -> None:
        """Take a block into the stream.

        Raises:
            ValueError: it belongs to another link or direction, or its ID is taken.
        """
        if (block.link, block.sender) != (self.link, self.sender) or block.id in self._blocks:
            raise ValueError("the block is not of this stream, or it is there already")
        self._blocks[block.id] = block

    def remove(self, block_id: bytes) -> None:
        """Forget a block; its units are never handed out again. Harmless when it is not there."""
        self._blocks.pop(block_id, None)

    def available(self, *, reserve: bool = False) -> int:
        """Return how many units can be allocated now."""
        return sum(block.free for block in self._blocks.values() if block.ready and block.reserve is reserve)

    def held(self, *, reserve: bool = False) -> int:
        """Return how many free units there are with those of blocks that are still on offer."""
        return sum(block.free for block in self._blocks.values() if block.reserve is reserve)

    def allocate(self, units: int, *, reserve: bool = False) -> tuple[PadRange, ...]:
        """Take units to send under, from the oldest ready blocks of that purpose; they are used from now on.

        Raises:
            NotEnoughKeyError: fewer are free; nothing has changed.
        """
        assert units > 0
        if self.available(reserve=reserve) < units:
            purpose = "reserve" if reserve else "traffic"
            raise NotEnoughKeyError(f"link {self.link}: {self.sender} has fewer than {units} units of {purpose} key")
        taken: list[PadRange] = []
        for block in self._blocks.values():
            if units and block.ready and block.reserve is reserve:
                found = block.take(units)
                units -= total_units(found)
                taken += found
        return tuple(taken)

    def claim(self, traffic: Sequence[PadRange] = (), reserve: Sequence[PadRange] = ()) -> None:
        """Mark the units that the sender names as used; a claimed block is ready, as the sender has it.

        Raises:
            RemoteProtocolError: a unit is unknown, of the other purpose, used before, or named twice; nothing has
                changed.
        """
        marks: dict[bytes, int] = {}
        for named, for_reserve in (*((each, False) for each in traffic), *((each, True) for each in reserve)):
            block = self._blocks.get(named.block)
            if block is None or block.reserve is not for_reserve:
                raise RemoteProtocolError(f"link {self.link}: {self.sender} names a block that is not held for this")
            if named.first < 0 or named.count < 1 or named.first + named.count > block.units:
                raise RemoteProtocolError(f"link {self.link}: {self.sender} names units outside the block")
            mask = mask_of(named)
            if mask & (block.used | marks.get(block.id, 0)):
                raise RemoteProtocolError(f"link {self.link}: {self.sender} names units that are used already")
            marks[block.id] = marks.get(block.id, 0) | mask
        for block_id, mask in marks.items():
            self._blocks[block_id].used |= mask
            self._blocks[block_id].ready = True


def mask_of(named: PadRange) -> int:
    """Return the bits that stand for these units in a block's bitmap."""
    return ((1 << named.count) - 1) << named.first


def total_units(ranges: Iterable[PadRange]) -> int:
    """Return how many units the ranges name together."""
    return sum(named.count for named in ranges)


def _bitmap_bytes(units: int) -> int:
    return (units + 7) // 8
