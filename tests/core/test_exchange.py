from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trenza.base.errors import AuthenticationError
from trenza.base.names import NodeId
from trenza.base.secret import Secret
from trenza.core.exchange import (
    NO_ROOT,
    ExchangeSecrets,
    answer_message,
    check_root_tag,
    next_root,
    offer_message,
    root_tag,
    session_keys,
    strand_blocks,
    transcript_of,
)
from trenza.core.strand import Transcript

A, B = NodeId("A"), NodeId("B")
CLASSICAL, PQC, ROOT = bytes(range(56)), bytes(range(100, 132)), bytes(range(48))
OFFER, ANSWER = b"everything the leader said", b"everything the follower said"
PARTS = ("root", "classical", "pqc", "offer", "answer")

parts = st.tuples(
    st.binary(min_size=48, max_size=48),
    st.binary(min_size=56, max_size=56),
    st.binary(min_size=32, max_size=32),
    st.binary(max_size=60),
    st.binary(max_size=60),
)


def secrets(classical=CLASSICAL, pqc=PQC):
    return ExchangeSecrets(Secret.of(classical), Secret.of(pqc))


def derived(root=ROOT, classical=CLASSICAL, pqc=PQC, offer=OFFER, answer=ANSWER):
    """Return everything that one end derives from an exchange, by name."""
    transcript = transcript_of(offer, answer)
    keys = session_keys(Secret.of(root), secrets(classical, pqc), transcript)
    blocks = strand_blocks(secrets(classical, pqc), transcript, slots=2)
    return {
        "next root": bytes(next_root(Secret.of(root), secrets(classical, pqc), transcript).view()),
        "session": keys.session_id,
        "verify key": bytes(keys.verify_key.view()),
        "leader's tag key": keys.leader_issues.tag,
        "leader's mask key": keys.leader_issues.mask,
        "follower's tag key": keys.follower_issues.tag,
        "follower's mask key": keys.follower_issues.mask,
        "classical strands": bytes(blocks[0].view()),
        "pqc strands": bytes(blocks[1].view()),
    }


def same(one, other):
    return {name for name in one if one[name] == other[name]}


@given(parts)
def test_both_ends_derive_the_same_and_nothing_twice(parts):
    leader, follower = derived(*parts), derived(*parts)
    assert leader == follower
    assert len(set(leader.values())) == len(leader)


@pytest.mark.parametrize(
    ("part", "untouched"),
    [
        ("root", {"classical strands", "pqc strands"}),  # the root authenticates; it is not mixed into the strands
        ("classical", {"pqc strands"}),
        ("pqc", {"classical strands"}),
        ("offer", set()),
        ("answer", set()),
    ],
)
@given(data=st.data())
def test_a_changed_byte_changes_all_that_depends_on_it(part, untouched, data):
    whole = dict(zip(PARTS, (ROOT, CLASSICAL, PQC, OFFER, ANSWER), strict=True))
    changed = bytearray(whole[part])
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    assert same(derived(**whole), derived(**{**whole, part: bytes(changed)})) == untouched


def test_a_byte_that_moves_from_one_secret_to_the_other_is_not_the_same_exchange_of_strands():
    one = strand_blocks(secrets(CLASSICAL, PQC), transcript_of(OFFER, ANSWER), slots=1)
    other = strand_blocks(secrets(PQC, CLASSICAL), transcript_of(OFFER, ANSWER), slots=1)
    assert one[0] != other[1]  # the labels tell the origins apart
    assert one[1] != other[0]


def test_blocks_longer_than_one_expansion_repeat_nothing():
    slots = 1_000  # three runs of HKDF
    for block in strand_blocks(secrets(), transcript_of(OFFER, ANSWER), slots=slots):
        strands = {bytes(block.view()[at : at + 32]) for at in range(0, len(block), 32)}
        assert len(block) == 32 * slots
        assert len(strands) == slots


def test_the_secrets_stay_their_owners_until_it_wipes_them():
    held = secrets()
    session_keys(Secret.of(ROOT), held, transcript_of(OFFER, ANSWER))
    next_root(Secret.of(ROOT), held, transcript_of(OFFER, ANSWER))
    assert (bytes(held.classical.view()), bytes(held.pqc.view())) == (CLASSICAL, PQC)
    held.wipe()
    assert not any(held.classical.view())
    assert not any(held.pqc.view())


def test_the_transcript_is_the_digests_of_both_messages():
    assert transcript_of(OFFER, ANSWER) == Transcript(hashlib.sha384(OFFER).digest(), hashlib.sha384(ANSWER).digest())


# --- what is said


fields = st.tuples(
    st.sampled_from([NodeId(name) for name in ("A", "B", "AB")]),
    st.sampled_from([NodeId(name) for name in ("A", "B", "BA")]),
    st.binary(max_size=4),
    st.integers(0, 3),
    st.binary(max_size=4),
    st.binary(max_size=4),
)


def offered(leader, follower, exchange, generation, public, context):
    return offer_message(leader, follower, exchange, generation, public, context=context)


@given(fields, fields)
def test_two_offers_are_alike_only_if_all_they_say_is(one, other):
    assert (offered(*one) == offered(*other)) is (one == other)


answers = st.tuples(st.sampled_from([OFFER, ANSWER]), st.binary(max_size=3), st.binary(max_size=3))


@given(answers, answers)
def test_an_answer_answers_one_offer_only(one, other):
    alike = answer_message(one[0], one[1], context=one[2]) == answer_message(other[0], other[1], context=other[2])
    assert alike is (one == other)


def test_an_offer_is_never_an_answer():
    offer = offer_message(A, B, bytes(16), 0, b"", context=b"")
    assert offer[:25] != answer_message(offer, b"", context=b"")[:25]


# --- the root's tag


@given(st.binary(max_size=100), st.data())
def test_the_roots_tag_holds_for_one_message_under_one_root(message, data):
    root = Secret.of(ROOT)
    tag = root_tag(root, message)
    check_root_tag(root, message, tag)
    altered = bytearray(tag)
    altered[data.draw(st.integers(0, 47))] ^= data.draw(st.integers(1, 255))
    for wrong in (
        (root, message, bytes(altered)),
        (root, message, tag[:-1]),
        (root, message + b"!", tag),
        (Secret.of(NO_ROOT), message, tag),
    ):
        with pytest.raises(AuthenticationError, match="end-to-end root"):
            check_root_tag(*wrong)
