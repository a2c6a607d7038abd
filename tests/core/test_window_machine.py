"""An issuer's windows and their holder, step by step: no slot in two keys, none before it is reserved."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.core.records import facts
from tests.machines import QUICK

from trenza.core.segment import SegmentFacts
from trenza.core.window import HeldWindow, IssuerPool, IssuerWindow, Take

SLOTS = 24


def anything(_facts: SegmentFacts) -> bool:
    return True


class Windows(RuleBasedStateMachine):
    """Two nodes and the segments that one of them issues from."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = IssuerPool()
        self.held: dict[int, HeldWindow] = {}
        self.segments: list[tuple[SegmentFacts, int]] = []  # and how far each is granted
        self.windows = 0
        self.taken: dict[tuple[bytes, int], Take] = {}
        self.delivered: set[tuple[int, int]] = set()
        self.reserved: set[tuple[bytes, int]] = set()

    @rule()
    def fill(self) -> None:
        name = len(self.segments).to_bytes(16, "big")
        self.segments.append((facts(segment=name, slots=SLOTS), 0))

    @precondition(lambda self: any(granted < SLOTS for _, granted in self.segments))
    @rule(count=st.integers(1, SLOTS))
    def grant(self, count: int) -> None:
        at = next(i for i, (_, granted) in enumerate(self.segments) if granted < SLOTS)
        segment, first = self.segments[at]
        count = min(count, SLOTS - first)
        self.segments[at] = segment, first + count
        self.held[self.windows] = HeldWindow(self.windows, segment, first, count, 0)
        self.pool.add(IssuerWindow(self.windows, segment, first, count, first, first))
        self.windows += 1

    @rule(wanted=st.integers(1, 30), slots=st.integers(1, 5))
    def reserve(self, wanted: int, slots: int) -> None:
        for window, mark in self.pool.reservable(wanted, full=False, slots=slots, accept=anything):
            assert window.reserved < mark <= window.end
            self.reserved |= {(window.facts.record.segment, slot) for slot in range(window.first, mark)}
            window.reserved = mark

    @rule(keys=st.integers(1, 5), slots=st.integers(1, 5))
    def take(self, keys: int, slots: int) -> None:
        before = self.pool.in_hand(full=False)
        takes = self.pool.take(keys, full=False, slots=slots, accept=anything)
        assert len(takes) in (0, keys)
        assert self.pool.in_hand(full=False) == before - len(takes) * slots
        for one in takes:
            for slot in range(one.slot, one.slot + one.slots):
                name = one.window.facts.record.segment, slot
                assert name in self.reserved
                assert name not in self.taken
                self.taken[name] = one

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(list(self.taken.values())))
        held = self.held[one.window.number]
        slots = range(one.slot, one.slot + one.slots)
        names = {(held.number, slot) for slot in slots}
        fresh = not names & self.delivered and not held.void.intersection(slots)
        assert held.reserve(slots) is fresh
        if fresh and data.draw(st.booleans()):
            self.delivered |= names
        elif fresh:
            held.release(slots)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), claimed=st.integers(0, 2 * SLOTS))
    def tell(self, data: st.DataObject, claimed: int) -> None:
        held = data.draw(st.sampled_from(list(self.held.values())))
        before = held.issued
        held.mark(claimed, len(self.taken))
        assert before <= held.issued <= held.count

    @rule()
    def restart(self) -> None:
        """The issuer drops its windows; what it had in hand is nobody's."""
        for window in list(self.pool):
            assert self.pool.remove(window.number) is window
            assert window.in_hand == 0

    @invariant()
    def what_is_available_is_what_is_left(self) -> None:
        assert self.pool.available(full=False) == sum(window.left for window in self.pool)
        assert self.pool.in_hand(full=False) <= self.pool.available(full=False)
        for window in self.pool:
            assert window.first <= window.next <= max(window.next, window.reserved) <= window.end

    @invariant()
    def what_is_delivered_stays_so(self) -> None:
        for held in self.held.values():
            mine = {slot for number, slot in self.delivered if number == held.number}
            assert mine == held.delivered
            assert held.spent == (len(mine | held.void) >= held.count)


TestWindows = Windows.TestCase
TestWindows.settings = QUICK
