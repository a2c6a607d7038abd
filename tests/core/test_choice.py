from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.records import facts, hop

from trenza.base.errors import InvalidRequestError
from trenza.base.names import NodeId
from trenza.base.units import Nanoseconds, Seconds, nanoseconds
from trenza.core.choice import UNMET, StrandKind, acceptance, recipes_for
from trenza.core.delivery import Wishes
from trenza.core.policy import Policy
from trenza.core.recipe import HYBRID_CATKDF, LOCAL, RECIPES, WRAPPED
from trenza.core.strand import Origin

NAMES = [recipe.name for recipe in RECIPES if recipe is not WRAPPED]
NOW = nanoseconds(Seconds(1_000_000.0))

ladders = st.lists(st.sampled_from(NAMES), min_size=1, unique=True)
wishes = st.builds(
    Wishes,
    origins=st.frozensets(st.sampled_from(Origin)),
    recipe=st.none() | st.sampled_from(NAMES),
)


def policy(*ladder, **limits):
    return Policy("p", ladder or ("hybrid-catkdf", "exchange-catkdf"), **limits)


def over(*nodes, age=0.0):
    """Return a segment whose QKD strands went over these nodes, `age` seconds ago."""
    return facts(*(hop(one, other) for one, other in pairwise(nodes)), created=NOW - nanoseconds(Seconds(age)))


# --- recipes


@given(ladders, wishes, st.booleans())
def test_only_rungs_of_the_ladder_that_meet_every_wish_and_in_its_order(ladder, wishes, same_node):
    meets = {
        recipe.name
        for recipe in RECIPES
        if wishes.origins <= recipe.origins
        and wishes.recipe in {None, recipe.name}
        and (recipe is LOCAL) is same_node
    }
    wanted = [name for name in ladder if name in meets]
    if not wanted:
        with pytest.raises(InvalidRequestError, match=UNMET):
            recipes_for(policy(*ladder), wishes, same_node=same_node)
        return
    chosen = recipes_for(policy(*ladder), wishes, same_node=same_node)
    assert [recipe.name for recipe in chosen] == wanted


def test_without_wishes_the_whole_ladder_serves():
    assert recipes_for(policy(), Wishes(), same_node=False) == policy().recipes


def test_a_wish_never_reaches_beyond_the_ladder():
    with pytest.raises(InvalidRequestError, match="extension_mandatory"):
        recipes_for(policy("exchange-catkdf"), Wishes(recipe=HYBRID_CATKDF.name), same_node=False)


def test_two_saes_of_one_node_share_local_keys_or_none():
    assert recipes_for(policy("hybrid-catkdf", "local"), Wishes(), same_node=True) == (LOCAL,)
    with pytest.raises(InvalidRequestError):
        recipes_for(policy("hybrid-catkdf"), Wishes(), same_node=True)
    with pytest.raises(InvalidRequestError):
        recipes_for(policy("local"), Wishes(), same_node=False)


# --- strands


@pytest.mark.parametrize(
    ("limits", "wishes", "accepted"),
    [
        ({}, {}, True),
        ({"max_hops": 2}, {}, True),
        ({"max_hops": 1}, {}, False),
        ({}, {"max_hops": 1}, False),
        ({"max_hops": 1}, {"max_hops": 9}, False),  # a wish never widens
        ({"max_age_s": 100}, {}, True),
        ({"max_age_s": 99}, {}, False),
        ({}, {"max_age": Seconds(99.0)}, False),
        ({"max_age_s": 99}, {"max_age": Seconds(500.0)}, False),
        ({"allowed_nodes": (NodeId("R"), NodeId("S"))}, {}, True),
        ({"allowed_nodes": (NodeId("S"),)}, {}, False),
    ],
)
def test_a_segment_must_satisfy_the_policy_and_the_wishes(limits, wishes, accepted):
    accept = acceptance(policy(**limits), Wishes(**wishes), now=NOW)
    assert accept(over("A", "R", "Z", age=100.0)) is accepted


def test_the_ends_themselves_need_not_be_allowed():
    assert acceptance(policy(allowed_nodes=(NodeId("R"),)), Wishes(), now=NOW)(over("A", "Z"))


def test_strands_without_qkd_cross_no_nodes_at_all():
    narrow = policy(max_hops=1, allowed_nodes=(NodeId("R"),))
    assert acceptance(narrow, Wishes(), now=NOW)(facts(created=NOW))


relays = st.lists(st.sampled_from("RST"), unique=True)
policies = st.builds(
    lambda hops, nodes, age: policy(max_hops=hops, allowed_nodes=tuple(map(NodeId, nodes)), max_age_s=age),
    st.integers(1, 4),
    relays,
    st.integers(1, 200),
)


@given(policies, relays, st.floats(0.0, 300.0))
def test_what_is_filled_for_a_policy_is_what_the_policy_accepts(policy, relays, age):
    segment = over("A", *relays, "Z", age=age)
    kind = StrandKind.of(policy, full=True)
    oldest = Nanoseconds(NOW - nanoseconds(Seconds(float(kind.max_age_s))))
    assert kind.acceptance(oldest=oldest)(segment) is acceptance(policy, Wishes(), now=NOW)(segment)


@given(policies, policies)
def test_without_qkd_only_the_age_tells_kinds_apart(one, other):
    alike = StrandKind.of(one, full=False) == StrandKind.of(other, full=False)
    assert alike is (one.max_age_s == other.max_age_s)
