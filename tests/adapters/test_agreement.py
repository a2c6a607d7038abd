"""The joint exchange: both ends get the same two secrets, and malformed shares are refused."""

import pytest
from cryptography.hazmat.primitives.asymmetric.x448 import X448PrivateKey

from trenza.adapters.agreement import SHARE_BYTES, X448_BYTES, X448MlKem1024
from trenza.base.errors import RemoteProtocolError


def test_both_ends_get_the_same_two_secrets():
    leader, follower = X448MlKem1024(), X448MlKem1024()
    offer = leader.offer()
    answer, classical, pqc = follower.answer(offer.public)
    assert leader.finish(offer, answer) == (classical, pqc)
    assert (len(classical), len(pqc)) == (56, 32)
    assert len(offer.public) == len(answer) == SHARE_BYTES


def test_two_exchanges_share_nothing():
    agreement = X448MlKem1024()
    one, other = agreement.offer(), agreement.offer()
    assert one.public != other.public
    assert agreement.answer(one.public)[1:] != agreement.answer(one.public)[1:]


@pytest.mark.parametrize("length", [0, X448_BYTES, SHARE_BYTES - 1, SHARE_BYTES + 1])
def test_a_share_of_another_length_is_refused_at_both_ends(length):
    agreement = X448MlKem1024()
    with pytest.raises(RemoteProtocolError, match="1624 bytes"):
        agreement.answer(bytes(length))
    with pytest.raises(RemoteProtocolError, match="1624 bytes"):
        agreement.finish(agreement.offer(), bytes(length))


@pytest.mark.parametrize("point", [bytes(56), bytes([1]) + bytes(55)], ids=["zero", "one"])
def test_a_point_of_small_order_is_refused_at_both_ends(point):
    agreement = X448MlKem1024()
    offer = agreement.offer()
    with pytest.raises(RemoteProtocolError, match="yields no secret"):
        agreement.answer(point + offer.public[X448_BYTES:])
    answer, _, _ = agreement.answer(offer.public)
    with pytest.raises(RemoteProtocolError, match="yields no secret"):
        agreement.finish(offer, point + answer[X448_BYTES:])


def test_a_key_that_is_no_ml_kem_key_is_refused():
    share = X448PrivateKey.generate().public_key().public_bytes_raw() + b"\xff" * (SHARE_BYTES - X448_BYTES)
    with pytest.raises(RemoteProtocolError, match="ML-KEM-1024"):
        X448MlKem1024().answer(share)


def test_an_altered_ciphertext_gives_another_secret():
    agreement = X448MlKem1024()
    offer = agreement.offer()
    answer, classical, pqc = agreement.answer(offer.public)
    altered = answer[:-1] + bytes([answer[-1] ^ 1])
    assert agreement.finish(offer, altered)[0] == classical
    assert agreement.finish(offer, altered)[1] != pqc
