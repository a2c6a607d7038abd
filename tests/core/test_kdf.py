"""The constructions against ETSI's published vectors, and against their definitions where no vector reaches."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trenza.core import kdf

CONSTRUCTIONS = {
    ("hkdf", "sha256"): kdf.HKDF_SHA256,
    ("hkdf", "sha384"): kdf.HKDF_SHA384,
    ("hmac", "sha256"): kdf.HMAC_SHA256,
    ("hmac", "sha384"): kdf.HMAC_SHA384,
    ("kmac", "KMAC128"): kdf.KMAC_128,
    ("kmac", "KMAC256"): kdf.KMAC_256,
}

PUBLISHED = Path(__file__).parents[3] / "shared/standards/vectors/ts-103-744-v1.2.1.json"


def published(combiner: str) -> list[Any]:
    if not PUBLISHED.exists():
        reason = "ETSI's vectors (github.com/etsi-forge/cyber.103744_QHKEX) are not beside the project"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason))]
    vectors = json.loads(PUBLISHED.read_text())["vectors"]
    chosen = [vector for vector in vectors if vector["combiner"] == combiner]
    return [pytest.param(vector, id=f"{vector['kdf']}-{vector['cid']}") for vector in chosen]


def octets(vector: dict[str, str], name: str) -> bytes:
    return bytes.fromhex(vector[name])


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published vectors are not beside the project")
def test_all_72_published_vectors_are_used():
    assert len(published("CatKDF")) == len(published("CasKDF")) == 36


@pytest.mark.parametrize("vector", published("CatKDF"))
def test_catkdf_gives_the_published_key(vector):
    construction = CONSTRUCTIONS[vector["kdf"], vector["hash"]]
    info, ma, mb = vector["info"].encode(), octets(vector, "MA"), octets(vector, "MB")
    if vector["context"] is not None:
        assert construction.context(info, ma, mb).hex() == vector["context"]
    key = kdf.cat_kdf(
        construction,
        (octets(vector, "psk"), octets(vector, "k1"), octets(vector, "k2")),
        label=octets(vector, "label"),
        info=info,
        ma=ma,
        mb=mb,
        length=len(octets(vector, "key_material")),
    )
    assert key.hex() == vector["key_material"]


@pytest.mark.parametrize("vector", published("CasKDF"))
def test_caskdf_gives_the_published_key_of_every_round(vector):
    construction = CONSTRUCTIONS[vector["kdf"], vector["hash"]]
    chain = octets(vector["rounds"][0], "previous_chain_secret")
    for turn in vector["rounds"]:
        ma, mb = octets(turn, "MA"), octets(turn, "MB")
        assert construction.prf(chain, octets(turn, "k"), ma, mb).hex() == turn["round_secret"]
        chain, key = kdf.cas_round(
            construction,
            chain,
            octets(turn, "k"),
            label=octets(turn, "label"),
            info=turn["info"].encode(),
            ma=ma,
            mb=mb,
            length=len(octets(turn, "key_material")),
        )
        assert chain.hex() == turn["chain_secret"]
        assert key.hex() == turn["key_material"]


@pytest.mark.parametrize("construction", CONSTRUCTIONS.values(), ids=["-".join(name) for name in CONSTRUCTIONS])
def test_caskdf_is_its_rounds_one_after_the_other(construction):
    agreed = {"label": b"l" * 48, "info": b"info", "ma": b"to", "mb": b"fro", "length": 40}
    psk, first, second = b"p" * 48, b"1" * 32, b"2" * 32
    chain, _ = kdf.cas_round(construction, psk, first, **agreed)
    _, key = kdf.cas_round(construction, chain, second, **agreed)
    assert kdf.cas_kdf(construction, psk, (first, second), **agreed) == key
    assert kdf.cas_kdf(construction, psk, (second, first), **agreed) != key


@pytest.mark.parametrize(("hash_", "size"), [(kdf.Hash.SHA256, 32), (kdf.Hash.SHA384, 48)])
@pytest.mark.parametrize("extra", [-1, 0, 1, 100])
def test_one_step_hmac_counts_its_blocks_from_one(hash_, size, extra):
    length = size + extra
    blocks = (
        hmac.digest(b"label", counter.to_bytes(4, "big") + b"secret" + b"context", hash_.value)
        for counter in range(1, 7)
    )
    derived = kdf.kdf_hmac(hash_, b"secret", b"label", b"context", length)
    assert derived == b"".join(blocks)[:length]


@given(
    st.lists(st.binary(max_size=8), min_size=3, max_size=3), st.lists(st.binary(max_size=8), min_size=3, max_size=3)
)
def test_no_two_triples_are_spelled_alike(one, other):
    assert (kdf.cb_f(*one) == kdf.cb_f(*other)) == (one == other)


@given(st.binary(), st.binary(), st.binary())
def test_concatenate_and_hash_hashes_the_concatenation(first, second, third):
    spelled = kdf.cb_f(first, second, third)
    assert kdf.cahb_f(kdf.Hash.SHA256, first, second, third) == hashlib.sha256(spelled).digest()
    assert kdf.cahb_f(kdf.Hash.SHA384, first, second, third) == hashlib.sha384(spelled).digest()
