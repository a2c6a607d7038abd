"""Whether a node's clock can be believed: a peer's word, and a clock that goes on evenly."""

from __future__ import annotations

import pytest
from tests.kms.fakes import FakeClock, FakeNetwork, make_context, open_session

from trenza.base.names import NodeId
from trenza.kms.clock_check import ClockCheck

A, B, C, D = (NodeId(name) for name in "ABCD")
HOUR, DAY = 3_600.0, 86_400.0


class World:
    """Node A, its partners, and a clock that may be set."""

    def __init__(self, *partners: NodeId) -> None:
        self.clock, self.network = FakeClock(), FakeNetwork()
        self.ctx = make_context(A, self.network, clock=self.clock)
        self.check = ClockCheck(self.ctx, partners=lambda: partners)

    def meet(self, *peers: NodeId) -> None:
        for peer in peers:
            open_session(self.ctx, make_context(peer, self.network, clock=self.clock))

    def set(self, seconds: float) -> None:
        """Set the clock, as nothing else does: the monotonic clock stays."""
        self.clock.now_ns += int(seconds * 1e9)


def test_one_partners_word_holds_while_the_clock_goes_on_evenly() -> None:
    world = World(B)
    world.meet(B)
    assert not world.check.is_sound()
    world.check.agreed(B)
    assert world.check.is_sound()
    world.clock.advance(300 * DAY)
    world.set(0.9 * HOUR)  # disciplined, step by step
    assert world.check.is_sound()


@pytest.mark.parametrize("by", [300 * DAY, -300 * DAY, 1.1 * HOUR])
def test_a_clock_that_was_set_needs_a_new_word(by: float) -> None:
    world = World(B)
    world.meet(B)
    world.check.agreed(B)
    world.set(by)
    assert not world.check.is_sound()
    world.clock.advance(30 * DAY)
    assert not world.check.is_sound()
    world.set(-by)  # and when it is set right again the old one holds
    assert world.check.is_sound()
    world.set(by)
    world.check.agreed(B)
    assert world.check.is_sound()


def test_half_of_the_partners_that_are_there_must_agree() -> None:
    world = World(B, C, D)
    world.meet(B, C, D)
    world.check.agreed(B)
    assert not world.check.is_sound()  # as where one other clock is as wrong as this
    world.check.agreed(C)
    assert world.check.is_sound()
    world.check.agreed(NodeId("X"))  # no partner any more
    assert world.check.is_sound()


def test_partners_that_are_away_are_not_waited_for() -> None:
    world = World(B, C, D)
    world.meet(B)
    world.check.agreed(B)
    assert world.check.is_sound()


def test_a_node_without_partners_believes_a_clock_that_went_on_evenly_for_a_day() -> None:
    world = World()
    assert not world.check.is_sound()
    world.clock.advance(DAY)
    assert world.check.is_sound()
    world.set(300 * DAY)
    assert not world.check.is_sound()
    world.clock.advance(0.9 * DAY)
    assert not world.check.is_sound()
    world.clock.advance(0.2 * DAY)
    assert world.check.is_sound()
