"""Both ends of a link's pads, step by step, over an unreliable wire: no unit is used twice, at either end."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.machines import QUICK

from trenza.base.errors import NotEnoughKeyError, RemoteProtocolError
from trenza.base.names import LinkId, NodeId
from trenza.core.pads import PadBlock, PadRange, PadStream, mask_of, total_units
from trenza.core.strand import Supply

LINK, SENDER = LinkId("A-B"), NodeId("A")
UNITS = 12


def names(ranges: tuple[PadRange, ...]) -> set[tuple[bytes, int]]:
    return {(one.block, unit) for one in ranges for unit in range(one.first, one.first + one.count)}


class Pads(RuleBasedStateMachine):
    """One direction of a link."""

    def __init__(self) -> None:
        super().__init__()
        self.sends, self.receives = PadStream(LINK, SENDER), PadStream(LINK, SENDER)
        self.blocks = 0
        self.on_the_wire: list[tuple[bool, tuple[PadRange, ...]]] = []
        self.sent: set[tuple[bytes, int]] = set()
        self.claimed: set[tuple[bytes, int]] = set()

    @rule(reserve=st.booleans(), ready=st.booleans())
    def stock(self, reserve: bool, ready: bool) -> None:
        self.blocks += 1
        for stream in (self.sends, self.receives):
            name = self.blocks.to_bytes(16, "big")
            stream.add(PadBlock(name, LINK, SENDER, reserve, UNITS, Supply.LIVE, 0, ready))

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        self.sends.blocks[data.draw(st.sampled_from(sorted(self.sends.blocks)))].ready = True

    @rule(units=st.integers(1, 15), reserve=st.booleans())
    def send(self, units: int, reserve: bool) -> None:
        available = self.sends.available(reserve=reserve)
        if available < units:
            with pytest.raises(NotEnoughKeyError):
                self.sends.allocate(units, reserve=reserve)
            assert self.sends.available(reserve=reserve) == available
            return
        taken = self.sends.allocate(units, reserve=reserve)
        assert total_units(taken) == units
        assert not names(taken) & self.sent
        assert all(self.sends.blocks[one.block].reserve is reserve for one in taken)
        self.sent |= names(taken)
        self.on_the_wire.append((reserve, taken))

    @precondition(lambda self: self.on_the_wire)
    @rule(data=st.data(), again=st.booleans())
    def arrive(self, data: st.DataObject, again: bool) -> None:
        """A message arrives, in any order, and perhaps once more later."""
        reserve, taken = data.draw(st.sampled_from(self.on_the_wire))
        if not again:
            self.on_the_wire.remove((reserve, taken))
        before = {name: block.used for name, block in self.receives.blocks.items()}
        if names(taken) & self.claimed:
            with pytest.raises(RemoteProtocolError):
                self.receives.claim(() if reserve else taken, taken if reserve else ())
            assert before == {name: block.used for name, block in self.receives.blocks.items()}
            return
        self.receives.claim(() if reserve else taken, taken if reserve else ())
        self.claimed |= names(taken)

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def claim_nonsense(self, data: st.DataObject) -> None:
        """What a sender names is checked whole before anything is marked."""
        block = data.draw(st.sampled_from(sorted(self.receives.blocks)))
        bad = PadRange(block, data.draw(st.integers(-2, UNITS)), data.draw(st.integers(-1, UNITS + 2)))
        purpose = self.receives.blocks[block].reserve
        inside = bad.first >= 0 and bad.count >= 1 and bad.first + bad.count <= UNITS
        if inside and not mask_of(bad) & self.receives.blocks[block].used:
            return  # sound
        before = self.receives.blocks[block].used
        with pytest.raises(RemoteProtocolError):
            self.receives.claim(() if purpose else (bad,), (bad,) if purpose else ())
        assert self.receives.blocks[block].used == before

    @rule()
    def restart(self) -> None:
        """Each end comes back with the marks that it made durable; marks are never cleared."""
        for stream in (self.sends, self.receives):
            for name, block in list(stream.blocks.items()):
                fresh = PadBlock(name, LINK, SENDER, block.reserve, UNITS, Supply.LIVE, 0, block.ready)
                fresh.restore(block.bitmap())
                stream.remove(name)
                stream.add(fresh)

    @invariant()
    def the_marks_are_what_was_used(self) -> None:
        for stream, used in ((self.sends, self.sent), (self.receives, self.claimed)):
            marks = {
                (name, unit) for name, one in stream.blocks.items() for unit in range(UNITS) if one.used >> unit & 1
            }
            assert marks == used
        assert self.claimed <= self.sent


TestPads = Pads.TestCase
TestPads.settings = QUICK
