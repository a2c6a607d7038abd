"""Sets of slots of one segment, kept as few ranges: what may still be granted, and what has been seen. Pure."""

from __future__ import annotations

from dataclasses import dataclass

Range = tuple[int, int]
"""The first slot, and how many."""


@dataclass(frozen=True, slots=True)
class SlotSet:
    """Slots, as ranges in order that neither overlap nor touch."""

    ranges: tuple[Range, ...] = ()

    @staticmethod
    def of(first: int, count: int) -> SlotSet:
        return SlotSet(((first, count),)) if count > 0 else SlotSet()

    def __len__(self) -> int:
        return sum(count for _, count in self.ranges)

    def __contains__(self, slot: object) -> bool:
        return isinstance(slot, int) and self.covers(slot, 1)

    def covers(self, first: int, count: int) -> bool:
        """Tell whether all slots of a range are in the set; an empty range never is."""
        return count > 0 and any(start <= first and first + count <= start + length for start, length in self.ranges)

    def without(self, first: int, count: int) -> SlotSet:
        """Return the set without the slots of a range."""
        if count <= 0:
            return self
        end = first + count
        kept: list[Range] = []
        for start, length in self.ranges:
            stop = start + length
            kept += [
                (low, high - low) for low, high in ((start, min(stop, first)), (max(start, end), stop)) if low < high
            ]
        return SlotSet(tuple(kept))

    def with_range(self, first: int, count: int) -> SlotSet:
        """Return the set with the slots of a range."""
        if count <= 0:
            return self
        end = first + count
        apart = [(start, length) for start, length in self.ranges if start + length < first or end < start]
        touched = [one for one in self.ranges if one not in apart]
        low = min([first, *(start for start, _ in touched)])
        high = max([end, *(start + length for start, length in touched)])
        return SlotSet(tuple(sorted([*apart, (low, high - low)])))

    def lowest(self, most: int) -> Range:
        """Return a range of at most `most` slots from the lower end; the set is not empty."""
        first, count = self.ranges[0]
        return first, min(count, most)

    def highest(self, most: int) -> Range:
        """Return a range of at most `most` slots from the upper end; the set is not empty."""
        first, count = self.ranges[-1]
        taken = min(count, most)
        return first + count - taken, taken
