"""The model of windows and lives: it holds in every world that is explored, and would show a rule left out."""

from __future__ import annotations

import pytest
from formal.model import Flaw
from formal.worlds import (
    FLAWED,
    FLAWED_REMEMBERED,
    LARGE,
    LARGE_REMEMBERED,
    QUICK,
    QUICK_REMEMBERED,
    Remembered,
    World,
    bounds,
    explored,
    witnessed,
)

from formal import witness


@pytest.mark.parametrize("world", QUICK, ids=lambda world: world.name)
def test_no_reachable_state_of_a_small_world_breaks_a_rule(world: World) -> None:
    found = explored(world.bounds)
    assert found.wrong is None, found.told()
    assert found.whole, f"only {found.states} states were visited"


@pytest.mark.slow
@pytest.mark.parametrize("world", LARGE, ids=lambda world: world.name)
def test_no_reachable_state_of_a_larger_world_breaks_a_rule(world: World) -> None:
    found = explored(world.bounds)
    assert found.wrong is None, found.told()
    assert found.whole, f"only {found.states} states were visited"


@pytest.mark.parametrize("flaw", Flaw, ids=lambda flaw: flaw.name)
def test_a_rule_left_out_shows(flaw: Flaw) -> None:
    found = explored(FLAWED[flaw].with_flaw(flaw))
    assert found.wrong is not None
    assert found.trace[0][0] == "(the beginning)"
    assert found.trace[-1][1].wrong in {found.wrong, None}


def test_the_world_that_shows_a_flaw_holds_without_it() -> None:
    for flaw in (Flaw.LEFT_WITH_SECONDS, Flaw.LEFT_AFTER_A_CRASH, Flaw.CEDED_UNSEEN, Flaw.TAKEN_WITHOUT_LOOKING):
        found = explored(FLAWED[flaw])
        assert found.wrong is None, found.told()


def test_an_exploration_that_stops_early_says_so() -> None:
    found = explored(bounds(2, cedes=1), most=50)
    assert not found.whole
    assert found.states == 50


# --- a peer that remembers


@pytest.mark.parametrize("world", QUICK_REMEMBERED, ids=lambda world: world.name)
def test_no_copy_with_its_anchor_uses_a_pad_again_while_its_peer_remembers(world: Remembered) -> None:
    found = witnessed(world.bounds)
    assert found.wrong is None, found.told()
    assert found.whole, f"only {found.states} states were visited"


@pytest.mark.slow
@pytest.mark.parametrize("world", LARGE_REMEMBERED, ids=lambda world: world.name)
def test_no_copy_uses_a_pad_again_in_a_larger_world(world: Remembered) -> None:
    found = witnessed(world.bounds)
    assert found.wrong is None, found.told()
    assert found.whole, f"only {found.states} states were visited"


@pytest.mark.parametrize("flaw", witness.Flaw, ids=lambda flaw: flaw.name)
def test_a_rule_about_copies_left_out_shows(flaw: witness.Flaw) -> None:
    found = witnessed(FLAWED_REMEMBERED[flaw].with_flaw(flaw))
    assert found.wrong is not None
    assert witnessed(FLAWED_REMEMBERED[flaw]).wrong is None
