from __future__ import annotations

import random

import pytest
from tests.core.records import facts, hop

from trenza.base.errors import InvalidRequestError, MissingOriginError
from trenza.base.names import NodeId, SaeId
from trenza.base.secret import Secret
from trenza.base.units import Bits
from trenza.core.binding import BindingInfo, Parties
from trenza.core.combine import combine
from trenza.core.plan import KeyPlan
from trenza.core.recipe import HYBRID_CATKDF, LOCAL, RECIPES, WRAPPED, Recipe
from trenza.core.segment import OpenSegment
from trenza.core.strand import NO_EXCHANGE, STRAND_BYTES, TRANSCRIPT_BYTES, Origin

FULL, PLAIN = facts(hop("A", "Z"), slots=12), facts(slots=12)
BRAIDED = [recipe for recipe in RECIPES if recipe not in {LOCAL, WRAPPED}]


def opened(of=FULL):
    length = 2 * TRANSCRIPT_BYTES + of.record.slots * STRAND_BYTES * len(of.record.origins)
    return OpenSegment(of, Secret(bytearray(random.Random("strands").randbytes(length))))


NAMES = NodeId("A"), NodeId("Z"), SaeId("a"), SaeId("z")
OTHERS = NodeId("A"), NodeId("Z"), SaeId("another"), SaeId("z")
POLICY = b"p" * 48


def info(recipe: Recipe, *, size: int = 256, key_id: bytes = bytes(16), names=NAMES) -> BindingInfo:
    return BindingInfo(recipe, *names, key_id, POLICY, FULL.digest, Bits(size))


def planned(segment, recipe: Recipe, *, size: int = 256) -> KeyPlan:
    return KeyPlan(segment, recipe, Bits(size), policy=POLICY)


@pytest.mark.parametrize("recipe", BRAIDED, ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("size", [64, 256, 264, 1024])
def test_a_plan_makes_the_keys_that_combine_makes(recipe, size):
    segment = opened()
    plan = planned(segment, recipe, size=size)
    for slot, names in ((0, NAMES), (3, OTHERS), (7, NAMES)):
        key_id = bytes([slot]) * 16
        bundles = [segment.bundle(one, recipe.origins) for one in range(slot, slot + plan.slots)]
        exchanged = recipe.origins & {Origin.CLASSICAL, Origin.PQC}
        whole = combine(
            bundles,
            recipe=recipe,
            transcript=segment.transcript if exchanged else NO_EXCHANGE,
            info=info(recipe, size=size, key_id=key_id, names=names),
            size=Bits(size),
        )
        assert plan.key(slot, key_id, Parties(*names)) == bytes(whole.view())


def test_no_key_is_planned_without_an_origin_of_its_recipe():
    with pytest.raises(MissingOriginError, match="qkd"):
        planned(opened(PLAIN), HYBRID_CATKDF)


def test_no_key_is_planned_of_a_size_that_the_recipe_does_not_make():
    with pytest.raises(InvalidRequestError):
        planned(opened(), HYBRID_CATKDF, size=32)


@pytest.mark.parametrize("recipe", BRAIDED, ids=lambda recipe: recipe.name)
def test_a_wiped_segment_makes_no_key(recipe):
    segment = opened()
    plan = planned(segment, recipe)
    segment.wipe()
    with pytest.raises(ValueError, match="no such slot"):
        plan.key(1, bytes(16), Parties(*NAMES))


def test_there_is_no_key_beyond_the_last_slot():
    plan = planned(opened(), HYBRID_CATKDF)
    with pytest.raises(ValueError, match="no such slot"):
        plan.key(12, bytes(16), Parties(*NAMES))
