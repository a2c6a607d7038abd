"""Records that another instance of this node owes when a window goes: it died before it wrote them.

Each instance writes behind what it issued and delivered. The rows of windows and of deliveries say what was given up,
whoever did it; so before the leading instance lets go of a window that others used too, it looks whether the ledger
has a record of all of it, and names as doubtful what is missing (docs/adr/0022-instances.md). Of one that lives and
is merely slow, slots may be named that it records later, or never issued.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from trenza.base.names import NodeId
from trenza.core.provenance import FORMAT_VERSION, DoubtfulRecord, ranges_of
from trenza.core.window import HeldWindow, IssuerWindow
from trenza.kms.context import Context
from trenza.kms.journal import Journal, doubtful_entry
from trenza.kms.ports import Append


class Going(NamedTuple):
    """Slots of a window that goes, some of which another instance gave up."""

    deed: str  # "issued" | "delivered"
    window: int
    segment: bytes
    slots: frozenset[int]


def issued_of(windows: Iterable[IssuerWindow]) -> list[Going]:
    """Return what was given up of windows that others issued from too; ask before they are removed."""
    return [Going("issued", one.number, one.facts.record.segment, one.given_up) for one in windows if one.shared]


def delivered_of(windows: Iterable[HeldWindow]) -> list[Going]:
    """Return what was delivered of windows that others delivered from too."""
    return [
        Going("delivered", one.number, one.facts.record.segment, frozenset(one.delivered))
        for one in windows
        if one.shared
    ]


async def owed(ctx: Context, journal: Journal, peer: NodeId, going: Iterable[Going]) -> list[Append]:
    """Return entries for what is missing in the ledger, after this instance's own notes were written."""
    entries: list[Append] = []
    for deed, window, segment, slots in going:
        missing = slots - await journal.recorded(deed, peer, window, segment)
        ctx.counters["slots_doubtful"] += len(missing)
        entries += [doubtful_entry(ctx.clock.now(), one) for one in doubts(deed, segment, peer, window, missing)]
    return entries


def doubts(deed: str, segment: bytes, peer: NodeId, window: int, missing: Iterable[int]) -> list[DoubtfulRecord]:
    """Return the record that names these slots, if there are any."""
    ranges = ranges_of(missing)
    return [DoubtfulRecord(FORMAT_VERSION, deed, segment, peer, window, ranges)] if ranges else []
