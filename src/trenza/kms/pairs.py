"""What a node shares with one other node, in memory: segments, windows to issue from, windows granted."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from trenza.core.slot_set import SlotSet
from trenza.core.window import HeldWindow, IssuerPool
from trenza.kms import rows
from trenza.kms.held import Holding
from trenza.kms.ports import Put, Table
from trenza.kms.stock import Segment, Stock
from trenza.wire.peer import StockMark


@dataclass(slots=True)
class Pair:
    """What this node shares with one other node."""

    segments: Stock = field(default_factory=Stock)
    issuer: IssuerPool = field(default_factory=IssuerPool)
    held: Holding = field(default_factory=Holding)
    next_window: int = 0
    took_over: bool = True  # what was granted last; False: the disk did not take it
    untold: list[HeldWindow] = field(default_factory=list)  # whose commit failed, or seemed to: no answer named them
    reserving: asyncio.Lock = field(default_factory=asyncio.Lock)
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)  # one asks for windows at a time: grants have an order
    peer_stock: StockMark = field(default_factory=lambda: StockMark(0, 0, 0.0, 0.0))


def segment_row(segment: Segment, *, mine: SlotSet | None = None) -> Put:
    """Return the change that makes durable which slots are in whose gift; `mine`, where they will be others."""
    ranges = (segment.mine if mine is None else mine).ranges
    row = rows.SegmentRow(segment.peer, segment.facts.encoded, 0, ranges, segment.theirs.ranges)
    return Put(Table.SEGMENT, segment.id, rows.encode(row))
