import itertools
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from trenza.base.names import NodeId, SaeId
from trenza.base.units import Bits
from trenza.core.keyid import (
    SLOTS_MAX,
    WINDOWS_MAX,
    IdKeys,
    IdMacs,
    KeyAddress,
    pair_binding,
    pair_handle,
    read_key_id,
    verify_key_id,
)

KEYS = IdKeys(tag=b"t" * 32, mask=b"m" * 32)
OTHER_KEYS = IdKeys(tag=b"T" * 32, mask=b"M" * 32)
POLICY = bytes(48)
BINDING = pair_binding(NodeId("a"), NodeId("b"), SaeId("x"), SaeId("y"), policy_digest=POLICY)
addresses = st.builds(
    KeyAddress,
    window=st.integers(0, WINDOWS_MAX - 1),
    slot=st.integers(0, SLOTS_MAX - 1),
    handle=st.integers(0, 4095),
    size=st.integers(1, 1024).map(lambda units: Bits(units * 8)),
    recipe=st.integers(0, 15),
)


def sealed(address: KeyAddress) -> UUID:
    return UUID(int=IdMacs(KEYS).seal(address.pack(), BINDING))


@given(addresses)
def test_the_two_nodes_read_back_what_was_sealed(address):
    key_id = sealed(address)
    assert read_key_id(key_id, KEYS) == address
    assert verify_key_id(key_id, address, KEYS, binding=BINDING)
    assert key_id.version == 4
    assert key_id.variant == "specified in RFC 4122"


@given(addresses, st.integers(0, 127))
def test_no_flipped_bit_is_accepted(address, bit):
    forged = UUID(int=sealed(address).int ^ (1 << bit))
    assert not verify_key_id(forged, read_key_id(forged, KEYS), KEYS, binding=BINDING)


@given(addresses)
def test_an_id_is_worth_nothing_under_another_binding_or_session(address):
    key_id = sealed(address)
    for changed in (
        pair_binding(NodeId("b"), NodeId("a"), SaeId("x"), SaeId("y"), policy_digest=POLICY),
        pair_binding(NodeId("a"), NodeId("b"), SaeId("y"), SaeId("x"), policy_digest=POLICY),
        pair_binding(NodeId("a"), NodeId("b"), SaeId("x"), SaeId("z"), policy_digest=POLICY),
        pair_binding(NodeId("a"), NodeId("b"), SaeId("x"), SaeId("y"), policy_digest=b"\1" * 48),
    ):
        assert not verify_key_id(key_id, address, KEYS, binding=changed)
    assert not verify_key_id(key_id, read_key_id(key_id, OTHER_KEYS), OTHER_KEYS, binding=BINDING)


def test_consecutive_keys_show_no_order():
    ids = [sealed(KeyAddress(7, slot, 5, Bits(256), 0)) for slot in range(1024)]
    assert len(set(ids)) == 1024
    ascending = sum(one < other for one, other in itertools.pairwise(ids))
    assert 400 < ascending < 624  # a fair coin leaves this range once in 10^11 runs; the keys are fixed


def test_the_handle_is_of_the_ordered_pair():
    assert pair_handle(SaeId("x"), SaeId("y")) != pair_handle(SaeId("y"), SaeId("x"))
    assert 0 <= pair_handle(SaeId("bank"), SaeId("branch")) < 4096
