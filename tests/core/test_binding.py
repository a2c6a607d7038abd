from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trenza.core.binding import BindingInfo
from trenza.core.recipe import RECIPES

names = st.text(max_size=6)
bindings = st.builds(
    BindingInfo,
    recipe=st.sampled_from(RECIPES),
    initiator_node=names,
    target_node=names,
    initiator_sae=names,
    target_sae=names,
    key_id=st.binary(min_size=16, max_size=16),
    policy_digest=st.binary(min_size=48, max_size=48),
    provenance_digest=st.binary(min_size=48, max_size=48),
    size=st.integers(min_value=0, max_value=(1 << 32) - 1),
)


def read(encoding: bytes) -> list[bytes]:
    """Take an encoding apart by its lengths alone."""
    assert encoding[:1] == b"\x01"
    values, place = [], 1
    while place < len(encoding):
        start = place + 4
        place = start + int.from_bytes(encoding[place:start], "big")
        values.append(encoding[start:place])
    assert place == len(encoding)
    return values


@given(bindings)
def test_every_field_can_be_read_back_from_the_encoding(info):
    recipe, *texts, key_id, policy, provenance, size = read(info.encode())
    assert recipe == info.recipe.suite_id
    assert [text.decode() for text in texts] == [
        info.initiator_node,
        info.target_node,
        info.initiator_sae,
        info.target_sae,
    ]
    assert (key_id, policy, provenance) == (info.key_id, info.policy_digest, info.provenance_digest)
    assert int.from_bytes(size, "big") == info.size
    assert len(dataclasses.fields(info)) == len(read(info.encode()))


@given(bindings, bindings)
def test_no_two_bindings_share_an_encoding_and_none_begins_another(one, other):
    assert (one.encode() == other.encode()) == (one == other)
    assert one == other or not one.encode().startswith(other.encode())


@given(bindings, st.integers(min_value=1, max_value=5))
def test_moving_the_border_between_two_names_changes_the_encoding(info, cut):
    joined = info.initiator_node + info.target_node
    moved = dataclasses.replace(info, initiator_node=joined[:cut], target_node=joined[cut:])
    assert (moved.encode() == info.encode()) == (moved == info)


@pytest.mark.parametrize(("field", "length"), [("key_id", 15), ("policy_digest", 32), ("provenance_digest", 49)])
def test_a_field_of_another_length_is_refused(field, length):
    right = {"key_id": bytes(16), "policy_digest": bytes(48), "provenance_digest": bytes(48)}
    with pytest.raises(ValueError, match="bytes"):
        BindingInfo(RECIPES[0], "a", "b", "c", "d", **{**right, field: bytes(length)}, size=256)
