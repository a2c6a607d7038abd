"""Which windows are held, and since when they are over (trenza.kms.held)."""

from tests.kms.test_stock import A, a_segment

from trenza.base.units import Nanoseconds
from trenza.core.window import HeldWindow
from trenza.kms.held import Holding

CLOSED, LATER = Nanoseconds(5), Nanoseconds(9)
SEGMENT = a_segment(1, "", Nanoseconds(0), full=False, issuer=A)


def window(number: int) -> HeldWindow:
    return HeldWindow(number, SEGMENT.facts, 0, 4, Nanoseconds(0), issued=4, closed=CLOSED)


def test_a_closed_window_that_is_taken_in_anew_is_over_like_any_other() -> None:
    held = Holding()
    held.add(window(1))
    held.remove(1)
    held.add(again := window(1))  # as an instance does that reads the rows of another life anew
    assert held.over(LATER) == [again]


def test_a_window_takes_the_place_of_one_with_its_number() -> None:
    held = Holding()
    held.add(window(1))
    held.add(window(1))
    held.remove(1)
    assert not held.needs(SEGMENT.facts.record.segment)
