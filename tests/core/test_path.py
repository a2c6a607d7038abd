from __future__ import annotations

from itertools import pairwise, permutations

from hypothesis import given
from hypothesis import strategies as st

from trenza.base.names import LinkId, NodeId
from trenza.core.path import Route, best_path
from trenza.core.policy import LinkEntry

A, B, C, D, E = (NodeId(name) for name in "abcde")


def network(*levels: tuple[str, str, int]) -> tuple[list[LinkEntry], dict[tuple[LinkId, NodeId], int]]:
    """Links named by their ends ("ab"), with the same key in both directions."""
    links, available = [], {}
    for one, other, units in levels:
        name = LinkId(one + other)
        links.append(LinkEntry(name, (NodeId(one), NodeId(other))))
        available[name, NodeId(one)] = available[name, NodeId(other)] = units
    return links, available


def test_the_direct_link_is_taken_when_it_has_plenty():
    links, available = network(("a", "b", 80), ("a", "c", 10_000), ("c", "b", 10_000))
    assert best_path(A, B, links, available, 10, max_hops=5) == Route((A, B), 80)


def test_a_detour_is_taken_where_it_has_twice_the_key():
    links, available = network(("a", "b", 19), ("a", "c", 25), ("c", "b", 20))
    assert best_path(A, B, links, available, 10, max_hops=5) == Route((A, C, B), 20)
    assert best_path(A, B, links, available, 20, max_hops=5) == Route((A, C, B), 20)


def test_a_detour_for_a_little_more_key_is_not_worth_another_relay():
    links, available = network(("a", "b", 20), ("a", "c", 39), ("c", "b", 39))
    assert best_path(A, B, links, available, 10, max_hops=5) == Route((A, B), 20)


def test_equal_paths_are_told_apart_by_name():
    links, available = network(("a", "d", 9), ("d", "b", 9), ("a", "c", 9), ("c", "b", 9))
    assert best_path(A, B, links, available, 1, max_hops=5) == Route((A, C, B), 9)


def test_key_counts_in_the_direction_of_sending_only():
    links = [LinkEntry(LinkId("ab"), (A, B))]
    available = {(LinkId("ab"), B): 100}
    assert best_path(A, B, links, available, 1, max_hops=5) is None
    assert best_path(B, A, links, available, 1, max_hops=5) == Route((B, A), 100)


def test_of_parallel_links_the_fullest_counts():
    links = [LinkEntry(LinkId("thin"), (A, B)), LinkEntry(LinkId("thick"), (B, A))]
    available = {(LinkId("thin"), A): 1, (LinkId("thick"), A): 50}
    assert best_path(A, B, links, available, 10, max_hops=1) == Route((A, B), 50)
    assert best_path(A, B, links, available, 10, max_hops=1, avoid_links=(LinkId("thick"),)) is None


def test_relays_are_those_allowed_and_not_those_to_avoid():
    links, available = network(("a", "c", 9), ("c", "b", 9), ("a", "d", 9), ("d", "e", 9), ("e", "b", 9))
    assert best_path(A, B, links, available, 1, allowed_nodes=(D, E), max_hops=5) == Route((A, D, E, B), 9)
    assert best_path(A, B, links, available, 1, avoid_nodes=(C,), max_hops=5) == Route((A, D, E, B), 9)
    assert best_path(A, B, links, available, 1, allowed_nodes=(D,), max_hops=5) is None
    assert best_path(A, B, links, available, 1, avoid_nodes=(C,), max_hops=2) is None


NODES = [NodeId(name) for name in "abcde"]
PAIRS = [(one, other) for one in NODES for other in NODES if one < other]


@given(
    levels=st.lists(st.tuples(st.sampled_from(PAIRS), st.integers(0, 20), st.integers(0, 20)), max_size=12),
    units=st.integers(1, 6),
    allowed=st.lists(st.sampled_from(NODES), max_size=3),
    avoid=st.lists(st.sampled_from(NODES), max_size=2),
    max_hops=st.integers(1, 4),
)
def test_no_other_path_is_better(levels, units, allowed, avoid, max_hops):
    links, available = [], {}
    widths: dict[tuple[NodeId, NodeId], int] = {}
    for number, ((one, other), forth, back) in enumerate(levels):
        name = LinkId(f"link-{number}")
        links.append(LinkEntry(name, (one, other)))
        available |= {(name, one): forth, (name, other): back}
        widths[one, other] = max(forth, widths.get((one, other), 0))
        widths[other, one] = max(back, widths.get((other, one), 0))
    found = []
    for count in range(max_hops):
        for relays in permutations([node for node in NODES if node not in {A, B}], count):
            width = min(widths.get(pair, 0) for pair in pairwise((A, *relays, B)))
            forbidden = any(node in avoid or (allowed and node not in allowed) for node in relays)
            if width >= units and not forbidden:
                plenty = max(times for times in (1, 2, 4, 8) if width >= times * units)
                found.append((-plenty, count, (A, *relays, B), width))
    best = min(found, default=None)
    route = best_path(A, B, links, available, units, allowed_nodes=allowed, max_hops=max_hops, avoid_nodes=avoid)
    assert route == (None if best is None else Route(best[2], best[3]))
