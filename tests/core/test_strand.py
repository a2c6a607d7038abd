from __future__ import annotations

import itertools

import pytest

from trenza.base.errors import MissingOriginError
from trenza.base.secret import Secret
from trenza.core.strand import STRAND_BYTES, TRANSCRIPT_BYTES, Bundle, Origin, Supply, Transcript, worst_of


def secret(octet: int) -> Secret:
    return Secret(bytearray([octet]) * STRAND_BYTES)


@pytest.mark.parametrize(("one", "other"), list(itertools.product(Supply, repeat=2)))
def test_synthetic_is_worse_than_warm_is_worse_than_live(one, other):
    worse = max(one, other, key=[Supply.LIVE, Supply.WARM, Supply.SYNTHETIC].index)
    assert worst_of([one, other]) is worse


def test_no_strands_have_no_supply():
    with pytest.raises(ValueError):
        worst_of([])


@pytest.mark.parametrize("lengths", [(TRANSCRIPT_BYTES - 1, TRANSCRIPT_BYTES), (TRANSCRIPT_BYTES, 0)])
def test_a_transcript_of_another_length_is_refused(lengths):
    with pytest.raises(ValueError, match="48 bytes"):
        Transcript(bytes(lengths[0]), bytes(lengths[1]))


def test_a_bundle_gives_the_strand_of_each_origin_and_no_other():
    qkd, pqc = secret(1), secret(2)
    bundle = Bundle({Origin.QKD: qkd, Origin.PQC: pqc})
    assert bundle.origins == {Origin.QKD, Origin.PQC}
    assert bundle.strand(Origin.QKD) is qkd
    assert bundle.strand(Origin.PQC) is pqc
    with pytest.raises(MissingOriginError, match="classical"):
        bundle.strand(Origin.CLASSICAL)


def test_a_bundle_does_not_follow_the_mapping_it_was_made_from():
    given = {Origin.QKD: secret(1)}
    bundle = Bundle(given)
    given[Origin.PQC] = secret(2)
    assert bundle.origins == {Origin.QKD}


def test_wiping_a_bundle_wipes_every_strand_and_may_be_done_twice():
    qkd, pqc = secret(1), secret(2)
    bundle = Bundle({Origin.QKD: qkd, Origin.PQC: pqc})
    bundle.wipe()
    bundle.wipe()
    assert bytes(qkd.view()) == bytes(pqc.view()) == bytes(STRAND_BYTES)


def test_a_bundle_prints_its_origins_only():
    assert repr(Bundle({Origin.QKD: secret(0x41), Origin.PQC: secret(0x42)})) == "<Bundle pqc, qkd>"
