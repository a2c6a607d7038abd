"""Segment records to test with."""

from __future__ import annotations

from trenza.core.provenance import FORMAT_VERSION, Hop, Lineage, SegmentRecord
from trenza.core.segment import FULL_ORIGINS, PLAIN_ORIGINS, SegmentFacts
from trenza.core.strand import Supply


def hop(sender: str, receiver: str, *, supply: Supply = Supply.LIVE, epsilon: float | None = None) -> Hop:
    return Hop(f"{sender}-{receiver}", sender, receiver, supply, True, "computational", epsilon)


def record(
    *hops: Hop, segment: bytes = b"segment".ljust(16, b"."), slots: int = 8, created: int = 1_000
) -> SegmentRecord:
    """Return the record of a segment between A and Z; with QKD strands where it has hops."""
    return SegmentRecord(
        version=FORMAT_VERSION,
        segment=segment,
        leader="A",
        follower="Z",
        issuer="A",
        slots=slots,
        origins=FULL_ORIGINS if hops else PLAIN_ORIGINS,
        lineage=Lineage(bytes(16), "X448+ML-KEM-1024", bytes(96), ("ml-dsa-65",)),
        hops=hops,
        created=created,
        uncertainty=0,
    )


def facts(
    *hops: Hop, segment: bytes = b"segment".ljust(16, b"."), slots: int = 8, created: int = 1_000
) -> SegmentFacts:
    return SegmentFacts.of(record(*hops, segment=segment, slots=slots, created=created).encode())
