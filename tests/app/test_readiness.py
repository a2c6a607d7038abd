"""A network is ready when every rule's pair can issue, in both directions, what its policy names first."""

from trenza.app.readiness import Direction, directions_of
from trenza.app.scenario import load_scenario, read_scenario

NODES = "".join(
    f'[[nodes]]\nname = "{name}"\noperator = "o"\nregion = "r"\nevidence = "invented"\n'
    f'[[saes]]\nname = "sae-{name}"\nnode = "{name}"\n'
    for name in "AB"
)
LINK = """
[[links]]
name = "A-B"
ends = ["A", "B"]
length_km = 1.0
loss_db = 1.0
evidence = "invented"
loss_evidence = "invented"
"""


def scenario(ladder):
    rule = f'[[policies]]\nname = "p"\nladder = {ladder}\n[[rules]]\nbetween = ["sae-A", "sae-B"]\npolicy = "p"\n'
    return read_scenario(f'name = "n"\ntitle = "t"\n{NODES}{LINK}{rule}')


def test_both_directions_of_a_pair_must_be_filled_and_each_is_asked_for_once():
    assert directions_of(load_scenario("two-nodes")) == (
        Direction("Alice", "Bob", full=True, recipe="hybrid-catkdf"),
        Direction("Bob", "Alice", full=True, recipe="hybrid-catkdf"),
    )


def test_the_first_recipe_of_the_ladder_decides_what_is_waited_for():
    first, second = directions_of(scenario('["exchange-catkdf", "hybrid-catkdf"]'))
    assert (first.full, second.full) == (False, False)
    assert str(first) == "A to B (exchange-catkdf)"


def test_a_recipe_for_one_node_is_not_waited_for():
    first, _ = directions_of(scenario('["local", "hybrid-catkdf"]'))
    assert first.recipe == "hybrid-catkdf"


def test_a_network_without_rules_is_ready_at_once():
    assert directions_of(read_scenario(f'name = "n"\ntitle = "t"\n{NODES}{LINK}')) == ()
