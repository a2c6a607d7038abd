from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trenza.base.errors import AuthenticationError
from trenza.base.secret import Secret
from trenza.core.hop import MAC_KEY_BYTES, check_tag, decrypt, encrypt, tag_of

TAG_BYTES = 16
KEY = Secret(bytearray(range(MAC_KEY_BYTES)))


@given(st.integers(0, 200).flatmap(lambda size: st.tuples(*[st.binary(min_size=size, max_size=size)] * 2)))
def test_the_far_end_gets_the_strand_and_each_bit_is_under_its_bit_of_pad(pair):
    strand, pad = pair
    ciphertext = encrypt(Secret.of(strand), Secret.of(pad))
    assert ciphertext == bytes(one ^ other for one, other in zip(strand, pad, strict=True))
    assert bytes(decrypt(ciphertext, Secret.of(pad)).view()) == strand


def test_a_pad_of_another_length_is_refused():
    with pytest.raises(ValueError, match="length"):
        encrypt(Secret.of(b"abc"), Secret.of(b"ab"))
    with pytest.raises(ValueError, match="length"):
        decrypt(b"abc", Secret.of(b"abcd"))


def test_the_tag_is_poly1305_of_rfc_8439():
    # RFC 8439 clause 2.5.2
    key = bytes.fromhex("85d6be7857556d337f4452fe42d506a80103808afb0db2fd4abff6af4149f51b")
    tag = tag_of(b"Cryptographic Forum Research Group", Secret.of(key))
    assert tag.hex() == "a8061dc1305136c6c22b8baf0c0127a9"


@given(message=st.binary(min_size=1, max_size=64), bit=st.integers(min_value=0))
def test_any_altered_bit_is_found(message, bit):
    tag = tag_of(message, KEY)
    check_tag(message, tag, KEY)
    whole = bytearray(message + tag)
    bit %= len(whole) * 8
    whole[bit // 8] ^= 1 << bit % 8
    with pytest.raises(AuthenticationError):
        check_tag(bytes(whole[:-TAG_BYTES]), bytes(whole[-TAG_BYTES:]), KEY)


@pytest.mark.parametrize("length", [0, TAG_BYTES - 1, TAG_BYTES + 1])
def test_a_tag_of_another_length_is_refused(length):
    with pytest.raises(AuthenticationError):
        check_tag(b"message", bytes(length), KEY)
