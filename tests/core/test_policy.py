from __future__ import annotations

from functools import cache

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from trenza.base.errors import AuthenticationError, InvalidDocumentError, StaleError
from trenza.base.names import LinkId, NodeId, SaeId, TenantId
from trenza.core.policy import (
    Book,
    LinkEntry,
    NodeEntry,
    Policy,
    Rule,
    SaeEntry,
    SignedBook,
    TenantEntry,
    bytes_to_sign,
    message_of,
    mistakes_in,
    open_book,
)
from trenza.core.priority import Priority
from trenza.core.recipe import ITS

A, B = NodeId("A"), NodeId("B")
ONE, TWO, LONELY = SaeId("one"), SaeId("two"), SaeId("lonely")
BOOK = Book(
    version=7,
    nodes=(NodeEntry(A, "a:1"), NodeEntry(B, "b:1", certificate_uri="urn:x:b")),
    links=(LinkEntry(LinkId("A-B"), (A, B)),),
    saes=(SaeEntry(ONE, A), SaeEntry(TWO, B, identity="two.example"), SaeEntry(LONELY, B)),
    policies=(Policy("plain", ("hybrid-catkdf",)), Policy("pad", ("its", "hybrid-catkdf"), key_lifetime_s=9_000)),
    rules=(Rule((ONE, TWO), "pad"),),
)


@cache
def officer(seed=1):
    return MLDSA65PrivateKey.from_seed_bytes(bytes([seed]) * 32)


def public(seed=1):
    return officer(seed).public_key().public_bytes_raw()


def signed(book=BOOK, *, seed=1):
    body = bytes_to_sign(book)
    return SignedBook(body, officer(seed).sign(message_of(body)))


# --- whose word it is


def test_the_officers_book_is_taken_and_travels_as_it_was_signed():
    assert open_book(SignedBook.decode(signed().encode()), officer=public(), newer_than=6) == BOOK


def test_a_book_that_another_signed_is_refused():
    with pytest.raises(AuthenticationError, match="key officer"):
        open_book(signed(seed=2), officer=public(), newer_than=0)


@given(st.data())
def test_a_book_with_a_changed_byte_is_refused(data):
    genuine = signed()
    part = data.draw(st.sampled_from(["body", "signature"]))
    changed = bytearray(getattr(genuine, part))
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(AuthenticationError):
        open_book(replace(genuine, **{part: bytes(changed)}), officer=public(), newer_than=0)


def test_what_the_officer_signed_for_another_purpose_is_no_book():
    body = bytes_to_sign(BOOK)
    with pytest.raises(AuthenticationError):
        open_book(SignedBook(body, officer().sign(body)), officer=public(), newer_than=0)


@given(st.integers(1, 9), st.integers(0, 9))
def test_the_version_only_grows(version, known):
    book = signed(replace(BOOK, version=version))
    if version > known:
        assert open_book(book, officer=public(), newer_than=known).version == version
    else:
        with pytest.raises(StaleError, match=f"version {version} is not newer than version {known}"):
            open_book(book, officer=public(), newer_than=known)


def test_a_forged_book_is_refused_before_anything_in_it_is_believed():
    with pytest.raises(AuthenticationError):
        open_book(SignedBook(b"not even JSON", bytes(3309)), officer=public(), newer_than=0)


@pytest.mark.parametrize(
    "body", [b"not JSON", b"{}", msgspec.json.encode({**msgspec.to_builtins(BOOK), "colour": "blue"})]
)
def test_a_signed_body_that_is_no_book_is_refused(body):
    with pytest.raises(InvalidDocumentError):
        open_book(SignedBook(body, officer().sign(message_of(body))), officer=public(), newer_than=0)


@pytest.mark.parametrize("text", [b"", b"[]", b'{"body": "AA=="}'])
def test_what_is_no_signed_book_is_refused(text):
    with pytest.raises(InvalidDocumentError, match="signed policy book"):
        SignedBook.decode(text)


# --- what contradicts itself


WRONG_POLICY = Policy("wrong", ("hybrid-catkdf", "no-such"), allowed_nodes=(NodeId("C"),), max_hops=0)
CONTRADICTIONS = {
    "nodes: A appears more than once": {"nodes": (*BOOK.nodes, NodeEntry(A, "c:1"))},
    "nodes: 'a b' is not a name": {"nodes": (*BOOK.nodes, NodeEntry(NodeId("a b"), "c:1"))},
    "links: A-B appears more than once": {"links": BOOK.links * 2},
    "links.A-C: no node is called C": {"links": (LinkEntry(LinkId("A-C"), (A, NodeId("C"))),)},
    "links.loop: both ends are A": {"links": (LinkEntry(LinkId("loop"), (A, A)),)},
    "saes: one appears more than once": {"saes": (*BOOK.saes, SaeEntry(ONE, A, identity="another"))},
    "identities: two.example appears more than once": {
        "saes": (*BOOK.saes, SaeEntry(SaeId("three"), A, identity="two.example"))
    },
    "saes.three: no node is called C": {"saes": (*BOOK.saes, SaeEntry(SaeId("three"), NodeId("C")))},
    "policies: pad appears more than once": {"policies": (*BOOK.policies, Policy("pad", ("its",)))},
    "policies.none: the ladder is empty": {"policies": (*BOOK.policies, Policy("none", ()))},
    "policies.wide: wrapped is how a key reaches several targets": {
        "policies": (*BOOK.policies, Policy("wide", ("wrapped",)))
    },
    "policies.odd: sizes are multiples of 8": {
        "policies": (*BOOK.policies, Policy("odd", ("its",), min_key_size=65))
    },
    "policies.huge: sizes are multiples of 8": {
        "policies": (*BOOK.policies, Policy("huge", ("hybrid-catkdf",), max_key_size=8_200))
    },
    "policies.turned: sizes are multiples of 8": {
        "policies": (*BOOK.policies, Policy("turned", ("its",), min_key_size=512))
    },
    "policies.never: max_hops, max_age_s and key_lifetime_s": {
        "policies": (*BOOK.policies, Policy("never", ("its",), key_lifetime_s=0))
    },
    "policies.urgent: priority is one of 0 (best-effort), 1 (bulk)": {
        "policies": (*BOOK.policies, Policy("urgent", ("its",), priority=8))
    },
    "policies.quick: max_keys_per_second and burst are 0": {
        "policies": (*BOOK.policies, Policy("quick", ("its",), max_keys_per_second=float("inf")))
    },
    "policies.burst: burst without max_keys_per_second": {
        "policies": (*BOOK.policies, Policy("burst", ("its",), burst=9))
    },
    "tenants: bank appears more than once": {"tenants": (TenantEntry(TenantId("bank")),) * 2},
    "tenants: 'a b' is not a name": {"tenants": (TenantEntry(TenantId("a b")),)},
    "tenants.bank: max_keys_per_second and burst are 0": {
        "tenants": (TenantEntry(TenantId("bank"), max_keys_per_second=-1.0),)
    },
    "tenants.bank: max_bits_per_day is at least 0": {
        "tenants": (TenantEntry(TenantId("bank"), max_bits_per_day=-1),)
    },
    "tenants.bank: weight is 1 to 1000": {"tenants": (TenantEntry(TenantId("bank"), weight=0),)},
    "saes.three: no tenant is called bnak": {
        "saes": (*BOOK.saes, SaeEntry(SaeId("three"), A, tenant=TenantId("bnak"))),
        "tenants": (TenantEntry(TenantId("bank")),),
    },
    "rules one - three: no SAE is called three": {"rules": (Rule((ONE, SaeId("three")), "pad"),)},
    "rules one - one: an SAE shares no key with itself": {"rules": (Rule((ONE, ONE), "pad"),)},
    "rules one - two: no policy is called gold": {"rules": (Rule((ONE, TWO), "gold"),)},
    "rules: one - two appears more than once": {"rules": (Rule((ONE, TWO), "pad"), Rule((TWO, ONE), "plain"))},
}


def test_a_sound_book_has_no_mistakes():
    assert mistakes_in(BOOK) == ()


@pytest.mark.parametrize(("mistake", "change"), CONTRADICTIONS.items(), ids=CONTRADICTIONS)
def test_a_contradiction_is_named_with_its_entry(mistake, change):
    (told,) = mistakes_in(replace(BOOK, **change))
    assert told.startswith(mistake)


def test_every_contradiction_is_listed_and_not_only_the_first():
    book = replace(BOOK, policies=(*BOOK.policies, WRONG_POLICY), rules=(Rule((ONE, ONE), "gold"),))
    with pytest.raises(InvalidDocumentError) as refused:
        open_book(signed(book), officer=public(), newer_than=0)
    for mistake in (
        "policies.wrong: no node is called C",
        "no recipe is called 'no-such'",
        "policies.wrong: max_hops, max_age_s and key_lifetime_s are at least 1",
        "rules one - one: an SAE shares no key with itself",
        "rules one - one: no policy is called gold",
    ):
        assert mistake in str(refused.value)


# --- what it answers


def test_a_pair_has_one_policy_in_both_directions_and_without_a_rule_none():
    assert BOOK.policy_between(ONE, TWO) is BOOK.policy_between(TWO, ONE) is BOOK.policies[1]
    assert BOOK.policy_between(ONE, LONELY) is None
    assert BOOK.policy_between(ONE, ONE) is None


def test_a_node_sees_its_pairs_from_its_own_side():
    for node, mine, other in ((A, ONE, TWO), (B, TWO, ONE)):
        ((here, there, policy),) = BOOK.pairs_of_node(node)
        assert (here.name, there.name, policy.name) == (mine, other, "pad")


def test_identities_are_what_the_entry_says_or_follow_from_the_name():
    assert set(BOOK.node_by_uri) == {"urn:trenza:node:A", "urn:x:b"}
    assert set(BOOK.sae_by_identity) == {"urn:trenza:sae:one", "two.example", "urn:trenza:sae:lonely"}


def test_the_longest_lifetime_is_that_of_any_policy():
    assert BOOK.longest_key_lifetime_s == 9_000
    assert replace(BOOK, policies=(), rules=()).longest_key_lifetime_s == 3_600


CHANGES = {
    "name": "q",
    "ladder": ("its",),
    "max_hops": 15,
    "allowed_nodes": (A,),
    "max_age_s": 1,
    "key_lifetime_s": 1,
    "min_key_size": 72,
    "max_key_size": 512,
    "default_key_size": 128,
}


HOW_MUCH = {"priority": 7, "max_keys_per_second": 0.5, "burst": 3}


def test_every_field_that_says_what_a_key_is_made_of_is_in_a_policys_digest():
    plain = BOOK.policies[0]
    assert CHANGES.keys() | HOW_MUCH.keys() == set(plain.__struct_fields__)
    digests = {replace(plain, **{field: value}).digest for field, value in CHANGES.items()}
    assert len(digests | {plain.digest}) == len(CHANGES) + 1
    assert Policy("plain", ("hybrid-catkdf",)).digest == plain.digest


@pytest.mark.parametrize(("field", "value"), HOW_MUCH.items())
def test_who_gets_how_much_may_change_while_keys_wait_to_be_fetched(field, value):
    plain = BOOK.policies[0]
    assert replace(plain, **{field: value}).digest == plain.digest


def test_a_policys_digest_is_that_of_the_first_release():
    assert BOOK.policies[0].digest.hex().startswith("a34b6227e729f4152debe89c3db08629")
    pad = Policy("pad", ("its", "hybrid-catkdf"), key_lifetime_s=9_000, allowed_nodes=(A,))
    assert pad.digest.hex().startswith("300086d963ea9a1493c10b41bd67981e")


def test_a_book_from_before_there_were_classes_and_tenants_still_opens():
    old = msgspec.to_builtins(BOOK)
    del old["tenants"]
    old["policies"] = [
        {name: value for name, value in one.items() if name not in HOW_MUCH} for one in old["policies"]
    ]
    body = msgspec.json.encode(old)
    opened = open_book(SignedBook(body, officer().sign(message_of(body))), officer=public(), newer_than=0)
    assert opened == BOOK
    assert {Priority(policy.priority) for policy in opened.policies} == {Priority.NORMAL}


def test_a_tenant_that_is_not_listed_has_no_limits():
    bank = TenantEntry(TenantId("bank"), max_keys_per_second=5.0, weight=3)
    listed = replace(BOOK, tenants=(bank,))
    assert listed.tenant_of(SaeEntry(ONE, A, tenant=bank.name)) is bank
    assert listed.tenant_of(SaeEntry(ONE, A)) == TenantEntry(TenantId("default"))


def test_the_order_of_the_ladder_counts():
    pad = BOOK.policies[1]
    assert pad.recipes[0] is ITS
    assert replace(pad, ladder=pad.ladder[::-1]).digest != pad.digest
