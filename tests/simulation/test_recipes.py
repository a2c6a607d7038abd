"""Every recipe that a policy may name, through a whole network with a relay in it: one key at both ends."""

from __future__ import annotations

import dataclasses

import pytest
from msgspec.structs import replace
from tests.simulation.acts import fetch, issue, started
from tests.simulation.networks import network

from trenza.app.scenario import Scenario
from trenza.core.policy import Policy, Rule
from trenza.core.recipe import LOCAL, RECIPES, WRAPPED, Recipe
from trenza.lab.history import violations
from trenza.lab.loop import run
from trenza.lab.plan import SMALL

SIZES = (64, 128, 256, 264, 512, 1_024, 2_048)


def of_recipe(recipe: Recipe) -> Scenario:
    """Return a chain of three whose ends share keys of one recipe; `local` keys stay at one node."""
    near, far = ("A1", "A2") if recipe is LOCAL else ("A1", "C1")
    policy = Policy("one", (recipe.name,), min_key_size=64, max_key_size=2_048)
    return replace(network("ABC", "AB BC", {}), policies=(policy,), rules=(Rule((near, far), "one"),))


@pytest.mark.parametrize("recipe", [one for one in RECIPES if one is not WRAPPED], ids=lambda one: one.name)
def test_keys_of_every_size_are_the_same_at_both_ends_and_say_what_they_are_made_of(recipe: Recipe) -> None:
    async def story() -> None:
        scenario = of_recipe(recipe)
        world = await started(scenario, settings=dataclasses.replace(SMALL, stock_target=96))
        one, other = scenario.rules[0].between
        seen: set[bytes] = set()
        for size in SIZES:
            for caller, target in ((one, other), (other, one)):
                given = await issue(world, caller, target, number=2, size=size)
                fetched = await fetch(world, target, caller, [key.key_id for key in given])
                for mine, theirs in zip(given, fetched, strict=True):
                    assert (mine.key_id, mine.key) == (theirs.key_id, theirs.key)
                    assert len(mine.key) * 8 == size
                    assert mine.facts.recipe == theirs.facts.recipe == recipe.name
                    assert set(mine.facts.origins) == recipe.origins
                    assert mine.facts.hops == (2 if recipe.needs_qkd else 0)
                    seen.add(bytes(mine.key.view()))
        assert len(seen) == len(SIZES) * 4, "no key twice"
        await world.stop_all()
        assert world.failures == {}
        assert violations(world.history) == []

    run(story())
