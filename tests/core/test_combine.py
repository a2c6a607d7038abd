from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trenza.base.errors import InvalidRequestError, MissingOriginError
from trenza.base.names import NodeId, SaeId
from trenza.base.secret import Secret
from trenza.base.units import Bits
from trenza.core.binding import BindingInfo
from trenza.core.combine import combine
from trenza.core.recipe import HYBRID_CATKDF, ITS, QKD_ONLY, RECIPES, Combiner, Recipe, recipe_named, recipe_of_code
from trenza.core.strand import STRAND_BYTES, Bundle, Origin, Transcript

VECTORS = Path(__file__).parent / "vectors"
SIZE = Bits(512)  # two slots where each bit has its own

BOUND = [recipe for recipe in RECIPES if recipe.combiner not in {Combiner.QKD_BITS, Combiner.RANDOM}]
TRANSCRIPT = Transcript(b"A" * 48, b"B" * 48)
INFO = BindingInfo(
    recipe=HYBRID_CATKDF,
    initiator_node=NodeId("madrid"),
    target_node=NodeId("toledo"),
    initiator_sae=SaeId("sae-1"),
    target_sae=SaeId("sae-2"),
    key_id=b"k" * 16,
    policy_digest=b"p" * 48,
    provenance_digest=b"q" * 48,
    size=SIZE,
)
OTHER = {
    "recipe": HYBRID_CATKDF,
    "initiator_node": NodeId("sevilla"),
    "target_node": NodeId("sevilla"),
    "initiator_sae": SaeId("sae-3"),
    "target_sae": SaeId("sae-3"),
    "key_id": b"K" * 16,
    "policy_digest": b"P" * 48,
    "provenance_digest": b"Q" * 48,
    "size": Bits(SIZE - 8),
}
"""Another value for every field of the binding."""

each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
each_bound_recipe = pytest.mark.parametrize("recipe", BOUND, ids=lambda recipe: recipe.name)


def strand(origin: Origin, slot: int = 0, *, variant: str = "") -> bytes:
    return hashlib.sha256(f"{origin.value} {slot} {variant}".encode()).digest()


def slots(recipe: Recipe, size: Bits = SIZE, **variants: str) -> list[Bundle]:
    """Make as many bundles as a key takes; `variants` names origins whose first strand is to be another."""
    return [
        Bundle(
            {
                origin: Secret.of(strand(origin, slot, variant=variants.get(origin.value, "") if slot == 0 else ""))
                for origin in recipe.origins
            }
        )
        for slot in range(recipe.slots_for(size))
    ]


def braided(recipe: Recipe, bundles: list[Bundle] | None = None, **changes: Any) -> bytes:
    """Return the key's bytes, with some of the arguments changed."""
    transcript = changes.pop("transcript", TRANSCRIPT)
    info = dataclasses.replace(INFO, **{"recipe": recipe, **changes})
    bundles = slots(recipe, info.size) if bundles is None else bundles
    return bytes(combine(bundles, recipe=recipe, transcript=transcript, info=info, size=info.size).view())


# --- vectors ---


def vectors() -> list[Any]:
    document = json.loads((VECTORS / "combine.json").read_text())
    return [pytest.param(each, id=f"{each['recipe']}-{each['size_bits']}") for each in document["vectors"]]


@pytest.mark.parametrize("vector", vectors())
def test_every_recipe_gives_the_key_of_the_independent_computation(vector):
    recipe = recipe_of_code(vector["code"])
    initiator_node, target_node, initiator_sae, target_sae = vector["names"]
    info = BindingInfo(
        recipe=recipe,
        initiator_node=initiator_node,
        target_node=target_node,
        initiator_sae=initiator_sae,
        target_sae=target_sae,
        key_id=bytes.fromhex(vector["key_id"]),
        policy_digest=bytes.fromhex(vector["policy_digest"]),
        provenance_digest=bytes.fromhex(vector["provenance_digest"]),
        size=Bits(vector["size_bits"]),
    )
    bundles = [
        Bundle({Origin(origin): Secret.of(bytes.fromhex(octets)) for origin, octets in slot.items()})
        for slot in vector["slots"]
    ]
    transcript = Transcript(bytes.fromhex(vector["ma"]), bytes.fromhex(vector["mb"]))
    key = combine(bundles, recipe=recipe, transcript=transcript, info=info, size=info.size)
    assert recipe is recipe_named(vector["recipe"])
    assert info.encode().hex() == vector["info"]
    assert bytes(key.view()).hex() == vector["key"]


def test_the_vectors_cover_every_recipe_and_are_what_the_script_prints():
    stored = (VECTORS / "combine.json").read_text()
    script = [sys.executable, str(VECTORS / "make_combine.py")]
    printed = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    assert printed == stored
    assert {vector["code"] for vector in json.loads(stored)["vectors"]} == {recipe.code for recipe in RECIPES}


# --- what a key is bound to ---


@each_bound_recipe
@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(BindingInfo) if field.name != "recipe"])
def test_another_value_of_any_bound_field_gives_another_key(recipe, field):
    key, other = braided(recipe), braided(recipe, **{field: OTHER[field]})
    shared = min(len(key), len(other))
    assert key[:shared] != other[:shared]
    assert key[:8] != other[:8]  # from the first bytes on: no prefix survives


def test_no_two_recipes_give_the_same_key():
    keys = [braided(recipe) for recipe in BOUND]
    assert len(set(keys)) == len(BOUND)


@each_bound_recipe
@pytest.mark.parametrize("transcript", [Transcript(b"X" * 48, b"B" * 48), Transcript(b"A" * 48, b"X" * 48)])
def test_another_message_in_either_direction_gives_another_key(recipe, transcript):
    assert braided(recipe) != braided(recipe, transcript=transcript)


@each_recipe
def test_another_strand_of_any_origin_gives_another_key(recipe):
    key = braided(recipe)
    for origin in recipe.origins:
        assert braided(recipe, slots(recipe, **{origin.value: "another"})) != key


@each_bound_recipe
def test_origins_do_not_stand_in_for_each_other(recipe):
    first, second = sorted(recipe.origins, key=lambda origin: origin.value)[:2]
    bundles = slots(recipe)
    swapped = {origin: Secret.of(strand(origin)) for origin in recipe.origins}
    swapped[first], swapped[second] = swapped[second], swapped[first]
    assert braided(recipe, [Bundle(swapped), *bundles[1:]]) != braided(recipe)


@each_recipe
def test_both_ends_braid_the_same_key_and_keep_their_strands(recipe):
    bundles = slots(recipe)
    assert braided(recipe, bundles) == braided(recipe, bundles) == braided(recipe)
    assert len(braided(recipe)) == SIZE // 8


# --- what is refused ---


@each_recipe
def test_a_slot_that_lacks_an_origin_is_refused(recipe):
    for absent in recipe.origins:
        bundles = slots(recipe)
        rest = {origin: bundles[-1].strand(origin) for origin in recipe.origins - {absent}}
        with pytest.raises(MissingOriginError, match=absent.value):
            braided(recipe, [*bundles[:-1], Bundle(rest)])


@each_recipe
def test_a_slot_with_an_origin_too_many_is_refused(recipe):
    bundles = slots(recipe)
    more = {origin: bundles[-1].strand(origin) for origin in recipe.origins}
    more[Origin.PRESHARED] = Secret.of(strand(Origin.PRESHARED))
    with pytest.raises(ValueError, match="does not name"):
        braided(recipe, [*bundles[:-1], Bundle(more)])


@each_recipe
@pytest.mark.parametrize("length", [0, STRAND_BYTES - 1, STRAND_BYTES + 1])
def test_a_strand_of_another_length_is_refused(recipe, length):
    for wrong in recipe.origins:
        bundles = slots(recipe)
        strands = {origin: bundles[-1].strand(origin) for origin in recipe.origins}
        strands[wrong] = Secret(bytearray(b"x" * length))
        with pytest.raises(ValueError, match=f"{wrong.value} strand has {length} bytes"):
            braided(recipe, [*bundles[:-1], Bundle(strands)])


@each_recipe
def test_a_wiped_slot_is_refused(recipe):
    bundles = slots(recipe)
    bundles[-1].wipe()
    with pytest.raises(ValueError, match="all zeros"):
        braided(recipe, bundles)


@each_recipe
def test_too_few_or_too_many_slots_are_refused(recipe):
    bundles = slots(recipe)
    for wrong in (bundles[1:], [*bundles, bundles[0]]):
        with pytest.raises(ValueError, match="slots"):
            braided(recipe, wrong)


@each_recipe
def test_a_size_that_no_key_has_is_refused(recipe):
    with pytest.raises(InvalidRequestError):
        braided(recipe, slots(recipe), size=Bits(SIZE + 1))


def test_a_binding_that_speaks_of_another_recipe_or_size_is_refused():
    bundles = slots(HYBRID_CATKDF)
    for info, size in (
        (dataclasses.replace(INFO, recipe=ITS), SIZE),
        (INFO, Bits(256)),
    ):
        with pytest.raises(ValueError, match="another recipe or size"):
            combine(bundles, recipe=HYBRID_CATKDF, transcript=TRANSCRIPT, info=info, size=size)


# --- the algebra of the recipes that give each bit its own ---

qkd_strands = st.lists(st.binary(min_size=32, max_size=32).filter(any), min_size=3, max_size=3)


def its_key(qkd: list[bytes], size: Bits) -> bytes:
    bundles = [
        Bundle(
            {
                Origin.QKD: Secret.of(octets),
                Origin.PQC: Secret.of(strand(Origin.PQC, slot)),
                Origin.CLASSICAL: Secret.of(strand(Origin.CLASSICAL, slot)),
            }
        )
        for slot, octets in enumerate(qkd)
    ]
    return braided(ITS, bundles, size=size)


def xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


@given(qkd_strands, qkd_strands, st.integers(min_value=65, max_value=96))
def test_its_keys_differ_exactly_where_their_qkd_bits_do(one, other, length):
    size = Bits(8 * length)
    difference = xor(b"".join(one), b"".join(other))[:length]
    assert xor(its_key(one, size), its_key(other, size)) == difference


def test_its_masks_differ_between_slots_even_if_the_strands_were_the_same():
    bundle = Bundle({origin: Secret.of(strand(origin)) for origin in ITS.origins})
    key = braided(ITS, [bundle, bundle])
    assert key[:32] != key[32:]


@given(qkd_strands, st.integers(min_value=65, max_value=96))
def test_a_qkd_only_key_is_the_bits_themselves(qkd, length):
    bundles = [Bundle({Origin.QKD: Secret.of(octets)}) for octets in qkd]
    assert braided(QKD_ONLY, bundles, size=Bits(8 * length)) == b"".join(qkd)[:length]
