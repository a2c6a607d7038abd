from __future__ import annotations

import random

import pytest
from tests.core.records import facts, hop

from trenza.base.errors import InvalidRequestError, MissingOriginError
from trenza.base.names import NodeId, SaeId
from trenza.base.secret import Secret
from trenza.base.units import Bits
from trenza.core.binding import BindingInfo
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


def info(recipe: Recipe, *, size: int = 256, key_id: bytes = bytes(16), of=FULL) -> BindingInfo:
    names = NodeId("A"), NodeId("Z"), SaeId("a"), SaeId("z")
    return BindingInfo(recipe, *names, key_id, b"p" * 48, of.digest, Bits(size))


@pytest.mark.parametrize("recipe", BRAIDED, ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("size", [64, 256, 264, 1024])
def test_a_plan_makes_the_keys_that_combine_makes(recipe, size):
    segment = opened()
    plan = KeyPlan(segment, info(recipe, size=size))
    for slot in (0, 3, 7):
        key_id = bytes([slot]) * 16
        bundles = [segment.bundle(one, recipe.origins) for one in range(slot, slot + plan.slots)]
        exchanged = recipe.origins & {Origin.CLASSICAL, Origin.PQC}
        whole = combine(
            bundles,
            recipe=recipe,
            transcript=segment.transcript if exchanged else NO_EXCHANGE,
            info=info(recipe, size=size, key_id=key_id),
            size=Bits(size),
        )
        assert plan.key(slot, key_id) == bytes(whole.view())


def test_no_key_is_planned_without_an_origin_of_its_recipe():
    with pytest.raises(MissingOriginError, match="qkd"):
        KeyPlan(opened(PLAIN), info(HYBRID_CATKDF, of=PLAIN))


def test_no_key_is_planned_of_a_size_that_the_recipe_does_not_make():
    with pytest.raises(InvalidRequestError):
        KeyPlan(opened(), info(HYBRID_CATKDF, size=32))


@pytest.mark.parametrize("recipe", BRAIDED, ids=lambda recipe: recipe.name)
def test_a_wiped_segment_makes_no_key(recipe):
    segment = opened()
    plan = KeyPlan(segment, info(recipe))
    segment.wipe()
    with pytest.raises(ValueError, match="no such slot"):
        plan.key(1, bytes(16))


def test_there_is_no_key_beyond_the_last_slot():
    plan = KeyPlan(opened(), info(HYBRID_CATKDF))
    with pytest.raises(ValueError, match="no such slot"):
        plan.key(12, bytes(16))
