from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.records import facts, hop

from trenza.base.errors import MissingOriginError
from trenza.base.secret import Secret
from trenza.core.segment import FULL_ORIGINS, PLAIN_ORIGINS, OpenSegment, assemble, comparison_tag
from trenza.core.strand import STRAND_BYTES, TRANSCRIPT_BYTES, Origin, Transcript

TRANSCRIPT = Transcript(b"i" * 48, b"r" * 48)
KEY = Secret(bytearray(range(48)))


def strand(origin, slot):
    """Return the strand that belongs in that place; no two are alike."""
    return origin.value.encode().ljust(STRAND_BYTES - 2, b".") + slot.to_bytes(2, "big")


def part(origin, slots):
    return Secret.of(b"".join(strand(origin, slot) for slot in range(slots)))


def material(slots, *, full=True):
    parts = [part(origin, slots) for origin in PLAIN_ORIGINS]
    return assemble(TRANSCRIPT, *parts, part(Origin.QKD, slots) if full else None)


def opened(slots=4, *, full=True):
    told = facts(hop("A", "Z"), slots=slots) if full else facts(slots=slots)
    return OpenSegment(told, material(slots, full=full))


@given(st.integers(1, 40), st.data())
def test_a_slot_gets_its_own_strand_of_every_origin(slots, data):
    segment = opened(slots)
    slot = data.draw(st.integers(0, slots - 1))
    origins = data.draw(st.sets(st.sampled_from(FULL_ORIGINS)))
    bundle = segment.bundle(slot, origins)
    assert bundle.origins == origins
    assert {origin: bytes(bundle.strand(origin).view()) for origin in origins} == {
        origin: strand(origin, slot) for origin in origins
    }


def test_the_transcript_comes_back_out():
    assert opened().transcript == TRANSCRIPT


@pytest.mark.parametrize("slot", [-1, 4, 5])
def test_there_is_no_slot_outside_the_segment(slot):
    with pytest.raises(ValueError, match="no such slot"):
        opened(4).bundle(slot, PLAIN_ORIGINS)


def test_a_segment_without_qkd_hands_out_no_qkd_strand():
    segment = opened(full=False)
    with pytest.raises(ValueError, match="not in"):
        segment.bundle(0, FULL_ORIGINS)
    with pytest.raises(MissingOriginError):
        segment.bundle(0, PLAIN_ORIGINS).strand(Origin.QKD)
    assert not segment.facts.full


@pytest.mark.parametrize(("told", "held"), [(4, 3), (4, 5)])
def test_material_that_does_not_fit_its_record_is_not_opened(told, held):
    with pytest.raises(ValueError, match="does not fit"):
        OpenSegment(facts(hop("A", "Z"), slots=told), material(held))


def test_wiping_a_bundle_leaves_the_segment_and_wiping_the_segment_leaves_nothing():
    segment = opened()
    bundle = segment.bundle(1, FULL_ORIGINS)
    bundle.wipe()
    assert bytes(segment.bundle(1, FULL_ORIGINS).strand(Origin.QKD).view()) == strand(Origin.QKD, 1)
    secret = segment._material
    segment.wipe()
    assert not any(secret.view())
    with pytest.raises(ValueError, match="no such slot"):
        segment.bundle(1, FULL_ORIGINS)
    with pytest.raises(ValueError, match="no such slot"):
        list(segment.each(0, FULL_ORIGINS))
    segment.wipe()


def test_whoever_keeps_a_wiped_segment_keeps_little_memory():
    tracemalloc.start()
    try:
        kept = [opened(1_024) for _ in range(4)]
        for segment in kept:
            segment.wipe()
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 1_024 * STRAND_BYTES


def test_an_open_segment_shows_no_strand():
    assert repr(opened()) == f"<OpenSegment {b'segment'.ljust(16, b'.').hex()}>"


@given(st.data())
def test_the_comparison_finds_any_changed_byte_of_strands_and_record(data):
    bits, record = bytes(material(2).view()), b"a record"
    tag = comparison_tag(Secret.of(bits), record, verify_key=KEY, role=b"leader")
    assert tag == comparison_tag(Secret.of(bits), record, verify_key=KEY, role=b"leader")
    place, change = data.draw(st.integers(0, len(bits) - 1)), data.draw(st.integers(1, 255))
    altered = bits[:place] + bytes([bits[place] ^ change]) + bits[place + 1 :]
    others = [
        comparison_tag(Secret.of(altered), record, verify_key=KEY, role=b"leader"),
        comparison_tag(Secret.of(bits), b"A record", verify_key=KEY, role=b"leader"),
        comparison_tag(Secret.of(bits), record, verify_key=Secret(bytearray(48)), role=b"leader"),
        comparison_tag(Secret.of(bits), record, verify_key=KEY, role=b"follower"),  # so no tag can be echoed
    ]
    assert tag not in others


def test_a_slot_with_a_strand_of_zeros_gives_none_and_its_neighbours_do():
    segment, dead = opened(4), 2
    material = bytearray(segment._material.view())
    at = 2 * TRANSCRIPT_BYTES + (4 + dead) * STRAND_BYTES  # of the second origin
    material[at : at + STRAND_BYTES] = bytes(STRAND_BYTES)
    material[at - 7 : at] = bytes(7)  # more zeros before it do not hide it
    segment = OpenSegment(segment.facts, Secret(material))
    with pytest.raises(ValueError, match="all zeros"):
        list(segment.each(dead, FULL_ORIGINS))
    assert len(list(segment.each(dead, (FULL_ORIGINS[0],)))) == 1
    for slot in (1, 3):
        assert [bytes(one) for one in segment.each(slot, FULL_ORIGINS)] == [
            bytes(segment.bundle(slot, FULL_ORIGINS).strand(origin).view()) for origin in FULL_ORIGINS
        ]
