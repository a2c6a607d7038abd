"""A segment: the strands of many slots, kept and sealed as one block (decision 6).

Layout of the secret bytes, `n` slots: MA digest 48 | MB digest 48 | classical n x 32 | PQC n x 32 | QKD n x 32,
the last part only in a segment with QKD. Slots are computed, never stored one by one: cost does not grow with stock.
Pure.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from trenza.base.secret import Secret
from trenza.core.provenance import SegmentRecord, segment_digest
from trenza.core.strand import STRAND_BYTES, TRANSCRIPT_BYTES, Bundle, Origin, Transcript

FULL_ORIGINS = (Origin.CLASSICAL, Origin.PQC, Origin.QKD)
PLAIN_ORIGINS = (Origin.CLASSICAL, Origin.PQC)

_STRANDS_AT = 2 * TRANSCRIPT_BYTES
_DEAD_STRAND = bytes(STRAND_BYTES)


def assemble(transcript: Transcript, classical: Secret, pqc: Secret, qkd: Secret | None) -> Secret:
    """Lay the strands of a segment end to end; the parts stay their owners' to wipe."""
    material = bytearray(transcript.initiator + transcript.responder)
    for part in (classical, pqc, qkd):
        if part is not None:
            material += part.view()
    return Secret(material)


def comparison_tag(material: Secret, record: bytes, *, verify_key: Secret, role: bytes) -> bytes:
    """Return the tag by which both ends compare strands and record; `role` keeps a tag from being echoed back."""
    mac = hmac.new(bytes(verify_key.view()), b"trenza segment v1 " + role + len(record).to_bytes(4, "big"), "sha384")
    mac.update(record)
    mac.update(material.view())
    return mac.digest()


@dataclass(frozen=True, slots=True)
class SegmentFacts:
    """What choosing a slot needs to know of its segment."""

    record: SegmentRecord
    encoded: bytes = field(repr=False)
    digest: bytes = field(repr=False)
    known_to: tuple[str, ...]

    @staticmethod
    def of(encoded: bytes) -> SegmentFacts:
        record = SegmentRecord.decode(encoded)
        return SegmentFacts(record, encoded, segment_digest(encoded), record.known_to)

    @property
    def full(self) -> bool:
        """Tell whether QKD strands are in it."""
        return Origin.QKD in self.record.origins


class OpenSegment:
    """A segment's strands, unsealed while keys are made of it. Whoever opened it wipes it."""

    __slots__ = ("_dead", "_material", "_slots", "_starts", "_strands", "facts", "transcript")

    def __init__(self, facts: SegmentFacts, material: Secret) -> None:
        expected = _STRANDS_AT + facts.record.slots * STRAND_BYTES * len(facts.record.origins)
        if len(material) != expected:
            raise ValueError("the sealed material does not fit the segment's record")
        self.facts = facts
        self._material = material
        view = self._strands = material.view()
        self._slots = facts.record.slots
        part = self._slots * STRAND_BYTES
        self._starts = {origin: _STRANDS_AT + index * part for index, origin in enumerate(facts.record.origins)}
        self._dead = _dead_strands(material)
        self.transcript = Transcript(bytes(view[:TRANSCRIPT_BYTES]), bytes(view[TRANSCRIPT_BYTES:_STRANDS_AT]))

    def __repr__(self) -> str:
        return f"<OpenSegment {self.facts.record.segment.hex()}>"

    def bundle(self, slot: int, origins: Iterable[Origin]) -> Bundle:
        """Return the strands of `slot` that a recipe asks for; the caller wipes the bundle.

        Raises:
            ValueError: there is no such slot, or none any more, or the segment lacks an origin.
        """
        if not 0 <= slot < self._slots:
            raise ValueError("no such slot")
        try:
            starts = {origin: self._starts[origin] for origin in origins}
        except KeyError:
            raise ValueError("an origin of the recipe is not in the segment") from None
        return Bundle(
            {
                origin: self._material.cut(start + slot * STRAND_BYTES, STRAND_BYTES)
                for origin, start in starts.items()
            }
        )

    def each(self, slot: int, origins: Sequence[Origin]) -> Iterator[memoryview]:
        """Yield the strands of `slot` in the order of `origins`, without a copy; not to be kept.

        Raises:
            ValueError: there is no such slot, or none any more, or a strand of it is dead.
            KeyError: the segment lacks an origin.
        """
        if not 0 <= slot < self._slots:
            raise ValueError("no such slot")
        strands, starts, at = self._strands, self._starts, slot * STRAND_BYTES
        for origin in origins:
            start = starts[origin] + at
            if start in self._dead:  # hardly ever is there any
                raise ValueError("a strand is all zeros")
            yield strands[start : start + STRAND_BYTES]

    def wipe(self) -> None:
        """Overwrite the strands and let go of their memory: what was prepared for this segment may be kept on."""
        self._material.wipe()
        self._strands.release()
        self._material, self._slots = Secret(bytearray()), 0


def _dead_strands(material: Secret) -> frozenset[int]:
    """Return where strands of zeros begin: they come from a dead source, and everybody knows them."""
    found, at = set(), material.find(_DEAD_STRAND, _STRANDS_AT)
    while at >= 0:
        strand, inside = divmod(at - _STRANDS_AT, STRAND_BYTES)
        if inside == 0:
            found.add(at)
        at = material.find(_DEAD_STRAND, _STRANDS_AT + (strand + 1) * STRAND_BYTES)
    return frozenset(found)
