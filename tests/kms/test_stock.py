"""The counts of a stock against what adding up says, whatever happens (trenza.kms.stock, trenza.kms.held)."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trenza.base.names import NodeId
from trenza.base.units import Nanoseconds
from trenza.core.choice import Acceptance
from trenza.core.provenance import FORMAT_VERSION, Hop, Lineage, SegmentRecord
from trenza.core.segment import FULL_ORIGINS, PLAIN_ORIGINS, SegmentFacts
from trenza.core.slot_set import SlotSet
from trenza.core.strand import Supply
from trenza.core.window import HeldWindow
from trenza.kms.held import Holding
from trenza.kms.stock import Segment, Stock

A, B = NodeId("A"), NodeId("B")
SLOTS = 32
WAYS = ("", "C", "CD")
MINUTE = 60 * 10**9
MOMENTS = st.integers(0, 12).map(lambda minutes: Nanoseconds(minutes * MINUTE))
ACCEPTANCES = st.builds(
    Acceptance,
    max_hops=st.integers(0, 3),
    relays=st.sampled_from([frozenset[NodeId](), frozenset({NodeId("C")}), frozenset(map(NodeId, "CD"))]),
    oldest=MOMENTS,
)


def a_segment(number: int, way: str, created: Nanoseconds, *, full: bool, issuer: NodeId) -> Segment:
    nodes = [A, *map(NodeId, way), B]
    hops = [
        Hop(f"{one}{other}", one, other, Supply.WARM, emulated=True, bootstrap="", epsilon=1e-12)
        for one, other in pairwise(nodes)
    ]
    record = SegmentRecord(
        version=FORMAT_VERSION,
        segment=number.to_bytes(16, "big"),
        leader=A,
        follower=B,
        issuer=issuer,
        slots=SLOTS,
        origins=FULL_ORIGINS if full else PLAIN_ORIGINS,
        lineage=Lineage(bytes(16), "scheme", bytes(96), ()),
        hops=tuple(hops) if full else (),
        created=created,
        uncertainty=Nanoseconds(0),
    )
    return Segment.fresh(B, SegmentFacts.of(record.encode()))


class StockMachine(RuleBasedStateMachine):
    """What `kms.pools` does to the segments of a pair, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.stock = Stock()
        self.number = 0
        self.accept = Acceptance(9, frozenset(), Nanoseconds(0))
        self.over: set[bytes] = set()  # without an unused slot, and not told of since

    @rule(way=st.sampled_from(WAYS), created=MOMENTS, full=st.booleans(), issuer=st.sampled_from([A, B]))
    def fill(self, way: str, created: Nanoseconds, *, full: bool, issuer: NodeId) -> None:
        self.number += 1
        self.stock.add(a_segment(self.number, way, created, full=full, issuer=issuer))

    @precondition(lambda self: self.stock)
    @rule(data=st.data(), first=st.integers(0, SLOTS - 1), count=st.integers(1, SLOTS), mine=st.booleans())
    def take(self, data: st.DataObject, first: int, count: int, *, mine: bool) -> None:
        segment = self.one(data)
        if mine:
            segment.mine = segment.mine.without(first, count)
        else:
            segment.theirs = segment.theirs.without(first, count)
        if not segment.unused:
            self.over.add(segment.id)

    @precondition(lambda self: self.stock)
    @rule(data=st.data(), first=st.integers(0, SLOTS - 1), mine=st.booleans())
    def give_back(self, data: st.DataObject, first: int, *, mine: bool) -> None:
        segment = self.one(data)
        if mine:
            segment.mine = segment.mine.with_range(first, SLOTS - first)
        else:
            segment.theirs = segment.theirs.with_range(first, SLOTS - first)

    @precondition(lambda self: self.stock)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        segment = self.one(data)
        self.stock.remove(segment.id)
        self.over.discard(segment.id)
        segment.mine = SlotSet()  # which no longer concerns the stock

    @precondition(lambda self: self.stock)
    @rule(data=st.data())
    def let_a_window_go(self, data: st.DataObject) -> None:
        segment = self.one(data)
        self.stock.look_again(segment.id)
        if not segment.unused:
            self.over.add(segment.id)

    @rule()
    def tidy(self) -> None:
        told = {segment.id for segment in self.stock.maybe_over()}
        assert told == {one for one in self.over if not self.stock[one].unused}
        self.over.clear()

    @rule(accept=ACCEPTANCES)
    def ask_for(self, accept: Acceptance) -> None:
        self.accept = accept

    def one(self, data: st.DataObject) -> Segment:
        return data.draw(st.sampled_from(list(self.stock.values())))

    @invariant()
    def every_count_is_the_sum(self) -> None:
        for mine in (True, False):
            for full in (True, False):
                for accept in (None, self.accept, lambda facts: self.accept(facts)):
                    suits = [
                        one
                        for one in self.stock.values()
                        if one.facts.full is full and (accept is None or accept(one.facts))
                    ]
                    slots = {one.id: len(one.mine if mine else one.theirs) for one in suits}
                    assert self.stock.slots(mine=mine, full=full, accept=accept) == sum(slots.values())
                    giving = [one.id for one in self.stock.giving(mine=mine, full=full, accept=accept)]
                    assert sorted(giving) == sorted(one for one, count in slots.items() if count)

    @invariant()
    def what_is_old_is_found(self) -> None:
        oldest = self.accept.oldest
        for full in (True, False):
            old = {
                one.id
                for one in self.stock.values()
                if one.facts.full is full and one.unused and one.facts.record.created < oldest
            }
            found = [one.id for one in self.stock.made_before(oldest, full=full)]
            assert sorted(found) == sorted(old)


class HoldingMachine(RuleBasedStateMachine):
    """What `kms.pools` and `kms.slots` do to held windows, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.held = Holding()
        self.facts = [a_segment(number, "", Nanoseconds(0), full=True, issuer=B).facts for number in range(3)]
        self.number = 0
        self.now = Nanoseconds(0)

    @rule(segment=st.integers(0, 2))
    def grant(self, segment: int) -> None:
        self.number += 1
        self.held.add(HeldWindow(self.number, self.facts[segment], 0, 4, self.now))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), issued=st.integers(0, 4))
    def hear(self, data: st.DataObject, issued: int) -> None:
        window = self.one(data)
        window.mark(issued, self.now)
        self.held.settle(window)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), slot=st.integers(0, 3))
    def deliver(self, data: st.DataObject, slot: int) -> None:
        window = self.one(data)
        if window.reserve(range(slot, slot + 1)):
            self.held.settle(window)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        window = self.one(data)
        if window.closed is None:
            self.held.close(window, self.now)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        self.held.remove(self.one(data).number)

    @rule()
    def wait(self) -> None:
        self.now = Nanoseconds(self.now + MINUTE)

    @rule(before=MOMENTS, forgets=st.booleans())
    def tidy(self, before: Nanoseconds, *, forgets: bool) -> None:
        moment = Nanoseconds(max(0, self.now - before))
        over = {window.number for window in self.held.over(moment)}
        expected = {
            one.number for one in self.held.values() if one.spent or (one.closed is not None and one.closed < moment)
        }
        assert expected <= over  # and perhaps what was over when it was asked with a later moment
        assert all(self.held[number].spent or self.held[number].closed is not None for number in over)
        if forgets:
            for number in over:
                self.held.remove(number)

    def one(self, data: st.DataObject) -> HeldWindow:
        return data.draw(st.sampled_from(list(self.held.values())))

    @invariant()
    def what_is_told_is_so(self) -> None:
        assert {one.number for one in self.held.open} == {
            one.number for one in self.held.values() if one.closed is None
        }
        for facts in self.facts:
            segment = facts.record.segment
            numbers = {one.number for one in self.held.values() if one.facts is facts}
            assert {one.number for one in self.held.of_segment(segment)} == numbers
            assert self.held.needs(segment) is bool(numbers)


TestStock = StockMachine.TestCase
TestStock.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestHolding = HoldingMachine.TestCase
TestHolding.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
