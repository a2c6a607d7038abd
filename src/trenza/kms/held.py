"""The windows that this node has granted to one peer: which are open, which are over, and since when.

What upkeep asks at every beat costs as much as has changed, however many windows wait for their keys to be fetched.
Whoever changes a window says so (`settle`). Pure bookkeeping: durable is what `kms.granting` and
`kms.pools` commit.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TypeVar, overload

from trenza.base.units import Nanoseconds
from trenza.core.window import HeldWindow

_T = TypeVar("_T")


class Holding(Mapping[int, HeldWindow]):
    """The held windows of one pair, by number."""

    def __init__(self) -> None:
        self._windows: dict[int, HeldWindow] = {}
        self._open: dict[int, HeldWindow] = {}  # the peer may still issue from these
        self._closed: list[tuple[int, int]] = []  # a heap, by the time; may name what is gone, or open again
        self._spent: dict[int, HeldWindow] = {}  # nothing can be fetched of these any more
        self._of_segment: Counter[bytes] = Counter()

    def __getitem__(self, number: int) -> HeldWindow:
        return self._windows[number]

    def __iter__(self) -> Iterator[int]:
        return iter(self._windows)

    def __len__(self) -> int:
        return len(self._windows)

    @overload
    def get(self, number: int, /) -> HeldWindow | None: ...
    @overload
    def get(self, number: int, /, default: HeldWindow | _T) -> HeldWindow | _T: ...
    def get(self, number: int, /, default: object = None) -> object:
        return self._windows.get(number, default)

    def add(self, window: HeldWindow) -> None:
        """Take in a window; one of that number that was there before is gone."""
        self.remove(window.number)
        self._windows[window.number] = self._open[window.number] = window
        self._of_segment[window.facts.record.segment] += 1
        self.settle(window)

    def remove(self, number: int) -> None:
        """Let go of a window, if it is there."""
        window = self._windows.pop(number, None)
        if window is None:
            return
        self._open.pop(number, None)
        self._spent.pop(number, None)
        segment = window.facts.record.segment
        self._of_segment[segment] -= 1
        if not self._of_segment[segment]:
            del self._of_segment[segment]

    def clear(self) -> None:
        """Let go of all of them."""
        for number in list(self._windows):
            self.remove(number)
        self._closed.clear()

    def settle(self, window: HeldWindow) -> None:
        """Take in that a window was closed, or that keys of it were delivered or declared void."""
        number = window.number
        if self._windows.get(number) is not window:
            return
        if window.closed is not None and self._open.pop(number, None) is not None:
            heapq.heappush(self._closed, (window.closed, number))
        if window.spent:
            self._spent[number] = window

    def close(self, window: HeldWindow, now: Nanoseconds) -> None:
        """Note that nothing more is issued from a window."""
        window.closed = now
        self.settle(window)

    def reopen(self, window: HeldWindow) -> None:
        """Note that a window which was taken for closed is issued from all the same."""
        window.closed = None
        self._open[window.number] = window
        self._spent.pop(window.number, None)
        self.settle(window)

    # --- what there is

    @property
    def open(self) -> list[HeldWindow]:
        """Return the windows that the peer may still issue from."""
        return list(self._open.values())

    def needs(self, segment_id: bytes) -> bool:
        """Tell whether a window of this segment is held."""
        return segment_id in self._of_segment

    def of_segment(self, segment_id: bytes) -> list[HeldWindow]:
        """Return the windows of a segment; looks at each."""
        if segment_id not in self._of_segment:
            return []
        return [window for window in self._windows.values() if window.facts.record.segment == segment_id]

    def over(self, before: Nanoseconds) -> list[HeldWindow]:
        """Return the windows that are spent, or were closed before a moment; those that stay are told again."""
        found = dict(self._spent)
        while self._closed and self._closed[0][0] < before:
            since, number = heapq.heappop(self._closed)
            window = self._windows.get(number)
            if window is not None and window.closed == since:
                found[number] = self._spent[number] = window  # until it is removed
        return list(found.values())
