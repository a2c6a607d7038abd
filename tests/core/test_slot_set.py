from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trenza.core.slot_set import SlotSet

ranges = st.tuples(st.integers(0, 12), st.integers(0, 6))
deeds = st.lists(st.tuples(st.booleans(), ranges), max_size=12)


def slots_of(one: SlotSet) -> set[int]:
    return {slot for first, count in one.ranges for slot in range(first, first + count)}


@given(deeds, ranges)
def test_it_is_a_set_of_slots(deeds, asked):
    built, expected = SlotSet(), set()
    for adds, (first, count) in deeds:
        built = built.with_range(first, count) if adds else built.without(first, count)
        expected = expected | {*range(first, first + count)} if adds else expected - {*range(first, first + count)}
    assert slots_of(built) == expected
    assert len(built) == len(expected)
    ends = [(first, first + count) for first, count in built.ranges]
    assert all(end < start for (_, end), (start, _) in pairwise(ends))
    first, count = asked
    assert built.covers(first, count) is (count > 0 and {*range(first, first + count)} <= expected)
    assert all((slot in built) is (slot in expected) for slot in range(20))


@given(st.lists(ranges.filter(lambda one: one[1] > 0), min_size=1, max_size=5), st.integers(1, 5))
def test_both_ends_can_be_taken_in_parts(several, most):
    built = SlotSet()
    for first, count in several:
        built = built.with_range(first, count)
    low, high = built.lowest(most), built.highest(most)
    assert built.covers(*low)
    assert built.covers(*high)
    assert low[0] == min(slots_of(built))
    assert sum(high) - 1 == max(slots_of(built))
    assert max(low[1], high[1]) <= most


@pytest.mark.parametrize("nothing", [SlotSet(), SlotSet.of(3, 0)])
def test_nothing_is_in_an_empty_set(nothing):
    assert not nothing
    assert "3" not in nothing
    assert 3 not in nothing
