"""The segments of a pair, and how many slots of them are in whose gift: counted as they change, never added up.

What is asked of a stock all the time (how much there is of a kind, which segment is the oldest that still has slots,
which are over) costs the same however many segments lie in it. They are kept by the *way* their strands came, on
which what a policy accepts depends, and within it by age. Pure bookkeeping: durable is what `kms.pools` commits.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeVar, overload

from trenza.base.names import NodeId
from trenza.base.units import Nanoseconds
from trenza.core.choice import Acceptance
from trenza.core.segment import OpenSegment, SegmentFacts
from trenza.core.slot_set import SlotSet

Accept = Callable[[SegmentFacts], bool]
"""Tells whether strands suit somebody. An `Acceptance`, or None for all, needs no look at each segment."""

_AGE_BITS = 36
"""Segments made within 69 seconds (2^36 ns) of each other are counted together."""

_NONE = SlotSet()
_T = TypeVar("_T")


class Segment:
    """A segment of one pair that both ends hold."""

    __slots__ = ("_mine", "_stock", "_theirs", "facts", "id", "open", "peer", "users")

    def __init__(self, peer: NodeId, facts: SegmentFacts, mine: SlotSet = _NONE, theirs: SlotSet = _NONE) -> None:
        self.id = facts.record.segment
        self.peer = peer
        self.facts = facts
        self.users = 0  # stories that need it right now
        self.open: OpenSegment | None = None
        self._mine = mine
        self._theirs = theirs
        self._stock: Stock | None = None

    @staticmethod
    def fresh(peer: NodeId, facts: SegmentFacts, *, granted: int = 0) -> Segment:
        """Return a segment of which its holder has granted so many slots, and nothing was ceded."""
        rest = SlotSet.of(granted, facts.record.slots - granted)
        issues = facts.record.issuer != peer
        mine, theirs = (SlotSet(), rest) if issues else (rest, SlotSet())
        return Segment(peer, facts, mine, theirs)

    @property
    def mine(self) -> SlotSet:
        """Return the slots that this node may still grant to the peer, or cede to itself."""
        return self._mine

    @mine.setter
    def mine(self, slots: SlotSet) -> None:
        before, self._mine = len(self._mine), slots
        if self._stock is not None:
            self._stock.recount(self, before, len(slots), mine=True)

    @property
    def theirs(self) -> SlotSet:
        """Return the slots that it has not seen given to anybody: it may be granted these, or asked to hold them."""
        return self._theirs

    @theirs.setter
    def theirs(self, slots: SlotSet) -> None:
        before, self._theirs = len(self._theirs), slots
        if self._stock is not None:
            self._stock.recount(self, before, len(slots), mine=False)

    @property
    def unused(self) -> int:
        """Return the slots that may still become somebody's to issue."""
        return len(self._mine) + len(self._theirs)

    def belongs_to(self, stock: Stock | None) -> None:
        """Tell the stock from now on what changes."""
        self._stock = stock


class _Way(NamedTuple):
    """All that acceptance looks at, beside age."""

    full: bool  # with QKD strands
    hops: int
    known_to: tuple[str, ...]

    @staticmethod
    def of(facts: SegmentFacts) -> _Way:
        return _Way(facts.full, len(facts.record.hops), facts.known_to)


class _Age:
    """Segments of about the same age that have slots to give."""

    __slots__ = ("segments", "slots")

    def __init__(self) -> None:
        self.slots = 0
        self.segments: dict[bytes, Segment] = {}


class _Shelf:
    """The segments of one way that have slots in one gift, oldest first."""

    __slots__ = ("_ages", "_mine", "_order", "slots")

    def __init__(self, *, mine: bool) -> None:
        self._mine = mine
        self.slots = 0
        self._ages: dict[int, _Age] = {}
        self._order: list[int] = []

    def recount(self, segment: Segment, before: int, after: int) -> None:
        """Take in that a segment has so many slots now."""
        number = segment.facts.record.created >> _AGE_BITS
        age = self._ages.get(number)
        if age is None:
            age = self._ages[number] = _Age()
            insort(self._order, number)
        self.slots += after - before
        age.slots += after - before
        if after:
            age.segments[segment.id] = segment
        elif age.segments.pop(segment.id, None) is not None and not age.segments:
            del self._ages[number]
            self._order.remove(number)

    def younger(self, oldest: Nanoseconds) -> int:
        """Return the slots of segments made at `oldest` or later."""
        slots, bound = self.slots, oldest >> _AGE_BITS
        for number in self._order:
            if number > bound:
                break
            age = self._ages[number]
            if number < bound:
                slots -= age.slots
            else:
                slots -= sum(self._of(one) for one in age.segments.values() if one.facts.record.created < oldest)
        return slots

    def _of(self, segment: Segment) -> int:
        return len(segment.mine if self._mine else segment.theirs)

    def segments(self) -> Iterator[Segment]:
        """Yield what has slots, oldest first, as it was when it was asked for; whoever asks may take them."""
        for number in list(self._order):
            age = self._ages.get(number)
            if age is not None:
                yield from list(age.segments.values())

    def made_before(self, moment: Nanoseconds) -> Iterator[Segment]:
        """Yield what is older."""
        for number in self._order:
            if number > moment >> _AGE_BITS:
                return
            for segment in self._ages[number].segments.values():
                if segment.facts.record.created < moment:
                    yield segment


class Stock(Mapping[bytes, Segment]):
    """The segments of one pair, by ID."""

    def __init__(self) -> None:
        self._segments: dict[bytes, Segment] = {}
        self._mine: dict[_Way, _Shelf] = {}
        self._theirs: dict[_Way, _Shelf] = {}
        self._maybe_over: dict[bytes, Segment] = {}

    def __getitem__(self, segment_id: bytes) -> Segment:
        return self._segments[segment_id]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._segments)

    def __len__(self) -> int:
        return len(self._segments)

    @overload
    def get(self, segment_id: bytes, /) -> Segment | None: ...
    @overload
    def get(self, segment_id: bytes, /, default: Segment | _T) -> Segment | _T: ...
    def get(self, segment_id: bytes, /, default: object = None) -> object:
        return self._segments.get(segment_id, default)

    def add(self, segment: Segment) -> None:
        """Take in a segment, instead of another of the same ID."""
        self.remove(segment.id)
        self._segments[segment.id] = segment
        self.recount(segment, 0, len(segment.mine), mine=True)
        self.recount(segment, 0, len(segment.theirs), mine=False)
        segment.belongs_to(self)

    def remove(self, segment_id: bytes) -> Segment | None:
        """Let go of a segment, if it is there."""
        segment = self._segments.pop(segment_id, None)
        if segment is not None:
            segment.belongs_to(None)
            self.recount(segment, len(segment.mine), 0, mine=True)
            self.recount(segment, len(segment.theirs), 0, mine=False)
            self._maybe_over.pop(segment_id, None)
        return segment

    def recount(self, segment: Segment, before: int, after: int, *, mine: bool) -> None:
        """Take in that a segment of this stock has `after` slots in one gift, and had `before`."""
        if before != after:
            shelves, way = self._mine if mine else self._theirs, _Way.of(segment.facts)
            shelf = shelves.get(way)
            if shelf is None:
                shelf = shelves[way] = _Shelf(mine=mine)
            shelf.recount(segment, before, after)
            if not shelf.slots:
                del shelves[way]
        if not segment.unused:
            self._maybe_over[segment.id] = segment

    # --- how much, and which

    def slots(self, *, mine: bool, full: bool, accept: Accept | None = None) -> int:
        """Return the slots in one gift, this node's or the peer's, of segments that `accept` accepts."""
        found = 0
        for shelf, test in self._suitable(mine=mine, full=full, accept=accept):
            if test is None:
                found += shelf.slots
            elif isinstance(test, Acceptance):
                found += shelf.younger(test.oldest)
            else:
                found += sum(len(one.mine if mine else one.theirs) for one in shelf.segments() if test(one.facts))
        return found

    def giving(self, *, mine: bool, full: bool, accept: Accept | None = None) -> Iterator[Segment]:
        """Yield the segments that have slots in one gift and suit, those of each way oldest first."""
        for shelf, test in self._suitable(mine=mine, full=full, accept=accept):
            for segment in shelf.segments():
                if test is None or test(segment.facts):
                    yield segment

    def _suitable(self, *, mine: bool, full: bool, accept: Accept | None) -> list[tuple[_Shelf, Accept | None]]:
        """Return the shelves to look at, each with the test that is left to do."""
        return [
            (shelf, accept)
            for way, shelf in (self._mine if mine else self._theirs).items()
            if way.full is full and (not isinstance(accept, Acceptance) or accept.suits(way.hops, way.known_to))
        ]

    # --- what is over

    def look_again(self, segment_id: bytes) -> None:
        """Mark a segment as perhaps over: something that needed it has gone."""
        segment = self._segments.get(segment_id)
        if segment is not None and not segment.unused:
            self._maybe_over[segment_id] = segment

    def maybe_over(self) -> list[Segment]:
        """Return the segments without an unused slot that became so, or were marked, since the last call."""
        found, self._maybe_over = list(self._maybe_over.values()), {}
        return [segment for segment in found if not segment.unused]

    def made_before(self, moment: Nanoseconds, *, full: bool) -> list[Segment]:
        """Return the segments with unused slots that are older."""
        shelves = (*self._mine.items(), *self._theirs.items())
        found = [one for way, shelf in shelves if way.full is full for one in shelf.made_before(moment)]
        return list({segment.id: segment for segment in found}.values())
