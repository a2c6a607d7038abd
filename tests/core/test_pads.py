from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from trenza.base.errors import NotEnoughKeyError, RemoteProtocolError
from trenza.base.names import LinkId, NodeId
from trenza.base.units import Nanoseconds
from trenza.core.pads import PadBlock, PadRange, PadStream, total_units
from trenza.core.strand import Supply

LINK, ANA = LinkId("ana-bea"), NodeId("ana")


def block(number: int, units: int = 10, *, reserve: bool = False, ready: bool = True, used: int = 0) -> PadBlock:
    return PadBlock(bytes([number]) * 16, LINK, ANA, reserve, units, Supply.LIVE, Nanoseconds(0), ready, used=used)


def stream(*blocks: PadBlock) -> PadStream:
    made = PadStream(LINK, ANA)
    for each in blocks:
        made.add(each)
    return made


def pads(number: int, first: int, count: int) -> PadRange:
    return PadRange(bytes([number]) * 16, first, count)


def test_units_are_taken_from_the_oldest_block_first_and_run_on_into_the_next():
    both = stream(block(2), block(1))
    assert both.allocate(8) == (pads(2, 0, 8),)
    assert both.allocate(5) == (pads(2, 8, 2), pads(1, 0, 3))
    assert both.available() == 7


def test_taking_fits_around_units_that_are_used():
    assert stream(block(1, used=0b0011001011)).allocate(5) == (pads(1, 2, 1), pads(1, 4, 2), pads(1, 8, 2))


def test_more_than_there_is_takes_nothing():
    one = stream(block(1))
    with pytest.raises(NotEnoughKeyError, match="fewer than 11"):
        one.allocate(11)
    assert one.available() == 10


def test_traffic_never_draws_on_the_reserve_nor_the_reserve_on_traffic():
    both = stream(block(1, reserve=True), block(2))
    with pytest.raises(NotEnoughKeyError):
        both.allocate(11)
    assert both.allocate(1, reserve=True) == (pads(1, 0, 1),)
    assert both.available() == 10
    with pytest.raises(NotEnoughKeyError):
        both.allocate(10, reserve=True)


def test_a_block_on_offer_counts_as_held_and_is_not_sent_under():
    offered = stream(block(1, ready=False))
    assert (offered.available(), offered.held()) == (0, 10)
    with pytest.raises(NotEnoughKeyError):
        offered.allocate(1)


def test_a_claim_shows_that_the_other_end_holds_the_block():
    offered = stream(block(1, ready=False))
    offered.claim([pads(1, 3, 2)])
    assert offered.blocks[bytes([1]) * 16].ready
    assert offered.available() == 8


@pytest.mark.parametrize(
    "wrong",
    [
        [pads(9, 0, 1)],  # unknown block
        [pads(3, 0, 1)],  # the reserve, claimed as traffic
        [pads(1, 9, 2)],  # beyond the end
        [pads(1, -1, 2)],
        [pads(1, 0, 0)],
        [pads(2, 0, 1)],  # used before
        [pads(1, 0, 4), pads(1, 3, 2)],  # twice in one claim
    ],
)
def test_a_wrong_claim_changes_nothing_even_if_part_of_it_is_right(wrong):
    held = stream(block(1), block(2, used=0b1), block(3, reserve=True))
    before = [each.used for each in held.blocks.values()]
    with pytest.raises(RemoteProtocolError):
        held.claim([pads(1, 7, 1), *wrong])
    assert [each.used for each in held.blocks.values()] == before


def test_a_claim_of_traffic_and_reserve_is_of_both_or_of_neither():
    held = stream(block(1), block(2, reserve=True))
    with pytest.raises(RemoteProtocolError):
        held.claim([pads(1, 0, 2)], [pads(1, 4, 1)])
    assert held.held() == held.held(reserve=True) == 10
    held.claim([pads(1, 0, 2)], [pads(2, 4, 1)])
    assert (held.held(), held.held(reserve=True)) == (8, 9)


def test_a_block_of_another_stream_or_known_already_is_refused():
    with pytest.raises(ValueError, match="not of this stream"):
        PadStream(LINK, NodeId("bea")).add(block(1))
    with pytest.raises(ValueError, match="already"):
        stream(block(1), block(1))


@pytest.mark.parametrize("bitmap", [b"\x00", b"\x00\x04", b"\x00\x00\x00"])
def test_a_bitmap_of_another_block_is_refused(bitmap):
    with pytest.raises(ValueError, match="another block"):
        block(1).restore(bitmap)


@given(units=st.integers(1, 70), data=st.data())
def test_a_bitmap_brings_back_exactly_the_marks(units, data):
    used = data.draw(st.integers(0, (1 << units) - 1))
    restored = block(1, units)
    restored.restore(block(1, units, used=used).bitmap())
    assert restored.used == used
    assert restored.used_up == (used == (1 << units) - 1)


class PadsAcrossCrashes(RuleBasedStateMachine):
    """A sender and a receiver of one stream; the network loses and reorders, both crash, and no unit serves twice."""

    @initialize(sizes=st.lists(st.tuples(st.integers(1, 20), st.booleans()), min_size=1, max_size=4))
    def blocks(self, sizes):
        self.sizes = sizes
        self.ends = {end: self.loaded({}) for end in ("sender", "receiver")}
        self.disks: dict[str, dict[bytes, bytes]] = {"sender": {}, "receiver": {}}
        self.wire: list[tuple[bool, tuple[PadRange, ...]]] = []
        self.sent: set[tuple[bytes, int]] = set()
        self.received: set[tuple[bytes, int]] = set()

    def loaded(self, disk: dict[bytes, bytes]) -> PadStream:
        made = stream(*(block(n + 1, units, reserve=reserve) for n, (units, reserve) in enumerate(self.sizes)))
        for block_id, bitmap in disk.items():
            made.blocks[block_id].restore(bitmap)
        return made

    def save(self, end: str) -> None:
        self.disks[end] = {each.id: each.bitmap() for each in self.ends[end].blocks.values()}

    def use(self, seen: set[tuple[bytes, int]], ranges: tuple[PadRange, ...]) -> None:
        units = [(each.block, unit) for each in ranges for unit in range(each.first, each.first + each.count)]
        assert len(set(units)) == len(units)
        assert not seen & set(units)
        seen |= set(units)

    @rule(units=st.integers(1, 8), reserve=st.booleans(), arrives=st.booleans())
    def send(self, units, reserve, arrives):
        try:
            ranges = self.ends["sender"].allocate(units, reserve=reserve)
        except NotEnoughKeyError:
            return
        assert total_units(ranges) == units
        self.save("sender")
        self.use(self.sent, ranges)
        if arrives:
            self.wire.append((reserve, ranges))

    @rule(data=st.data(), again=st.booleans())
    def receive(self, data, again):
        if not self.wire:
            return
        place = data.draw(st.integers(0, len(self.wire) - 1))
        reserve, ranges = self.wire[place] if again else self.wire.pop(place)
        try:
            self.ends["receiver"].claim(**{"reserve" if reserve else "traffic": ranges})
        except RemoteProtocolError:
            return
        self.save("receiver")
        self.use(self.received, ranges)

    @rule(units=st.integers(1, 8))
    def crash_before_the_commit(self, units):
        try:
            self.ends["sender"].allocate(units)
        except NotEnoughKeyError:
            return
        self.ends["sender"] = self.loaded(self.disks["sender"])  # nothing had left, so nothing is used

    @rule(end=st.sampled_from(["sender", "receiver"]))
    def restart(self, end):
        self.ends[end] = self.loaded(self.disks[end])

    @invariant()
    def what_was_received_was_sent(self):
        assert self.received <= self.sent


TestPadsAcrossCrashes = PadsAcrossCrashes.TestCase
