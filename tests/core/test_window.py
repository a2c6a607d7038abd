from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.records import facts, hop

from trenza.base.units import Nanoseconds
from trenza.core.window import HeldWindow, IssuerPool, IssuerWindow

FULL, PLAIN = facts(hop("A", "Z"), slots=100), facts(slots=100)


def window(number=1, *, of=FULL, first=0, count=8):
    return IssuerWindow(number, of, first, count, next=first, reserved=first + count)


def held(*, first=4, count=8):
    return HeldWindow(1, FULL, first, count, granted=Nanoseconds(0))


def anything(_facts):
    return True


# --- the issuer


counts = st.lists(st.integers(0, 20), min_size=1, max_size=6)
requests = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4), st.booleans()), max_size=30)


@given(counts, requests, st.lists(st.integers(0, 30), max_size=4))
def test_no_slot_is_taken_twice_and_none_outside_a_window(counts, requests, removals):
    pool, granted, taken = IssuerPool(), set(), []
    first = 0
    for number, count in enumerate(counts):
        of = FULL if number % 2 else PLAIN
        pool.add(window(number, of=of, first=first, count=count))
        granted |= {(number, slot) for slot in range(first, first + count)}
        first += count
    for turn, (keys, slots, full) in enumerate(requests):
        takes = pool.take(keys, full=full, slots=slots, accept=anything)
        assert len(takes) in {0, keys}
        assert all(take.window.facts.full is full for take in takes)
        taken += [(take.window.number, slot) for take in takes for slot in range(take.slot, take.slot + take.slots)]
        if turn in removals:
            pool.remove(turn % len(counts))
    assert len(taken) == len(set(taken))
    assert set(taken) <= granted


@given(st.integers(1, 12), st.integers(1, 4))
def test_what_is_available_can_be_taken_and_one_more_cannot(count, slots):
    pool = IssuerPool()
    pool.add(window(1, count=count))
    pool.add(window(2, first=count, count=5))
    keys = pool.available(full=True, slots=slots)
    assert pool.take(keys + 1, full=True, slots=slots, accept=anything) == []
    assert pool.available(full=True, slots=slots) == keys  # a refusal takes nothing
    assert len(pool.take(keys, full=True, slots=slots, accept=anything)) == keys
    assert pool.available(full=True, slots=slots) == 0


def test_the_oldest_window_goes_first_and_a_short_tail_is_skipped():
    pool = IssuerPool()
    pool.add(window(1, count=3))
    pool.add(window(2, first=50, count=4))
    takes = pool.take(2, full=True, slots=2, accept=anything)
    assert [(take.window.number, take.slot) for take in takes] == [(1, 0), (2, 50)]
    (single,) = pool.take(1, full=True, slots=1, accept=anything)
    assert (single.window.number, single.slot) == (1, 2)  # the tail still serves a key that fits


def test_a_window_that_the_caller_does_not_accept_is_left_alone():
    pool = IssuerPool()
    pool.add(window())
    assert pool.available(full=True, accept=lambda _: False) == 0
    assert pool.take(1, full=True, slots=1, accept=lambda _: False) == []
    assert next(iter(pool)).left == 8


@pytest.mark.parametrize(
    "second",
    [
        window(1, first=50),
        window(2, first=7, count=1),
        window(2, first=0, count=1),
        window(2, first=3, count=90),
    ],
    ids=["same number", "last slot", "first slot", "around the end"],
)
def test_a_window_that_overlaps_one_held_already_is_refused(second):
    pool = IssuerPool()
    pool.add(window())
    with pytest.raises(ValueError, match="overlaps"):
        pool.add(second)
    assert [one.number for one in pool] == [1]


def test_windows_side_by_side_or_of_other_segments_do_not_overlap():
    pool = IssuerPool()
    pool.add(window())
    pool.add(window(2, first=8))
    pool.add(window(3, of=facts(hop("A", "Z"), segment=b"another segment.")))
    assert pool.available(full=True) == 24


def test_a_removed_window_issues_nothing_more():
    pool = IssuerPool()
    pool.add(window())
    assert pool.remove(1) is not None
    assert pool.remove(1) is None
    assert pool.available(full=True) == 0


# --- the holder


deeds = st.lists(
    st.tuples(st.sampled_from(["reserve", "release", "void"]), st.integers(0, 16), st.integers(1, 4)), max_size=40
)


@given(deeds)
def test_no_slot_is_delivered_twice_whatever_the_interleaving(deeds):
    one, delivered, voided = held(), set(), set()
    for deed, first, count in deeds:
        slots = range(first, first + count)
        match deed:
            case "reserve" if one.reserve(slots):
                assert not delivered & set(slots)
                assert not voided & set(slots)
                assert set(slots) <= set(range(4, 12))
                delivered |= set(slots)
            case "release" if set(slots) <= delivered:
                one.release(slots)
                delivered -= set(slots)
            case "void":
                one.void |= set(slots) & set(range(4, 12))
                voided |= set(slots)
        assert one.delivered == delivered
        assert one.spent is (set(range(4, 12)) <= delivered | voided)


def test_a_refused_reservation_reserves_no_part_of_it():
    one = held()
    assert one.reserve(range(6, 7))
    assert not one.reserve(range(5, 7))
    assert one.delivered == {6}
    assert not one.reserve(range(11, 13))  # its end is outside
    assert not one.reserve(range(3, 5))  # its beginning is
    assert one.delivered == {6}


@given(st.lists(st.integers(0, 20), max_size=20))
def test_marks_only_go_forward_and_never_beyond_the_window(told):
    one = held()
    for moment, issued in enumerate(told):
        before = one.issued
        one.mark(issued, Nanoseconds(moment))
        assert one.issued == min(8, max(before, issued))
    assert [issued for issued, _ in one.marks] == sorted({issued for issued, _ in one.marks})
    assert (one.closed is not None) is (one.issued == 8)


def test_when_a_slot_was_issued_is_known_from_the_first_mark_beyond_it():
    one = held()
    one.mark(2, Nanoseconds(10))
    one.mark(5, Nanoseconds(20))
    assert [one.heard_at(slot) for slot in (4, 5, 6, 8, 9)] == [10, 10, 20, 20, None]
    one.closed = Nanoseconds(30)
    assert one.heard_at(9) == 30


# --- sub-ranges


def empty(number=1, *, of=FULL, first=0, count=8):
    return IssuerWindow(number, of, first, count, next=first, reserved=first)


def test_only_what_was_reserved_can_be_taken():
    pool = IssuerPool()
    pool.add(empty())
    assert pool.take(1, full=True, slots=1, accept=anything) == []
    assert (pool.available(full=True), pool.in_hand(full=True)) == (8, 0)
    ((granted, mark),) = pool.reservable(3, full=True, accept=anything)
    granted.reserved = mark
    assert (mark, pool.in_hand(full=True)) == (3, 3)
    assert len(pool.take(3, full=True, slots=1, accept=anything)) == 3
    assert pool.take(1, full=True, slots=1, accept=anything) == []


@given(st.integers(0, 40), st.integers(1, 4), st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_a_reservation_brings_what_was_wanted_as_far_as_the_windows_reach(wanted, slots, counts):
    pool, first = IssuerPool(), 0
    for number, count in enumerate(counts):
        pool.add(empty(number, first=first, count=count))
        first += count
    possible = pool.available(full=True, slots=slots)
    for one, mark in pool.reservable(wanted, full=True, slots=slots, accept=anything):
        assert one.reserved < mark <= one.end
        one.reserved = mark
    keys = min(-(-wanted // slots), possible)
    assert len(pool.take(keys, full=True, slots=slots, accept=anything)) == keys


def test_enough_in_hand_asks_for_no_reservation():
    pool = IssuerPool()
    pool.add(window())
    assert pool.reservable(8, full=True, accept=anything) == []


def test_of_a_removed_window_nothing_is_in_hand_for_whoever_still_holds_it():
    pool = IssuerPool()
    pool.add(window())
    removed = pool.remove(1)
    assert removed is not None
    assert removed.in_hand == 0


# --- several instances


class Row:
    """The durable mark of one window, which instances move by compare and set."""

    def __init__(self, count):
        self.mark, self.count = 0, count


def reserve(pool, row, wanted, slots, *, read_first):
    """Reserve as kms.reserving does; True where another instance was not first."""
    (mine,) = pool
    if read_first:
        mine.beyond = max(mine.mark, row.mark)
    for found, mark in pool.reservable(wanted, full=True, slots=slots, accept=anything):
        if found.mark != row.mark:
            return False
        start, row.mark = found.mark, mark
        found.won(start, mark)
    return True


steps = st.lists(
    st.tuples(
        st.integers(0, 2), st.sampled_from(["reserve", "take"]), st.integers(1, 9), st.integers(1, 3), st.booleans()
    ),
    max_size=60,
)


@given(st.integers(1, 60), steps)
def test_instances_that_share_a_window_never_take_one_slot_twice(count, steps):
    row, taken = Row(count), []
    pools = [IssuerPool() for _ in range(3)]
    for pool in pools:
        pool.add(IssuerWindow(1, FULL, 0, count, 0, 0))
    for who, what, number, slots, read_first in steps:
        pool = pools[who]
        if what == "reserve":
            reserve(pool, row, number, slots, read_first=read_first)
        else:
            can = sum(one.keys_in_hand(slots) for one in pool)
            takes = pool.take(number, full=True, slots=slots, accept=anything)
            assert len(takes) == (number if can >= number else 0)
            taken += [slot for take in takes for slot in range(take.slot, take.slot + take.slots)]
        (mine,) = pool
        assert mine.in_hand + max(0, mine.end - mine.mark) == mine.left
        assert mine.issued <= row.mark
    assert len(taken) == len(set(taken))
    assert all(slot < row.mark <= count for slot in taken)


def test_what_others_have_reserved_is_left_out_and_counts_as_issued():
    one = IssuerWindow(1, FULL, 0, 32, 0, 8)
    one.next, one.beyond = 6, 16  # another instance has 8 to 15
    one.won(16, 24)
    assert [one.left, one.in_hand, one.mark, one.issued] == [18, 10, 24, 24]
    pool = IssuerPool()
    pool.add(one)
    assert [take.slot for take in pool.take(5, full=True, slots=2, accept=anything)] == [6, 16, 18, 20, 22]
    assert one.left == 8
