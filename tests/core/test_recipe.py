from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trenza.base.errors import InvalidRequestError
from trenza.base.units import Bits
from trenza.core.recipe import (
    HYBRID_CATKDF,
    ITS,
    LOCAL,
    QKD_ONLY,
    RECIPES,
    SIZE_MIN,
    STRETCHED_SIZE_MAX,
    WRAPPED,
    recipe_named,
    recipe_of_code,
)
from trenza.core.strand import Origin

BIT_FOR_BIT = {ITS, QKD_ONLY, LOCAL, WRAPPED}
STRETCHED = [recipe for recipe in RECIPES if recipe not in BIT_FOR_BIT]


def test_codes_are_the_places_in_the_table_and_fit_four_bits():
    assert [recipe.code for recipe in RECIPES] == list(range(len(RECIPES)))
    assert len(RECIPES) <= 16


def test_no_two_recipes_share_a_name_a_suite_id_or_a_meaning():
    assert len({recipe.name for recipe in RECIPES}) == len(RECIPES)
    assert len({recipe.suite_id for recipe in RECIPES}) == len(RECIPES)
    alike = {(recipe.origins, recipe.combiner) for recipe in RECIPES if recipe is not WRAPPED}
    assert len(alike) == len(RECIPES) - 1  # `wrapped` and `local` both are random keys; how they travel differs


def test_suite_ids_have_one_length():
    assert {len(recipe.suite_id) for recipe in RECIPES} == {8}


def test_the_first_of_the_table_demands_all_three_origins():
    assert HYBRID_CATKDF.code == 0
    assert HYBRID_CATKDF.origins == {Origin.CLASSICAL, Origin.PQC, Origin.QKD}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_recipe_is_found_by_code_and_by_name(recipe):
    assert recipe_of_code(recipe.code) is recipe
    assert recipe_named(recipe.name) is recipe


@pytest.mark.parametrize("code", [-1, len(RECIPES), 15, 16])
def test_an_unknown_code_is_refused(code):
    with pytest.raises(InvalidRequestError, match=str(code)):
        recipe_of_code(code)


def test_an_unknown_name_is_refused_and_the_known_ones_are_told():
    with pytest.raises(InvalidRequestError, match="hybrid-catkdf"):
        recipe_named("Hybrid-CatKDF")


@pytest.mark.parametrize("recipe", STRETCHED, ids=lambda recipe: recipe.name)
def test_a_stretched_key_takes_one_slot_and_is_no_stronger_than_a_strand(recipe):
    assert recipe.slots_for(STRETCHED_SIZE_MAX) == 1
    assert str(recipe.strength(Bits(128))) == "128-bit"
    assert str(recipe.strength(Bits(1024))) == "256-bit"
    assert not recipe.strength(Bits(256)).information_theoretic


@pytest.mark.parametrize(
    "recipe", sorted(BIT_FOR_BIT, key=lambda recipe: recipe.code), ids=lambda recipe: recipe.name
)
@given(octets=st.integers(min_value=8, max_value=1 << 20))
def test_bit_for_bit_keys_take_just_enough_slots(recipe, octets):
    slots = recipe.slots_for(Bits(8 * octets))
    assert 32 * (slots - 1) < octets <= 32 * slots


def test_only_keys_with_a_qkd_bit_per_bit_are_called_information_theoretic():
    named = {recipe for recipe in RECIPES if str(recipe.strength(Bits(512))) == "information-theoretic"}
    assert named == {ITS, QKD_ONLY}
    assert str(LOCAL.strength(Bits(512))) == str(WRAPPED.strength(Bits(512))) == "256-bit"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("size", [-8, 0, SIZE_MIN - 8, 257])
def test_a_size_that_no_key_has_is_refused(recipe, size):
    with pytest.raises(InvalidRequestError):
        recipe.slots_for(Bits(size))


@pytest.mark.parametrize("recipe", STRETCHED, ids=lambda recipe: recipe.name)
def test_stretching_has_an_end(recipe):
    with pytest.raises(InvalidRequestError, match=recipe.name):
        recipe.slots_for(Bits(STRETCHED_SIZE_MAX + 8))
