"""Windows: slots that the far node has granted, so that issuing needs no round trip and nothing is issued twice
(decision 8).

The *issuer* takes slots from windows it was granted in this incarnation, in order, never going back, and only from a
*sub-range* that was reserved before: given up durably, so that taking needs no commit (docs/adr/0018). Several
instances of one node may reserve sub-ranges of one window in turn; each takes from its own. The *holder*
remembers what it granted, what it has delivered and what was declared void. Both are pure bookkeeping; the stories
make every step durable before a byte leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from trenza.base.units import Nanoseconds
from trenza.core.segment import SegmentFacts


@dataclass(slots=True, eq=False)
class IssuerWindow:
    """Slots [first, first + count) of one segment that this node may issue; `next` is the first not yet taken."""

    number: int
    facts: SegmentFacts
    first: int
    count: int
    next: int
    reserved: int = 0  # slots below this one are given up durably; those from `next` on are in hand
    void: list[int] = field(default_factory=list)  # taken slots that must never be delivered
    later: list[tuple[int, int]] = field(default_factory=list)  # further sub-ranges in hand, beyond those of others
    beyond: int = 0  # slots below this one are given up, some by another instance; 0: there is no other
    shared: bool = False  # another instance has reserved some

    @property
    def end(self) -> int:
        return self.first + self.count

    @property
    def left(self) -> int:
        """Return the slots that this instance may still take, reserved or not."""
        if not self.beyond:
            return self.first + self.count - self.next
        return self.end - self.mark + self.in_hand

    @property
    def mark(self) -> int:
        """Return the first slot that is not given up durably, by whichever instance, as far as is known here."""
        return max(self.next, self.reserved, self.beyond)

    @property
    def in_hand(self) -> int:
        """Return the slots that can be taken without a commit."""
        return max(0, self.reserved - self.next) + sum(stop - start for start, stop in self.later)

    @property
    def given_up(self) -> frozenset[int]:
        """Return the slots that may have become keys, whoever reserved them."""
        free = {slot for start, stop in [(self.next, self.reserved), *self.later] for slot in range(start, stop)}
        return frozenset(range(self.first, self.mark)) - free - frozenset(self.void)

    @property
    def issued(self) -> int:
        """Return how many slots from the first on may be issued by now; those of others count when reserved."""
        return (self.mark if self.beyond else self.next) - self.first

    def is_ready(self, slots: int) -> bool:
        """Tell whether a key of so many slots can be taken at `next`, going on to the next sub-range if need be."""
        while self.reserved - self.next < slots and self.later:
            self.next, self.reserved = self.later.pop(0)
        return self.reserved - self.next >= slots

    def keys_in_hand(self, slots: int) -> int:
        """Return how many keys of so many slots each can be taken without a commit."""
        return max(0, self.reserved - self.next) // slots + sum((stop - start) // slots for start, stop in self.later)

    def won(self, start: int, stop: int) -> None:
        """Take into hand what was given up durably for this instance: slots [start, stop)."""
        if start <= self.reserved and not self.later:
            self.reserved = max(self.reserved, stop)
        elif self.reserved <= self.next and not self.later:
            self.next, self.reserved = start, stop
        else:
            self.later.append((start, stop))
        if self.beyond:
            self.beyond = max(self.beyond, stop)

    def give_up_in_hand(self) -> int:
        """Let go of what is in hand; return how many slots that were."""
        lost = self.in_hand
        self.reserved = 0
        self.later.clear()
        return lost


@dataclass(frozen=True, slots=True)
class Take:
    """One key's place: `slots` slots of `window`, from `slot`."""

    window: IssuerWindow
    slot: int
    slots: int


class IssuerPool:
    """What this node may issue to one other node now."""

    def __init__(self) -> None:
        self._windows: dict[int, IssuerWindow] = {}
        self._unused: dict[int, IssuerWindow] = {}  # those not known to be used up

    def __iter__(self) -> Iterator[IssuerWindow]:
        return iter(self._windows.values())

    def add(self, window: IssuerWindow) -> None:
        """Take over a granted window.

        Raises:
            ValueError: its slots overlap a window held already: the granting node has gone back in time.
        """
        for held in self._windows.values():
            same = held.facts.record.segment == window.facts.record.segment
            if held.number == window.number or (
                same and held.first < window.first + window.count and window.first < held.first + held.count
            ):
                raise ValueError("the granted window overlaps one that is held already")
        self._windows[window.number] = self._unused[window.number] = window

    def get(self, number: int) -> IssuerWindow | None:
        """Return the window of that number, if it is held."""
        return self._windows.get(number)

    def remove(self, number: int) -> IssuerWindow | None:
        """Let go of a window: nothing of it is in hand any more, whoever still holds it."""
        window = self._windows.pop(number, None)
        self._unused.pop(number, None)
        if window is not None:
            window.give_up_in_hand()
        return window

    def available(self, *, full: bool, slots: int = 1, accept: Callable[[SegmentFacts], bool] | None = None) -> int:
        """Return how many keys of `slots` slots each windows that `accept` accepts are good for, reserved or not."""
        return sum(window.left // slots for window in self._live(full=full, accept=accept))

    def in_hand(self, *, full: bool, accept: Callable[[SegmentFacts], bool] | None = None) -> int:
        """Return the slots that can be taken without a commit."""
        return sum(window.in_hand for window in self._live(full=full, accept=accept))

    def has_keys(self, keys: int, *, full: bool, slots: int, accept: Callable[[SegmentFacts], bool]) -> bool:
        """Tell whether so many keys can be taken without a commit."""
        for window in self._live(full=full, accept=accept):
            keys -= window.keys_in_hand(slots)
            if keys <= 0:
                return True
        return False

    def first_ready(self, *, full: bool, slots: int, accept: Callable[[SegmentFacts], bool]) -> IssuerWindow | None:
        """Return the oldest window from which a key of so many slots can be taken without a commit."""
        for window in self._live(full=full, accept=accept):
            if window.is_ready(slots):
                return window
        return None

    def _live(self, *, full: bool, accept: Callable[[SegmentFacts], bool] | None = None) -> Iterator[IssuerWindow]:
        """Yield the windows with slots that are left, oldest first; the others wait only to be told of."""
        used_up = [number for number, window in self._unused.items() if not (window.left or window.beyond)]
        for number in used_up:
            del self._unused[number]
        for window in self._unused.values():
            if window.facts.full is full and (accept is None or accept(window.facts)):
                yield window

    def take(self, keys: int, *, full: bool, slots: int, accept: Callable[[SegmentFacts], bool]) -> list[Take]:
        """Take places for `keys` keys out of what is reserved, oldest window first, or none at all.

        Returns:
            One Take per key; empty when there are not enough. A tail too short for one key is skipped, not split.
        """
        chosen: list[tuple[IssuerWindow, int]] = []
        missing = keys
        for window in self._live(full=full, accept=accept):
            here = min(missing, window.keys_in_hand(slots))
            if not here:
                continue
            chosen.append((window, here))
            missing -= here
            if not missing:
                break
        if missing:
            return []
        takes: list[Take] = []
        for window, here in chosen:
            for _ in range(here):
                window.is_ready(slots)
                takes.append(Take(window, window.next, slots))
                window.next += slots
        return takes

    def reservable(
        self, wanted: int, *, full: bool, slots: int = 1, accept: Callable[[SegmentFacts], bool]
    ) -> list[tuple[IssuerWindow, int]]:
        """Return which marks to move so that `wanted` slots are in hand, in the order in which `take` goes.

        Args:
            wanted: slots in hand that the caller wants, with those that are already.
            full: with QKD strands or without.
            slots: of one key; what a window cannot give to whole keys does not count.
            accept: of the caller.

        Returns:
            Windows, each with the mark to make durable; as far as the windows reach.
        """
        marks: list[tuple[IssuerWindow, int]] = []
        for window in self._live(full=full, accept=accept):
            if wanted <= 0:
                break
            if window.left < slots:
                continue
            if window.beyond:
                wanted -= slots * window.keys_in_hand(slots)
                usable = max(0, min(-(-wanted // slots), (window.end - window.mark) // slots)) * slots
                if usable:
                    wanted -= usable
                    marks.append((window, window.mark + usable))
                continue
            usable = min(-(-wanted // slots), window.left // slots) * slots
            wanted -= max(usable, window.in_hand // slots * slots)
            mark = max(window.next + usable, window.reserved)
            if mark > window.reserved:
                marks.append((window, mark))
        return marks


@dataclass(slots=True)
class HeldWindow:
    """A window this node granted: what may still be fetched of it."""

    number: int
    facts: SegmentFacts
    first: int
    count: int
    granted: Nanoseconds
    issued: int = 0  # slots issued, as the issuer last said
    closed: Nanoseconds | None = None  # since when nothing more is issued from it
    delivered: set[int] = field(default_factory=set)  # slots; includes those that a delivery under way has reserved
    void: set[int] = field(default_factory=set)
    marks: list[tuple[int, Nanoseconds]] = field(default_factory=list)  # (issued so far, when we heard it)
    life: bytes = b""  # the nonce of the life it was given to
    ceded: bool = False  # its issuer asked for it, in this life of ours; it gets the same answer if it asks again
    shared: bool = False  # another instance of this node has delivered some

    def mark(self, issued: int, now: Nanoseconds) -> None:
        """Note how far the issuer has come; going back is ignored."""
        issued = min(issued, self.count)  # a peer may claim anything, again and again
        if issued > self.issued:
            self.issued = issued
            self.marks.append((self.issued, now))
        if self.issued == self.count and self.closed is None:
            self.closed = now

    def heard_at(self, slot: int) -> Nanoseconds | None:
        """Return when we learned that `slot` was issued; None while we have not."""
        for issued, moment in self.marks:
            if slot < self.first + issued:
                return moment
        return self.closed

    def reserve(self, slots: range) -> bool:
        """Reserve `slots` for a delivery; False when one is outside, void, or delivered before."""
        if slots.start < self.first or slots.stop > self.first + self.count:
            return False
        if any(slot in self.delivered or slot in self.void for slot in slots):
            return False
        self.delivered.update(slots)
        return True

    def release(self, slots: range) -> None:
        """Give back a reservation of which nothing was committed."""
        self.delivered.difference_update(slots)

    def take_back(self, issued: int) -> tuple[int, int] | None:
        """Take back the slots after the first `issued`, which the issuer says it never issued.

        Returns:
            The range that is free again; None where there is nothing, or where the word cannot be true: more was
            told to be issued, one of the slots was delivered or declared void, or nothing is issued any more.
        """
        first, count = self.first + issued, self.count - issued
        doubted = any(slot >= first for slot in (*self.delivered, *self.void))
        if self.closed is not None or issued < self.issued or count <= 0 or doubted:
            return None
        self.count = issued
        return first, count

    @property
    def spent(self) -> bool:
        """Tell whether no slot of it can be delivered any more."""
        gone = len(self.delivered) + len(self.void)
        return gone >= self.count and len(self.delivered | self.void) >= self.count  # seldom is it worth a union
